# Needs python3 (3.11 or newer) and make; everything else lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

# Two threads that share busy cores can be far slower than one, and sums then depend on the machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help env demo demo-lm test test-all check bench torture docs clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 16

env: $(STAMP)  ## make .venv with everything in it

$(STAMP): pyproject.toml requirements-dev.txt constraints-ci.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("nervure needs Python 3.11 or newer, this is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time: torch is large)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

demo:  ## train, prune and compare a small network in an environment of its own; says first what it costs
	@$(PYTHON) docs/demo.py

demo-lm:  ## make a language model a quarter smaller and let both answer: MODEL=folder TEXT=file PROMPT="..."
	@$(PYTHON) docs/demo.py --lm "$(MODEL)" --text "$(TEXT)" --prompt "$(PROMPT)"

test: check  ## style, types, layers, tests, doctests, README, examples; the large laws by a sample of the day
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal --quiet

test-all: check  ## the same with every case of every law
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2 --dist worksteal --quiet --whole

check: $(STAMP)  ## style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --strict nervure
	$(BIN)/python docs/house.py
	$(ONE_THREAD) $(BIN)/python -m pytest --quiet tests/test_layers.py

BENCHES = $(filter-out %/torture.py,$(shell grep -l '^BENCHMARK = ' benchmarks/*.py)) benchmarks/pruning.py benchmarks/depth_choice.py

bench: $(STAMP)  ## side-by-side measurements; their tables land in docs/results/; goes on where it was stopped
	@failed=; for file in $(BENCHES); do echo "== $$file"; $(ONE_THREAD) $(BIN)/python "$$file" || failed="$$failed $$file"; done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

torture: $(STAMP)  ## hostile files, hard stops, bad values: about an hour on two cores; goes on where it was stopped
	$(ONE_THREAD) $(BIN)/python benchmarks/torture.py --jobs 2

SPHINX = $(BIN)/sphinx-build -W --keep-going -q -d docs/_build/doctrees

docs: $(STAMP)  ## build docs/_build/html, look for dead links, and run its examples
	$(SPHINX) -b html docs docs/_build/html
	$(BIN)/python docs/links.py docs/_build/html
	$(SPHINX) -b doctest docs docs/_build/doctest
	@echo "docs: $(CURDIR)/docs/_build/html/index.html"

clean:  ## remove what was built; .venv and runs/ stay
	rm -rf docs/_build docs/reference dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find nervure tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} +
