# `make run` and `make test` set up what they need. PYTHON chooses the interpreter, ROUNDS how many rounds are to be closed.
PYTHON ?= python3
ROUNDS ?= 4
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help setup run test study check

help:
	@echo "make run [ROUNDS=4]  close rounds until ROUNDS are closed, then print the table"
	@echo "make test            all tests but the slow ones"
	@echo "make study           the slower studies behind the report's claims; can be resumed"
	@echo "make check           ruff, pyright, layers, wiring"
	@echo "make setup           only create $(VENV) from constraints.txt; PYTHON=python3.12 chooses the interpreter"

setup: $(VENV)/.ready

# The stamp is written last, so that an installation cut short is done again.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: setup
	@python flows/improve.py --rounds $(ROUNDS)

test: setup
	OMP_NUM_THREADS=1 python -m pytest -m "not slow" --numprocesses auto --dist loadfile

study: setup
	python -m studies

check: setup
	ruff check
	ruff format --check
	pyright
	python -m pytest -q tests/test_layers.py tests/test_wiring.py
