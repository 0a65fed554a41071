# `make demo` and `make test` need nothing but Python 3.11.4+: each creates .venv when it is missing.
PYTHON ?= python3
VENV := .venv
OHEM := $(VENV)/bin/ohem

.PHONY: demo test lint bench clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## train the heuristic sampler and OHEM side by side on the built-in data
	$(OHEM) demo

test: lint  ## lint, type-check and run the tests
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.installed  ## what hard mining costs; BENCH="ranking --networks lite0" chooses, see benchmarks/README.md
	$(VENV)/bin/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
