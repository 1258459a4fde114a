# Every target does its own set-up; `make help` lists them.
CARGO   ?= cargo
PREFIX  ?= /usr/local
TARGET  := $(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := target/$(TARGET)/release
PROGRAMS := xebec containerd-shim-xebec-v2 xebec-snapshotter
HOST    := $(CARGO) run --quiet --release -p integration --
SECONDS ?= 60
CACHE   ?= $(or $(XEBEC_CACHE),/var/cache/xebec)
MAN     := $(PREFIX)/share/man/man1
BASH    := $(PREFIX)/share/bash-completion/completions
ZSH     := $(PREFIX)/share/zsh/site-functions
FISH    := $(PREFIX)/share/fish/vendor_completions.d
UNITS   := $(PREFIX)/lib/systemd/system
export XEBEC_COMMIT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
DENY    := $(CACHE)/tools/bin/cargo-deny

.DEFAULT_GOAL := help
.PHONY: help build demo test bench fuzz chaos soak suites differential order lint install uninstall clean

help: ## show this text
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## static release binaries in target/<host>/release
	$(CARGO) build --release -p xebec-runtime -p xebec-shim -p xebec-snapshotter

demo: ## the main job end to end: convert, push, run lazily, compare with a full pull
	$(HOST) setup
	$(HOST) demo

test: ## unit, native-host and VM tests by cargo-nextest
	$(CARGO) run --quiet -p integration -- setup --vm
	$(CARGO) nextest run --workspace

bench: ## all benchmarks, interleaved with the peers; also target/bench.json and .svg
	$(HOST) setup --benchmarks
	$(HOST) bench all --json target/bench.json --plot target/bench.svg

fuzz: ## mutated input for every parser of snapshotter, shim and checkpoints, SECONDS=60 each
	XEBEC_FUZZ_SECONDS=$(SECONDS) XEBEC_FUZZ_SEED=$$(date +%s) \
	    $(CARGO) test -p xebec-snapshotter -p xebec-shim -p xebec-checkpoints --test fuzz -- --nocapture

order: ## the list of functions that a start needs (runtime/order.txt), after changes to it
	$(HOST) setup --benchmarks
	$(CARGO) build --release -p xebec-runtime -p bench-programs --config profile.release.package.xebec-runtime.strip=false
	$(HOST) order runtime/order.txt

differential: build ## every image in every format and mount mode against an ordinary unpack
	$(HOST) setup --vm
	XEBEC_BIN_DIR=$(abspath $(RELEASE)) XEBEC_DIFFERENTIAL=$${XEBEC_DIFFERENTIAL:-all} \
	    $(CARGO) nextest run --profile differential -p integration --test differential

chaos: ## kill daemons, cut the registry, fill the disk under load, for SECONDS=60 by each back end
	$(HOST) setup
	XEBEC_CHAOS_SECONDS=$(SECONDS) $(CARGO) test -p integration --test chaos -- --nocapture

soak: SECONDS = 1800
soak: ## kill containerd and shims' workers while pods and containers come and go, for SECONDS=1800
	$(HOST) setup
	XEBEC_SOAK_SECONDS=$(SECONDS) XEBEC_SOAK_SEED=$${XEBEC_SOAK_SEED:-$$(date +%s)} \
	    $(CARGO) test -p integration --test soak -- --nocapture

suites: ## containerd's own suites of tests, of its clients and of CRI, against our shim
	$(HOST) setup --suites --image busybox --image pause --image nginx
	$(CARGO) test -p integration --test suites -- --ignored --nocapture --test-threads 1

lint: $(DENY) ## rustfmt, clippy -D warnings, cargo deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(DENY) --workspace check licenses bans sources
	@if $(DENY) fetch db >/dev/null 2>&1; then $(DENY) --workspace check advisories; \
	else echo "advisories NOT checked: the advisory database is out of reach here" >&2; fi

$(DENY):
	$(CARGO) install cargo-deny --locked --root $(CACHE)/tools \
	    --config profile.release.lto=false --config profile.release.opt-level=1

install: build ## binaries, man pages, completions and a systemd unit below PREFIX
	install -Dm755 -t $(DESTDIR)$(PREFIX)/bin $(addprefix $(RELEASE)/,$(PROGRAMS))
	$(RELEASE)/xebec man $(DESTDIR)$(MAN)
	$(RELEASE)/xebec-snapshotter man $(DESTDIR)$(MAN)
	mkdir -p $(DESTDIR)$(BASH) $(DESTDIR)$(ZSH) $(DESTDIR)$(FISH)
	for p in xebec xebec-snapshotter; do \
	    $(RELEASE)/$$p completions bash > $(DESTDIR)$(BASH)/$$p && \
	    $(RELEASE)/$$p completions zsh > $(DESTDIR)$(ZSH)/_$$p && \
	    $(RELEASE)/$$p completions fish > $(DESTDIR)$(FISH)/$$p.fish || exit 1; done
	mkdir -p $(DESTDIR)$(UNITS)
	sed 's|@PREFIX@|$(PREFIX)|' docs/xebec-snapshotter.service > $(DESTDIR)$(UNITS)/xebec-snapshotter.service

uninstall: ## what install put there
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,$(PROGRAMS))
	rm -f $(DESTDIR)$(MAN)/xebec.1 $(DESTDIR)$(MAN)/xebec-*.1
	rm -f $(addprefix $(DESTDIR)$(BASH)/,xebec xebec-snapshotter) $(addprefix $(DESTDIR)$(ZSH)/_,xebec xebec-snapshotter)
	rm -f $(addsuffix .fish,$(addprefix $(DESTDIR)$(FISH)/,xebec xebec-snapshotter))
	rm -f $(DESTDIR)$(UNITS)/xebec-snapshotter.service

clean: ## build output; caches under /var/cache/xebec stay
	$(CARGO) clean
