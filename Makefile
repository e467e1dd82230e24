# Every task, from a bare checkout with Python 3.11, make and git. `make` alone lists them.
# Arguments for the program behind a task: make demo ARGS=--no-ui

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Installed once per lock, package description and place.
STAMP := .venv/.installed-$(shell (cat requirements.lock pyproject.toml; pwd) | sha256sum | cut -c1-16)
# FinBERT's, and by far the largest package: for tests and benchmarks alone. Pinned here and not in
# the lock: which build of it pip takes is the machine's business (PyPI's own brings CUDA along).
TORCH := torch==2.13.0
TORCH_STAMP := $(STAMP)-torch

# Set, it keeps Python from storing bytecode: every start of Dagster then takes 2.5 times as long.
unexport PYTHONDONTWRITEBYTECODE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo test bench lint dev docs clean

help:
	@echo "make demo    everything from nothing: servers, sample backfill, state vectors, UI"
	@echo "make test    every test"
	@echo "make bench   the benchmarks, against their floors; writes bench.json"
	@echo "make lint    ruff and mypy"
	@echo "make dev     dagster dev inside the embedded stack"
	@echo "make docs    the reference pages and the pictures of the tour"
	@echo "make clean   stop the stack; delete its data, the environment and all caches"

install: $(STAMP)

# Not compiled: Python does that with what is imported, which is the lesser part.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(BIN)/pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv \
		|| { echo "no virtual environment could be made; on Debian: apt install python3-venv"; exit 1; }
	@echo "installing the locked packages into .venv"
	@$(BIN)/pip install --quiet --no-compile --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@rm -f .venv/.installed-*
	@touch $@

$(TORCH_STAMP): $(STAMP)
	@echo "installing $(TORCH)"
	@$(BIN)/pip install --quiet --no-compile $(TORCH)
	@touch $@

# `exec`: the program is then make's own child, and ends when make is killed.
demo: $(STAMP)
	@exec $(BIN)/feature-pipeline demo $(ARGS)

# Three on two cores: a good part of the tests waits for processes, and for Dagster's daemon. Their
# frames are small: Polars' threads would cost more than they bring.
test: $(TORCH_STAMP)
	@POLARS_MAX_THREADS=1 exec $(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

bench: $(TORCH_STAMP)
	@exec $(BIN)/python -m feature_pipeline_tests.bench $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

dev: $(STAMP)
	@$(BIN)/feature-pipeline migrate
	@exec $(BIN)/feature-pipeline run -- dagster dev -w workspace.yaml $(ARGS)

docs: $(STAMP)
	@$(BIN)/python docs/build.py
	@$(BIN)/python docs/screenshots.py

clean:
	@if [ -x $(BIN)/feature-pipeline ]; then $(BIN)/feature-pipeline down --delete --yes; fi
	@rm -rf .feature_pipeline .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis ./*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
