# Each target makes .venv itself and installs only what it needs. PYTHON chooses the interpreter of a new .venv.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check clean

demo: .venv/.demo  ## Recover the distilled digits with the digits bundle; no torch
	rm -rf recovered-demo
	$(BIN)/diver-trt recover examples/digits/distilled/ipc10 recovered-demo
	@echo
	@echo "The command is $(CURDIR)/$(BIN)/diver-trt; to call it by name in this shell, run"
	@echo "  . '$(CURDIR)/$(BIN)/activate'"

test: .venv/.dev  ## Run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

check: .venv/.dev  ## Lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf .venv build dist recovered-demo .mypy_cache .pytest_cache .ruff_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[cpu]'
	touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@ .venv/.demo
