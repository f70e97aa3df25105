# Two commands for a newcomer: `make demo` (the main job on synthetic hearts) and `make test`.
# Both create .venv themselves and need only Python 3.11 or newer and make. Safe to run again.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO := demo
PYTHON ?= $(firstword $(foreach p,python3.13 python3.12 python3.11 python3 python,\
	$(shell $(p) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(1)' >/dev/null 2>&1 && echo $(p))))

.PHONY: demo test test-slow lint bench docs clean

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-ready: $(BIN)/python setup.cfg constraints.txt
	@echo "Installing the packages (minutes, and about 6 GB with torch) ..."
	$(PIP) --editable '.[build,examples]'
	@touch $@

$(VENV)/.test-ready: $(BIN)/python setup.cfg constraints.txt
	@echo "Installing the packages (minutes, and about 6 GB with torch) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo-ready

demo: $(VENV)/.demo-ready
	@PATH="$(CURDIR)/$(BIN):$$PATH" sh benchmarks/demo.sh $(DEMO)

lint: $(VENV)/.test-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 -m "not slow" --doctest-modules embedstore evaltools encoders tests

test-slow: $(VENV)/.test-ready
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow tests

docs: $(VENV)/.test-ready
	$(BIN)/python docs/generate_cli.py

bench: $(VENV)/.test-ready
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
