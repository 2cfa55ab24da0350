# `make run` and `make test` set up what they need. PYTHON chooses the interpreter, ROUNDS how many rounds are to be closed.
PYTHON ?= python3
ROUNDS ?= 3
VENV := .venv
EXTRAS := dask miniwob scienceworld textworld textworld-express
OPENENV := .venv-openenv
SIDE_BY_SIDE := --numprocesses auto --dist loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
# Where `make serve` listens; another server by its URL alone.
deploy arrived: export PREFECT_API_URL ?= http://127.0.0.1:4200/api
deploy arrived: export PREFECT_HOME ?= $(CURDIR)/.prefect

.DEFAULT_GOAL := help
.PHONY: help setup run serve deploy arrived test test-long test-extras test-openenv test-schedule study bench check

help:
	@echo "make run [ROUNDS=3]  close rounds until ROUNDS are closed, then print the table"
	@echo "make serve           Prefect's server and a worker, for schedules and events, until Ctrl-C"
	@echo "make deploy          put the schedules of prefect.yaml on that server; again after a change there"
	@echo "make arrived LOGS=   copy these logs to the inbox and say so, which starts a round"
	@echo "make test            all tests but the long and the slow ones"
	@echo "make test-long       the long ones: real trainings, real servers, minutes each"
	@echo "make test-extras     install the extras (environments, Dask), as far as they can be, and test them"
	@echo "make test-openenv    the extra openenv, in $(OPENENV), an environment of its own"
	@echo "make test-schedule   a scheduled run on a real Prefect server and worker, to its close"
	@echo "make study           the slower studies behind the report's claims; can be resumed"
	@echo "make bench           every benchmark in full and its page in docs/benchmarks; an hour on an idle machine"
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

serve: setup
	@exec python flows/serve.py

deploy: setup
	@prefect work-pool create local --type process --overwrite
	@prefect --no-prompt deploy --all

arrived: setup
	@python flows/arrived.py $(LOGS)

test: setup
	OMP_NUM_THREADS=1 python -m pytest -m "not long and not slow" $(SIDE_BY_SIDE)

test-long: setup
	OMP_NUM_THREADS=1 python -m pytest -m "long and not slow" $(SIDE_BY_SIDE)

# One by one, so that an extra that has no build for this machine does not keep the others away.
test-extras: setup
	@for extra in $(EXTRAS); do \
		python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$$extra]" \
			|| echo "$$extra could not be installed, its tests are skipped"; \
	done
	OMP_NUM_THREADS=1 python -m pytest tests/environments/extras tests/rollouts/extras

# OpenEnv brings Gradio and FastMCP, which want older versions than three of the pins.
$(OPENENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(OPENENV)
	grep -vE '^(pillow|py-key-value-aio|tomlkit)==' constraints.txt > $(OPENENV)/constraints.txt
	$(OPENENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(OPENENV)/constraints.txt \
		--editable '.[dev,openenv]'
	@touch $@

test-openenv: $(OPENENV)/.ready
	OMP_NUM_THREADS=1 $(OPENENV)/bin/python -m pytest tests/environments/extras/test_openenv.py

# A schedule that silently does nothing is what a manual run never shows.
test-schedule: setup
	OMP_NUM_THREADS=1 python -m pytest tests/flows/test_deployments.py -k schedule

study: setup
	python -m studies

# A peer that cannot be installed is left out, and its page says so.
bench: setup
	@python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[benchmarks]' \
		|| echo "trl could not be installed, its cases are left out"
	@set -e; for name in $$(python -m benchmarks list | cut -d ' ' -f 1); do \
		echo "$$name"; \
		python -m benchmarks $$name --json docs/benchmarks/$$name.json; \
		python -m benchmarks $$name --pages; \
	done

check: setup
	ruff check
	ruff format --check
	pyright
	python -m pytest -q tests/test_layers.py tests/test_wiring.py
