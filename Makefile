# Everything a newcomer runs. `make demo` and `make test` need Python 3.11 with pip, gcc and git; they set up the rest.
SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# One thread per process: beside a busy neighbour, the default thread pools are many times slower.
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# How many test processes run side by side.
TEST_PROCESSES ?= 2

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(READY) ## Make .venv and install sprat with everything that developing it takes

# torch comes first and pinned: a bare requirement of another package would pull in its newest build.
$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "sprat needs Python 3.11: $(PYTHON) is not on the PATH. Install it, or say 'make PYTHON=/path/to/python3.11 ...'" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "sprat needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Say 'make PYTHON=/path/to/python3.11 ...'" >&2; \
	  exit 1; }
	@echo "setting up $(VENV) (some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq "torch==2.13.0"
	@$(BIN)/python -m pip install -qq --editable ".[dev]"
	@touch $@
	@echo "set up: $$($(BIN)/python --version), $$(du -sh $(VENV) | cut -f1) in $(VENV)"

.PHONY: demo
demo: $(READY) ## Show one update going the whole way: server, three agents, a bad link, a bad release (under 4 minutes)
	@PYTHONPATH=examples $(BIN)/python -m demo

.PHONY: lint
lint: $(READY) ## Check style, types and import contracts (under a minute)
	@failed=; for check in "ruff check --quiet" "ruff format --check --quiet" "mypy" "lint-imports --no-logo"; do \
	  echo "$$check"; $(BIN)/$$check || failed="$$failed [$$check]"; \
	done; \
	if [ -n "$$failed" ]; then echo "make lint: red:$$failed" >&2; exit 1; fi

.PHONY: test
test: $(READY) ## Run every test, with a seeded sample of the long kinds
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: check
check: lint test ## lint, then test

.PHONY: crash
crash: $(READY) ## Kill agents, cut power, fail every call of the disk, mutate updates, call the API at random; print what was reached (SPRAT_CRASH_TIMES=10)
	@rm -rf .crash && mkdir -p .crash
	SPRAT_CRASH_LEDGER=$(CURDIR)/.crash SPRAT_CRASH_TIMES=$${SPRAT_CRASH_TIMES:-10} \
	  $(BIN)/python -m pytest -m crash -n $(TEST_PROCESSES) --timeout 7200; tests=$$?; \
	$(BIN)/python tests/crash/ledger.py .crash && exit $$tests

.PHONY: soak
soak: $(READY) ## Take one agent through updates and faults for 15 minutes (SPRAT_SOAK_S=900)
	SPRAT_SOAK_S=$${SPRAT_SOAK_S:-900} $(BIN)/python -m pytest -m soak -s -p no:randomly

# A checkout of https://github.com/theupdateframework/tuf-conformance; the suite runs in an environment of its own.
CONFORMANCE ?= ../tuf-conformance

.PHONY: conformance
conformance: $(READY) ## Let the TUF conformance suite judge the agent's trust store (CONFORMANCE=path of its checkout)
	@if ! test -d "$(CONFORMANCE)/tuf_conformance"; then \
	  echo "skipped: no checkout of tuf-conformance at $(CONFORMANCE); say 'make conformance CONFORMANCE=path'"; exit 0; \
	fi; \
	command -v faketime >/dev/null || { echo "the suite needs the command faketime (Debian: faketime)" >&2; exit 1; }; \
	test -x .conformance/bin/pytest || { $(PYTHON) -m venv .conformance && .conformance/bin/pip install -qq "$(CONFORMANCE)"; }; \
	.conformance/bin/pytest -q -p no:cacheprovider "$(CONFORMANCE)/tuf_conformance" \
	  --entrypoint "$(CURDIR)/$(BIN)/python -m sprat_client.agent tuf"

.PHONY: bench
bench: $(READY) ## Run every benchmark (hours the first time, then from its cache); tables on the screen, JSON in .bench
	@mkdir -p .bench
	@for file in benchmarks/*.py; do \
	  echo "$$file"; $(BIN)/python "$$file" --json ".bench/$$(basename "$$file" .py).json"; \
	done

.PHONY: docs
docs: $(READY) ## Write docs/cli.md, errors.md and openapi.json out of the code
	$(BIN)/python docs/generate.py

.PHONY: clean
clean: ## Remove what setup, tests and demo made
	rm -rf $(VENV) .conformance .demo .bench .crash demo-report.json dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
