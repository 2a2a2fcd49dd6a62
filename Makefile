# Needs python3 (3.11 or newer, with venv) and make; everything else goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
# Test processes; each takes a core.
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -n $(PROCESSES)
# A file's tests stay in one process, since they share fixtures.
BY_FILE := --dist loadfile --no-loadscope-reorder --durations=25
# Long by nature: those that wait most of their time, and simulations, which compute all of it.
LONG := benchmark or chaos or cluster or demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-all chaos lint docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

demo: .venv/.installed  ## the theorem's curve, a part of low_data on embedded data, and the report of both
	@$(BIN)/python -m cvit.engine.demo

test: .venv/.installed  ## run the tests, in minutes: all but those that are long by nature
	$(PYTEST) $(BY_FILE) -m 'not ($(LONG) or simulation)'

test-all: test  ## then those too: benchmarks' own tests, simulations, sweeps under faults, a cluster over SSH
	$(PYTEST) -m simulation
	$(PYTEST) $(BY_FILE) -m '$(LONG)'

chaos: .venv/.installed  ## disturb sweeps: 150 faults; all of them as root
	CVIT_CHAOS_FAULTS=150 $(BIN)/python -m pytest tests/chaos --timeout 14400

docs: .venv/.installed  ## the docs as a site, build/site/index.html; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: .venv/.installed  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

clean:  ## remove .venv and caches; keeps storage/, mlflow.db and results/
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis *.egg-info build
	find analysis benchmarks cvit sweeps tests -name __pycache__ -prune -exec rm -rf {} +

# From the lock file, by uv: the tested versions. Where uv cannot be had, or cannot get
# what the lock names, pip installs the newest versions that pyproject.toml permits.
.venv/.installed: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "$(PYTHON) is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	{ $(BIN)/python -m pip install --quiet uv && \
	    $(BIN)/uv sync --quiet --frozen --inexact --no-python-downloads --compile-bytecode --extra dev; } \
	    || $(BIN)/python -m pip install --quiet -e '.[dev]'
	-@$(BIN)/python -m cvit.native
	-@$(BIN)/python -m cvit.engine.tracking.prepared_store
	@touch $@
