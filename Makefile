# Each command makes .venv and installs what it needs from requirements/*.lock first: once, and again when the lock or
# pyproject.toml has changed. All it asks of the machine is Python 3.11 or later with its venv module.
#
#   make demo ARGS="--plain --seed 7"     make test ARGS="tests/unit -k wire"     make chaos SEEDS=5     make soak     make bench
#   make lint     make docs     make lock

PYTHON ?= python3
# What `make chaos` runs: SEEDS plans from seed START on, AT_ONCE at a time (docs/chaos.md).
SEEDS ?= 50
START ?= 1000
AT_ONCE ?= 2
ARGS ?=
# Tests wait more than they compute: more of them at once than the two cores that CI has. ARGS="-n 0": one after the other.
WORKERS ?= 4
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Modules that decide and never do: what the coverage figure of `make test` is about.
PURE := fleet_wire coordinator.rules coordinator.core vehicle_agent.policy vehicle_agent.session

.PHONY: demo test chaos bench soak lint format docs lock clean
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	$(BIN)/idlewheel demo $(ARGS)

test: lint
	$(BIN)/pytest -n $(WORKERS) --dist worksteal $(addprefix --cov=,$(PURE)) --cov-report=term $(ARGS)

chaos: $(VENV)/dev.stamp
	$(BIN)/python -m tests.system.chaos.run --seeds $(SEEDS) --start $(START) --at-once $(AT_ONCE) $(ARGS)

bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.soak $(ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev.stamp
	$(BIN)/python docs/generate.py
	$(BIN)/python -m grafana.generate

# Every lock holds the versions of the smaller one, so that one environment serves them all.
lock: $(VENV)/lock.stamp
	$(call compile,demo,all,)
	$(call compile,dev,dev,--constraint requirements/demo.lock)
	$(call compile,bench,bench,--constraint requirements/dev.lock)

clean:
	rm -rf $(VENV)

define compile
$(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command "make lock" --upgrade --no-emit-package idlewheel \
	pyproject.toml requirements/build.in --extra $(2) $(3) --output-file requirements/$(1).lock
endef

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; say which: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# Whatever a larger lock installed holds the smaller ones too.
$(VENV)/demo.stamp: HOLDS := demo
$(VENV)/dev.stamp: HOLDS := demo dev
$(VENV)/bench.stamp: HOLDS := demo dev bench
$(VENV)/%.stamp: requirements/%.lock pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes --requirement $<
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	touch $(HOLDS:%=$(VENV)/%.stamp)

$(VENV)/lock.stamp: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip --disable-pip-version-check install --quiet uv
	touch $@
