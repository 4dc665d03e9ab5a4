# Needs make and Python 3.10 or later; everything else goes into .venv on first use.
#
# A plain `pip install torch torchvision` brings builds that go together, so nothing here names a version, an index or a
# CPU-only build: pip's own configuration decides where packages come from.

PYTHON ?= python3
PLANT ?= 1
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime-installed
TESTING := $(VENV)/.test-installed

ifneq ($(filter-out 0 1,$(PLANT))$(words $(PLANT)),1)
$(error Expected PLANT to be 0 or 1, but got '$(PLANT)')
endif

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help demo test lint venv clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Variables: PLANT=0|1 (demo), PYTHON=python3.x (for .venv), JOBS=2 (test processes)"

demo: $(RUNTIME) ## train teacher, vanilla, KD and TLLM students on digits; PLANT=0: without planted classes
	@$(BIN)/tllm demo $(if $(filter 0,$(PLANT)),--no-plant)

test: lint ## lint, then the whole test suite with doctests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

lint: $(TESTING) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

venv: $(TESTING) ## make .venv with everything that running and testing need

clean: ## remove .venv, caches and build leftovers; runs under output/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that `venv` installs: where it is there, the environment is complete.
$(BIN)/pip:
	@command -v "$(PYTHON)" > /dev/null || { echo "Expected PYTHON to be a Python of version 3.10 or later, but there is no '$(PYTHON)'; try: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "Expected PYTHON to be a Python of version 3.10 or later, but got $$("$(PYTHON)" --version 2>&1); try: make PYTHON=python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

$(RUNTIME): setup.py pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --editable .
	@touch $@

$(TESTING): setup.py pyproject.toml | $(BIN)/pip
	$(BIN)/python -m pip install --editable '.[test]'
	@touch $(RUNTIME) $@
