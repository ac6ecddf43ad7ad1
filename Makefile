# `make demo` and `make test` do all the set-up themselves: a virtual environment in .venv and everything in it.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys, ensurepip, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 \
	&& echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo stages test test-slow precision lint bench clean
help:
	@echo "make demo       set up, then train both models at toy size and sample videos (runs/tiny/report.html)"
	@echo "make stages     set up, then train stages 1 to 4 at toy size, average and sample (runs/stages)"
	@echo "make test       set up, then check style and run the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make precision  200 steps with products, times and the average of the weights in bfloat16 (docs/numbers.md)"
	@echo "make bench      measure speed and memory"
	@echo "make lint       style checks alone"
	@echo "make clean      remove .venv and build leftovers (runs/ is kept)"
	@echo "PYTHON=...      choose the interpreter for .venv (3.10, 3.11 or 3.12)"

# diffsynth has T5's and CLIP's tokenizer files for the tests, read and never imported: 12 MB without its dependencies.
setup: $(READY)
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No usable Python found: moviegen needs Python 3.10, 3.11 or 3.12 with its venv module" \
	"(Debian and Ubuntu: apt-get install python3-venv). Or say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON): about 3 GB on disk, a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,text,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps diffsynth==1.1.8
	@touch $@

demo: $(READY)
	$(BIN)/python launch.py --config=experiments/tiny.py --workdir=runs/tiny

stages: $(READY)
	$(BIN)/python launch.py --config=experiments/tiny_stages.py:buckets --workdir=runs/stages

test: lint
	$(BIN)/python tests/run.py

test-slow: $(READY)
	$(BIN)/python tests/run.py -m slow

precision: $(READY)
	$(BIN)/python -m pytest -q -s -m slow tests/training/test_precision.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
