# make setup   installs what is missing        make demo   the whole thing, once, before your eyes
# make test    lint and all tests              make bench  the speed table
PREFIX ?= /usr
CARGO ?= cargo
LIBDIR = $(PREFIX)/lib/vzkeep

.PHONY: all setup demo test soak bench lint fmt install

all:
	$(CARGO) build --release --bins

setup:
	@scripts/setup

demo: setup
	$(CARGO) build --release --bins --example lab
	@target/release/examples/lab demo

test: setup lint
	$(CARGO) test

# The long run of the tests that are kept short above.
soak: setup
	VZKEEP_SOAK=1 $(CARGO) test --release -- --nocapture

bench: setup
	@scripts/bench

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

fmt:
	$(CARGO) fmt

# The other names live in a directory of their own, so that the vzdump and qmrestore of a Proxmox node stay what they are.
# Put $(LIBDIR)/bin first in PATH to use them, or call `vzkeep vzdump ...`.
install: all
	install -D -m 755 target/release/vzkeep $(DESTDIR)$(PREFIX)/bin/vzkeep
	install -d $(DESTDIR)$(LIBDIR)/bin
	for name in vzdump qmrestore; do ln -sfn ../../../bin/vzkeep $(DESTDIR)$(LIBDIR)/bin/$$name || exit 1; done
