# Every target sets up .venv itself; Python >= 3.11 with venv is all that is needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

ifneq ($(wildcard ../shared/data),)
export FEDCTL_TEST_DATA ?= $(abspath ../shared/data)
endif

.PHONY: demo test lint clean

demo: $(STAMP)
	@$(BIN)/fedctl demo

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedctl needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Setting up $(VENV), once; this takes about half a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist
