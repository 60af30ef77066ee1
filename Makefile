# make setup   installs what is missing        make demo   the whole thing, once, before your eyes
# make test    lint and all tests              make bench  the speed table
# make test-system   the tests that need a kernel of their own (make test runs them, too)
PREFIX ?= /usr
CARGO ?= cargo
LIBDIR = $(PREFIX)/lib/vzkeep
MANDIR = $(PREFIX)/share/man/man1
BASHDIR = $(PREFIX)/share/bash-completion/completions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d
# Debian's zsh looks into vendor-completions below /usr, and into site-functions below /usr/local.
ZSHDIR = $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)

.PHONY: all setup demo test test-system soak bench lint fmt install

all:
	$(CARGO) build --release --bins

setup:
	@scripts/setup

demo: setup
	$(CARGO) build --release --bins --example lab
	@target/release/examples/lab demo

# One test after the other: on two cores, guests and QEMU processes side by side disturb each other's deadlines.
test: setup lint
	VZKEEP_SYSTEM=1 RUST_TEST_THREADS=1 $(CARGO) test

# Storages on device-mapper, in a guest that QEMU emulates: some minutes without KVM.
test-system: setup
	VZKEEP_SYSTEM=1 $(CARGO) test --test system -- --nocapture

# The long run of the tests that are kept short above.
soak: setup
	VZKEEP_SOAK=1 VZKEEP_SYSTEM=1 $(CARGO) test --release -- --nocapture --test-threads=1

bench: setup
	@scripts/bench

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

fmt:
	$(CARGO) fmt

# The other names, their man pages and completions live in a directory of their own, so that those of a Proxmox node stay
# what they are. Put $(LIBDIR)/bin first in PATH to use them (`man` and bash-completion 2.12 find the rest beside it; for zsh
# put $(LIBDIR)/share/zsh/site-functions first in fpath, for fish $(LIBDIR)/share/fish/vendor_completions.d first in
# fish_complete_path), or call `vzkeep vzdump ...`.
install: all
	install -D -m 755 target/release/vzkeep $(DESTDIR)$(PREFIX)/bin/vzkeep
	@scripts/install-docs target/release/vzkeep vzkeep '$(DESTDIR)$(MANDIR)' '$(DESTDIR)$(BASHDIR)' '$(DESTDIR)$(ZSHDIR)' '$(DESTDIR)$(FISHDIR)'
	install -d $(DESTDIR)$(LIBDIR)/bin $(DESTDIR)$(LIBDIR)/hooks
	install -m 755 hooks/*.pl hooks/*.sh hooks/*.py $(DESTDIR)$(LIBDIR)/hooks
	install -m 644 hooks/README.md $(DESTDIR)$(LIBDIR)/hooks
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's|/usr/bin/vzkeep|$(PREFIX)/bin/vzkeep|' debian/vzkeep-jobs.service \
	    >$(DESTDIR)$(PREFIX)/lib/systemd/system/vzkeep-jobs.service
	for name in vzdump qmrestore; do \
	    ln -sfn ../../../bin/vzkeep $(DESTDIR)$(LIBDIR)/bin/$$name && \
	    scripts/install-docs target/release/vzkeep $$name '$(DESTDIR)$(LIBDIR)/man/man1' \
	        '$(DESTDIR)$(LIBDIR)/share/bash-completion/completions' '$(DESTDIR)$(LIBDIR)/share/zsh/site-functions' \
	        '$(DESTDIR)$(LIBDIR)/share/fish/vendor_completions.d' || exit 1; done
	ln -sfn ../../../bin/vzkeep $(DESTDIR)$(LIBDIR)/bin/pct
	ln -sfn ../../../bin/vzkeep $(DESTDIR)$(LIBDIR)/bin/vma
	for name in pct-restore vma; do \
	    scripts/install-docs target/release/vzkeep $$name '$(DESTDIR)$(LIBDIR)/man/man1' \
	        '$(DESTDIR)$(LIBDIR)/share/bash-completion/completions' '$(DESTDIR)$(LIBDIR)/share/zsh/site-functions' \
	        '$(DESTDIR)$(LIBDIR)/share/fish/vendor_completions.d' || exit 1; done
