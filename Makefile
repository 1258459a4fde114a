# Every target does its own set-up; `make help` lists them.
CARGO   ?= cargo
PREFIX  ?= /usr/local
TARGET  := $(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := target/$(TARGET)/release
HOST    := $(CARGO) run --quiet --release -p integration --
CACHE   ?= $(or $(XEBEC_CACHE),/var/cache/xebec)
DENY    := $(CACHE)/tools/bin/cargo-deny

.DEFAULT_GOAL := help
.PHONY: help build demo test bench lint install uninstall clean

help: ## show this text
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

build: ## static release binaries in target/<host>/release
	$(CARGO) build --release -p xebec-runtime -p xebec-shim -p xebec-snapshotter

demo: ## the main job end to end: convert, push, run lazily, compare with a full pull
	$(HOST) setup
	$(HOST) demo

test: ## unit, native-host and VM tests by cargo-nextest
	$(HOST) setup --vm
	$(CARGO) nextest run --workspace

bench: ## all benchmarks, interleaved with the peers on the native host
	$(HOST) setup
	$(HOST) bench all

lint: $(DENY) ## rustfmt, clippy -D warnings, cargo deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(DENY) --workspace check licenses bans sources
	@if $(DENY) fetch db >/dev/null 2>&1; then $(DENY) --workspace check advisories; \
	else echo "advisories NOT checked: the advisory database is out of reach here" >&2; fi

$(DENY):
	$(CARGO) install cargo-deny --locked --root $(CACHE)/tools \
	    --config profile.release.lto=false --config profile.release.opt-level=1

install: build ## binaries, man pages and completions below PREFIX
	$(RELEASE)/xebec-snapshotter --version >/dev/null
	install -Dm755 -t $(DESTDIR)$(PREFIX)/bin $(RELEASE)/xebec $(RELEASE)/containerd-shim-xebec-v2 $(RELEASE)/xebec-snapshotter

uninstall: ## what install put there
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/bin/,xebec containerd-shim-xebec-v2 xebec-snapshotter)

clean: ## build output; caches under /var/cache/xebec stay
	$(CARGO) clean
