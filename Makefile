# pg_duplex: everything starts here. `make` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help
export CARGO_TARGET_DIR ?= $(HOME)/.cache/pg_duplex/target
export DUPLEX_KAFKA_HOME ?= $(HOME)/.cache/pg_duplex/kafka-4.1.0
# An empty PG_CONFIG means: the newest supported server that is installed.
export PG_CONFIG ?=

# One command line for the relay and the tests, so that what both use is compiled once, with one set of features.
CARGO_BUILD := cargo build --locked --release -p duplex-relay -p duplex-tests

.PHONY: help deps kafka build install test majors converge converge-model storm failpoints faults demo bench lint clean-lab

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

deps: ## Install what is missing of apt packages (sudo if needed)
	@scripts/deps.sh

kafka: deps ## Fetch Apache Kafka's jars for the lab
	@scripts/kafka.sh >/dev/null

build: deps ## Build the extension, the relay and the lab
	@scripts/extension.sh
	$(CARGO_BUILD)

install: deps ## Build the extension and install it: make install PG_CONFIG=/path/to/pg_config
	@scripts/extension.sh install

test: install kafka failpoints ## Run all tests: install what they need, then unit tests and the suite on real servers
	$(CARGO_BUILD) --bins --tests
	@scripts/extension.sh test
	cargo test --locked --release -p duplex-protocol -p duplex-relay -p duplex-tests

majors: ## The same on PostgreSQL 16 to 18, built from source: make majors MAJORS="17 18"
	@for major in $(or $(MAJORS),16 17 18); do \
	  config=$$(scripts/postgresql.sh $$major) && $(MAKE) --no-print-directory test PG_CONFIG=$$config || exit; \
	done

converge-model: ## Check the conflict rules on their model: make converge-model ROUNDS=1000000 SEED=7
	cargo test --locked --release -p duplex-protocol -p duplex-relay -p duplex-tests --test model -- --nocapture

# The relay that can be told where to die, beside the ordinary one. Whoever needs both builds the ordinary one last.
failpoints: deps
	@$(CARGO_BUILD) --bin duplex-relay --features duplex-relay/failpoints
	@cp "$(CARGO_TARGET_DIR)/release/duplex-relay" "$(CARGO_TARGET_DIR)/release/duplex-relay-failpoints"

faults: install kafka failpoints ## The long fault run: make faults FAULTS=300 SEED=…
	@$(CARGO_BUILD) --bins
	@"$(CARGO_TARGET_DIR)/release/duplex-faults" --faults $(or $(FAULTS),300) $(if $(SEED),--seed $(SEED))

converge: install kafka ## Random transactions on three nodes, any order of delivery, then all equal: make converge ROUNDS=300 SEED=…
	@$(CARGO_BUILD) --bins
	@"$(CARGO_TARGET_DIR)/release/duplex-converge" --rounds $(or $(ROUNDS),300) $(if $(WILD),--wild $(WILD)) $(if $(SEED),--seed $(SEED))

storm: install kafka ## Many writers on every node at once, then all equal: make storm SECONDS=60 NODES=3 SEED=…
	@$(CARGO_BUILD) --bins
	@"$(CARGO_TARGET_DIR)/release/duplex-storm" $(if $(SECONDS),--seconds $(SECONDS)) $(if $(NODES),--nodes $(NODES)) \
	  $(if $(WRITERS),--writers $(WRITERS)) $(if $(PACE),--pace $(PACE)) $(if $(FORGET),--forget) $(if $(SEED),--seed $(SEED))

demo: install kafka ## Two chat databases kept the same through Kafka, before your eyes
	@$(CARGO_BUILD) --bins
	@"$(CARGO_TARGET_DIR)/release/duplex-lab" demo

# make bench BENCH="--quick --only capture,bulk"; make bench OLDER=1 also measures Debezium with Kafka Connect.
bench: install kafka ## Measure beside no capture, an outbox trigger, native replication (OLDER=1: Debezium, too)
	@$(CARGO_BUILD) --bins
	@older=$$([ -z "$(OLDER)" ] || scripts/connect.sh); \
	  "$(CARGO_TARGET_DIR)/release/duplex-bench" $${older:+--older "$$older"} --output "$(CARGO_TARGET_DIR)/bench" $(BENCH)

lint: deps ## Formatting and clippy, warnings are errors
	cargo fmt --all -- --check
	PGRX_PG_CONFIG_PATH=$$(scripts/pg-config.sh) cargo clippy --locked --release --workspace --all-targets -- -D warnings

clean-lab: ## Remove what labs that were cut off have left in the temporary folder
	@scripts/clean-lab.sh

include docker/docker.mk
