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

# One test after the other: on two cores, guests and QEMU processes side by side disturb each other's deadlines.
test: setup lint
	RUST_TEST_THREADS=1 $(CARGO) test

# The long run of the tests that are kept short above.
soak: setup
	VZKEEP_SOAK=1 $(CARGO) test --release -- --nocapture --test-threads=1

bench: setup
	@scripts/bench

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

fmt:
	$(CARGO) fmt

# The other names, their man pages and completions live in a directory of their own, so that those of a Proxmox node stay
# what they are. Put $(LIBDIR)/bin first in PATH to use them (`man` finds the pages beside it), or call `vzkeep vzdump ...`.
install: all
	install -D -m 755 target/release/vzkeep $(DESTDIR)$(PREFIX)/bin/vzkeep
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/vzkeep|$(PREFIX)/bin/vzkeep|' debian/vzkeep-jobs.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/vzkeep-jobs.service
	install -d $(DESTDIR)$(LIBDIR)/bin $(DESTDIR)$(LIBDIR)/man/man1 $(DESTDIR)$(LIBDIR)/completions
	for name in vzdump qmrestore; do \
	    ln -sfn ../../../bin/vzkeep $(DESTDIR)$(LIBDIR)/bin/$$name && \
	    target/release/vzkeep man $$name >$(DESTDIR)$(LIBDIR)/man/man1/$$name.1 && \
	    target/release/vzkeep completion $$name >$(DESTDIR)$(LIBDIR)/completions/$$name || exit 1; done
