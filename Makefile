# The one door for people: each target sets up what it needs; what is there already is left alone.

PYTHON ?= python3.11
CHAOS ?=
PY := .venv/bin/python
STATIC_CHECKS := check-format check-lint check-imports
ROOMS := $(filter-out tests/,$(sort $(dir $(wildcard */__init__.py))))
INSTALL = command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it: make PYTHON=/path/to/python3.11"; \
	exit 1; }; $(PYTHON) infra/install.py $(if $(filter file,$(origin PYTHON)),--any-python)
# All at once, all to their end, the output of each in one piece.
SIDE_BY_SIDE := $(MAKE) --no-print-directory --jobs --keep-going --output-sync=target

# A stack is forty Python processes. Where this is set, each compiles all its modules at each start: two fifths of `up`.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests demo test soak check check-static $(STATIC_CHECKS) check-types check-all-types check-tests bench up down status lock

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## install all into .venv and .modelmarket; again: nothing to do
	@$(INSTALL)

setup-tests:
	@$(INSTALL) --tests

demo: setup ## show the whole market once, on real parts; CHAOS=1 kills parts
	@$(PY) -m examples.demo $(if $(filter-out 0,$(CHAOS)),--chaos)

test: setup-tests ## run all tests: unit, contract, tidy, integration, e2e
	@$(PY) -m pytest tests -n 2 --no-loadscope-reorder

soak: setup-tests ## run the long matrices, which `make test` leaves out
	@$(PY) -m pytest tests -m soak --timeout 5400

check: setup ## run format, lint, imports, types, and the quick tests
	@$(SIDE_BY_SIDE) $(STATIC_CHECKS) check-types check-tests

# What CI runs before the tests: the types of the tests, too, which take `check` over its minute.
check-static: setup
	@$(SIDE_BY_SIDE) $(STATIC_CHECKS) check-all-types

check-format:
	@$(PY) -m ruff format --check .

check-lint:
	@$(PY) -m ruff check .

check-imports:
	@.venv/bin/lint-imports --no-cache >.modelmarket/imports.txt || { cat .modelmarket/imports.txt; exit 1; }

# Node's young objects get room: an eighth of the time went into collecting them.
check-types check-all-types: export NODE_OPTIONS = --max-semi-space-size=64

check-types:
	@.venv/bin/basedpyright $(ROOMS)

check-all-types:
	@.venv/bin/basedpyright

# One process per core; the tests of one file share its fixtures.
check-tests:
	@$(PY) -m pytest -n logical --maxprocesses 8 -m 'not soak and not engine' tests/unit tests/contract tests/tidy

bench: setup ## measure on a stack of its own; tables in bench/results
	@$(PY) -m bench

up: setup ## start the stack and leave it running
	@.venv/bin/modelmarket up

down: setup ## stop the stack
	@.venv/bin/modelmarket down

status: setup ## show how every part of the stack is
	@.venv/bin/modelmarket status

lock: ## write requirements.lock and set-up's own lock anew (needs uv)
	uv pip compile --python-version 3.11 --generate-hashes --no-header --no-annotate --group demo --group dev pyproject.toml -o requirements.lock
	@echo uv | uv pip compile --python-version 3.11 --generate-hashes --no-header --no-annotate - -o infra/uv-requirements.lock
