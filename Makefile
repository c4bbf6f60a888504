# Every target says what it does: `make help`. `make demo` and `make test` do all of their own set-up.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 3# processes that run tests: they wait more than they work
READY := $(VENV)/.ready

.PHONY: help setup demo test check bench docs lock clean services_start service_auth service_data service_analytics init_db

help: ## List the targets
	@grep -hE '^[a-z_]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with the pinned packages (demo and test begin with it)

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3 found: install Python 3.11 or newer"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$("$(PYTHON)" --version) is too old: install Python 3.11 or newer"; exit 1; }
	@echo "==> making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV) || { echo "error: python cannot make a virtual environment: on Debian, apt-get install python3-venv"; exit 1; }
	@echo "==> installing $$(grep -c '==' requirements.lock) pinned packages (about a minute the first time)"
	@# The lock is complete, so nothing is resolved: older pips reach past a pin when a package asks for another's extra.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip check >/dev/null || { $(BIN)/python -m pip check; exit 1; }
	@touch $(READY)
	@echo "==> ready"

demo: setup ## Start the platform and the monitor; make demo ARGS="--drill service-down --exit"
	@$(BIN)/monitor demo $(ARGS)

test: setup ## Run all tests; make test ARGS="-k drill"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: setup ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Measure beside the peers that are installed; one table, also in build/bench.json
	@$(BIN)/python -m bench $(ARGS)

docs: setup ## Write the generated pages of docs/ anew
	$(BIN)/python -m monitor.config.docs > docs/configuration.md
	$(BIN)/python -m monitor.metrics.docs > docs/metrics.md
	$(BIN)/python -m monitor.config.check_docs docs/checks

lock: setup ## Resolve the dependencies anew into requirements.lock (names, versions, hashes)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet pyproject.toml --all-extras --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --no-header --no-annotate --output-file requirements.lock

clean: ## Remove what the demo, the tests and the builds left behind
	rm -rf .demo build var logs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info

# --- the runbook's own commands -----------------------------------------------------------------------------------

service_auth: setup ## Run the auth service on 8003
	$(BIN)/python -m uvicorn services.auth_service:app --host 127.0.0.1 --port 8003

service_data: setup ## Run the data service on 8002
	$(BIN)/python -m uvicorn services.data_service:app --host 127.0.0.1 --port 8002

service_analytics: setup ## Run the analytics service on 8001
	$(BIN)/python -m uvicorn services.analytics_service:app --host 127.0.0.1 --port 8001

services_start: setup ## Run all three services
	@$(MAKE) --no-print-directory -j3 service_auth service_data service_analytics

init_db: setup ## Apply the platform's database migrations
	$(BIN)/python scripts/init_db.py
