# Needs Python (3.10 to 3.13) and make; everything else is installed into .venv when missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
# Not compiled ahead: Python compiles the modules it imports as it imports them, which are few of torch's. Containers
# forbid it to keep them, and every process would compile them anew.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --editable

.PHONY: demo test check format docs clean

demo: .venv/.installed
	$(BIN)/ssrseg demo

# In the order of their names: the files of one long test each, which are last else, are not left to one process.
test: .venv/.dev
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: .venv/.docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html

format: .venv/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.venv/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

.venv/.dev: .venv/.installed
	$(INSTALL) '.[dev]'
	touch $@

.venv/.docs: .venv/.installed
	$(INSTALL) '.[docs]'
	touch $@

clean:
	rm -rf .venv runs .pytest_cache .mypy_cache .ruff_cache
