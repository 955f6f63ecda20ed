# `make repro` and `make test` are all that a fresh machine needs.
.DEFAULT_GOAL := help
.PHONY: help lock install repro check test test-all rehearse device device-wheels lint ui clean

PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
QUIETLY := --quiet --disable-pip-version-check --no-compile
PORT ?= 5000
AGAINST ?= HEAD

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Interrupted installs are repeated: the mark is set last.
# Torch differs by platform (CPU, CUDA), so it alone is held by its version; all else by the hashes of
# its files, to the last dependency. Python compiles what is imported, pip would compile all.
$(INSTALLED): requirements.txt requirements-nodeps.txt requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "heima needs Python 3.11 or newer; give one with PYTHON=…")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	pip install $(QUIETLY) "$$(grep '^torch==' requirements.txt)"
	pip install $(QUIETLY) --no-deps --require-hashes -r requirements.lock
	pip install $(QUIETLY) --no-deps -e .
	@touch $@

lock: ## Hash what requirements*.txt pin (needs uv)
	grep -v '^torch==' requirements.txt | $(HASHED) - requirements-nodeps.txt -o requirements.lock
	$(HASHED) requirements-device.txt -o requirements-device.lock

HASHED := uv pip compile --quiet --no-deps --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header

install: $(INSTALLED) ## Create .venv and install everything that is pinned

repro: install ## Run the pipeline to the tables (what is cached is not run again)
	python -m stages.repro --may-fail track # a fault of MLflow takes nothing from the results
	@python -m stages.tables --show benchmarks
	@python -m stages.tables --verdicts
	@echo
	@python -m stages.page --show

check: install ## Are these results the recorded ones? (AGAINST=HEAD)
	@python -m stages.check --against $(AGAINST)

test: install ## Run the tests, on all cores
	python -m pytest -m "not slow" -n auto --dist loadfile --no-loadscope-reorder

test-all: install ## Run the tests and the slow proofs
	python -m pytest

rehearse: install ## Rehearse the paper profile, both families, in a scratch folder
	python -m tests.rehearsal

device: ## Measure one GPU, 8 minutes at most (DEVICE="--dry-run" or "--quick")
	$(or $(wildcard $(VENV)/bin/python),$(PYTHON)) -m timings.device $(DEVICE)

# Each platform is named: pip matches them exactly.
device-wheels: ## Download what a GPU machine's image lacks into .wheels
	$(PYTHON) -m pip download --quiet --no-deps --only-binary=:all: --dest .wheels \
	  --python-version 3.12 --implementation cp --abi cp312 --abi none \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	  --platform manylinux2014_x86_64 --platform any --require-hashes -r requirements-device.lock

lint: install ## Check style, spelling and types
	ruff check .
	ruff format --check .
	codespell
	mypy

ui: install ## Mirror the results into MLflow, serve its UI on 127.0.0.1, print the link (PORT=5000)
	@python -m stages.ui --port $(PORT)

clean: ## Remove what the pipeline made and git does not hold, and its cache (downloads and paid replies stay)
	rm -rf data/source data/benchmarks data/rewritten data/.*.tmp models states interpreters reconstructions judgements predictions scores latency leaks fingerprints
	rm -rf .cache/predictions .cache/training .cache/batches .cache/dvc/repo/*/ .dvc/cache .dvc/tmp mlruns mlflow.db* reports/*/tracking.json
