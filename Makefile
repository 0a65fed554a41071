# `make demo` and `make test` need nothing but Python 3.11.4+: each creates .venv when it is missing.
PYTHON ?= python3
VENV := .venv
OHEM := $(VENV)/bin/ohem

.PHONY: demo test test-all lint docs bench coverage mutation faults licences clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-compile --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## train the heuristic sampler and OHEM side by side on the built-in data
	$(OHEM) demo

test: lint  ## lint, type-check and run the tests but the slow ones, in as many processes as there are cores
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal -m "not slow"

test-all: lint  ## the same with the slow ones: several processes, full size, killed runs
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

coverage: $(VENV)/.installed  ## which lines of src/ohem the tests run; fails under 95 %
	mkdir -p .coverage
	OMP_NUM_THREADS=1 $(VENV)/bin/coverage run -m pytest -n auto
	$(VENV)/bin/coverage combine
	$(VENV)/bin/coverage report --skip-covered --show-missing

mutation: $(VENV)/.installed  ## which faults, put into the idea, its tests notice; fails under 85 %
	$(VENV)/bin/python benchmarks/mutation.py

faults: $(VENV)/.installed  ## kill training, proposals, evaluation and reproduction 50 times, fill disks, change data
	$(VENV)/bin/python benchmarks/faults.py

licences: $(VENV)/.installed  ## of everything that is installed with ohem
	$(VENV)/bin/python benchmarks/licences.py

docs: $(VENV)/.installed  ## the pages of docs/ as a site, in site/; fails on a broken link
	$(VENV)/bin/mkdocs build --strict --quiet

bench: $(VENV)/.installed  ## what hard mining costs; BENCH="ranking --networks lite0" chooses, see benchmarks/README.md
	$(VENV)/bin/python benchmarks/bench.py $(BENCH)

clean:
	rm -rf $(VENV) .coverage demo site .pytest_cache .mypy_cache .ruff_cache
