# `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help run lint test tools bench generate compose cluster
MAKEFLAGS += --no-print-directory

# A build server takes the locked versions or none.
locked := $(if $(CI),--locked)

# Announces a step.
step = @printf '\n== %s\n' '$(1)'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## build and serve with the defaults, or with weir.toml where there is one
	@cargo run --release $(locked) -- serve

lint: ## formatting, clippy and the API documentation, warnings denied
	$(call step,Formatting)
	@cargo fmt --check
	$(call step,Clippy)
	@cargo clippy --quiet $(locked) --all-targets -- -D warnings
	$(call step,API documentation)
	@RUSTDOCFLAGS=-Dwarnings cargo doc --quiet $(locked) --no-deps

test: lint ## everything: lint, the tests of the toolchain alone, then those with foreign tools
	$(call step,Tests)
	@cargo test $(locked)
	$(call step,Tools)
	@tests/tools.sh
	$(call step,Tests with foreign tools and clients)
	@cargo test $(locked) --test interop

tools: ## fetch the foreign tools that the interop tests use, once, into .tools/
	@tests/tools.sh

compose: tools ## build the image and try docker-compose.yml; needs a container engine
	@tests/compose.sh

cluster: tools ## apply k8s/ to a Kubernetes of one node; needs root and a container engine
	@tests/cluster.sh

generate: ## write the dashboards and what else is generated
	@python3 scripts/generate.py

bench: ## measure against a plain server; takes minutes
	@benches/compare.sh
