# `make run` and `make test` set everything up first; nothing is done twice.
PYTHON ?= python3
PARAMS ?= params/quickstart.yaml
VENV := .venv
READY := $(VENV)/ready

.PHONY: run test lab lint setup

run: $(READY)
	$(VENV)/bin/ragbench run $(PARAMS)

test: $(READY) lint
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile

lab: $(READY)
	$(VENV)/bin/jupyter lab notebooks

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

setup: $(READY)

# The lock is complete, so nothing is resolved. The second step adds what a build of torch with CUDA wants beside it;
# for a CPU build there is nothing to add.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'ragbench needs Python 3.11 or newer; found $(PYTHON) ' + sys.version.split()[0] + '. Set PYTHON=/path/to/python3.11')"
	@echo 'Setting up $(VENV): about 3 GB on disk, some minutes.'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-deps -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock "$$(grep '^torch==' requirements.lock)"
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)
