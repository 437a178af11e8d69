# The one door for people: each target sets up what it needs; what is there already is left alone.

PYTHON ?= python3.11
CHAOS ?=
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench up down status lock

help: ## show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: ## install everything into .venv and .modelmarket (a second time: nothing to do)
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it, or name it: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) infra/install.py

demo: setup ## show the whole market work once on real parts; with CHAOS=1 parts are killed meanwhile
	@$(PY) -m examples.demo $(if $(filter-out 0,$(CHAOS)),--chaos)

test: setup ## run all tests: unit, contract, tidy, integration, e2e
	@$(PY) -m pytest tests

check: setup ## run the quick checks: format, lint, imports, types, and unit, contract and tidy tests
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@.venv/bin/lint-imports --no-cache >.modelmarket/imports.txt || { cat .modelmarket/imports.txt; exit 1; }
	@.venv/bin/basedpyright
	@$(PY) -m pytest tests/unit tests/contract tests/tidy

bench: setup ## measure on a stack of its own; print the tables, keep them in bench/results
	@$(PY) -m bench

up: setup ## start the stack and leave it running
	@.venv/bin/modelmarket up

down: setup ## stop the stack
	@.venv/bin/modelmarket down

status: setup ## show how every part of the stack is
	@.venv/bin/modelmarket status

lock: ## write the locks anew: requirements.lock, and the uv that set-up uses (needs uv)
	uv pip compile --python-version 3.11 --generate-hashes --no-header --no-annotate --group demo --group dev pyproject.toml -o requirements.lock
	@echo uv | uv pip compile --python-version 3.11 --generate-hashes --no-header --no-annotate - -o infra/uv-requirements.lock
