# Everything a person does here. `make` alone lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
NAME ?=
PYTEST_ARGS ?=
SECONDS ?= 60
SEED ?=
CHILD ?= stub
OBJECTS ?= file

.PHONY: help setup demo up test unit chaos proof lint format docs bench clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[36mmake %-8s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with everything pinned; instant when nothing changed
	@scripts/setup

demo: setup ## start Luthier, fine-tune a small model on real rows, talk to it
	@$(BIN)/python scripts/demo.py

up: setup ## run Luthier here in the foreground; Ctrl-C stops it, .luthier/ keeps everything
	@$(BIN)/python -m luthier_stack up

test: setup ## all tests: unit, contract, integration, end to end (PYTEST_ARGS adds flags)
	@$(BIN)/python -m pytest -n 2 --no-loadscope-reorder $(PYTEST_ARGS)

unit: setup ## only the tests that need no server
	@$(BIN)/python -m pytest tests/unit tests/contract $(PYTEST_ARGS)

chaos: setup ## hurt a whole stack by a seeded plan, then hold the invariants (SECONDS=60 SEED=n CHILD=stub|real OBJECTS=file|s3)
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --seconds $(SECONDS) --child $(CHILD) --objects $(OBJECTS) $(if $(SEED),--seed $(SEED))

proof: setup ## the whole programme that shows the promises, at full size, then an hour of chaos: takes hours
	@LUTHIER_PROOF=full LUTHIER_STRICT_SKIPS=1 $(BIN)/python -m pytest tests/proof $(PYTEST_ARGS)
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --seconds 1800 --require-disk
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --seconds 600 --require-disk --child real
	@PYTHONPATH=tests $(BIN)/python -m chaos.run --seconds 600 --require-disk --objects s3

lint: setup ## style, types, import rules, and that generated documents are up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy libs services infra/stack
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python scripts/check_imports.py
	@scripts/docs --check

format: setup ## put the code into form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: setup ## generate anew every document that is made from code
	@scripts/docs

bench: setup ## measure; NAME=x runs tests/bench/x.py alone
	@for file in tests/bench/$(or $(NAME),[a-z]*).py; do echo "== $$file"; $(BIN)/python "$$file"; done

clean: ## remove what can be made again; .luthier/ stays
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
