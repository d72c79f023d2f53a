# Everything a person does with this checkout. Needs only Python 3.11 or newer; `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
BROKER := $(BIN)/python -m worker.broker.local --
TORCH := torch==2.13.0

# A pyenv shim may be on the path and refuse to run, so each candidate is tried.
PYTHON_3_13 = $(shell for p in python3.13 $(HOME)/.pyenv/versions/3.13.*/bin/python; do $$p -c "" 2>/dev/null && echo $$p && break; done)

SECONDS ?= 600
SEED ?= 1
KILLS ?= 2000

export UV_PROJECT_ENVIRONMENT := $(CURDIR)/$(VENV)
export UV_PYTHON_DOWNLOADS := never
# The machine's own certificates where it has some, so that it works behind a company's proxy as pip does.
ifneq ($(wildcard /etc/ssl/certs/ca-certificates.crt),)
export UV_SYSTEM_CERTS := true
endif

.PHONY: help demo run test test-lora test-lora-full test-3.13 lint soak kills bench schemas image-test clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: $(VENV)/.with-demo ## from nothing to a trained and applied model: broker, worker, real agents (two minutes)
	@$(BROKER) $(BIN)/swarm-worker demo

run: $(VENV)/.with-dev ## a worker with a broker of its own if there is none; SWARM_SCENARIOS says for whom
	@$(BROKER) $(BIN)/swarm-worker run

test: lint $(VENV)/.with-lora ## every check and every test, with real RabbitMQ and llama-server; on Python 3.13 too where it is there
	@$(BIN)/python -m tests.lora.llama_server
	@$(BIN)/pytest -n 2
	@if [ -n "$(PYTHON_3_13)" ]; then $(MAKE) --no-print-directory test-3.13; fi

test-lora: $(VENV)/.with-lora ## adapters of a tiny model, trained and served by a real llama-server (built once, 4 minutes)
	@$(BIN)/python -m tests.lora.llama_server
	@$(BIN)/pytest -n 2 tests/lora

test-lora-full: $(VENV)/.with-lora ## the same with a language model of 135 million weights (5 minutes)
	@$(BIN)/python -m tests.lora.llama_server
	@$(BIN)/pytest -m lora_full tests/lora

test-3.13: $(UV) ## the tests that need no broker, on Python 3.13
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/.venv-3.13 $(UV) sync --locked --quiet --extra demo --python $(PYTHON_3_13)
	@.venv-3.13/bin/pytest -n 2 tests/unit tests/contract -m "not rabbitmq"

lint: $(VENV)/.with-dev ## types, style, layers, schema drift
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m worker.wire.schemas --check schemas

soak: $(VENV)/.with-dev ## a worker under load, a random fault every 10 s, all invariants at the end: SECONDS=600 SEED=1
	@$(BIN)/python -m tests.faults.soak --seconds $(SECONDS) --seed $(SEED)

kills: $(VENV)/.with-dev ## kill -9 at the 15 crash points, so many times in all, for a night: KILLS=2000
	@SWARM_TEST_KILLS=$(KILLS) $(BIN)/pytest -n 2 -x tests/faults/test_crash_points.py

bench: $(VENV)/.with-bench ## ingest against a bare pipeline and FastStream; JSON lines and a table
	@$(BROKER) $(BIN)/python -m tests.bench

image-test: $(VENV)/.with-dev ## the image and compose.yaml, built and run for real; needs a Docker engine
	@$(BIN)/pytest tests/image

schemas: $(VENV)/.with-dev ## write schemas/ anew from worker/wire
	@$(BIN)/python -m worker.wire.schemas schemas

clean: ## remove the environment and what the demo left
	rm -rf $(VENV) .venv-3.13 .swarm

# -- the environment: uv, from the lock file with its hashes

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "this needs Python 3.11 or newer; say which with: make PYTHON=python3.13 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null \
	  || { echo "installing python3-venv" >&2; \
	       { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y python3-venv; } >/dev/null 2>&1; } \
	  || { echo "python3 -m venv does not work here; install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check uv==$(UV_VERSION)

# With the extras: types are checked of the demo and the bench too.
$(VENV)/.with-dev: $(UV) pyproject.toml uv.lock
	@$(UV) sync --locked --inexact --quiet --extra demo --extra bench && touch $@

$(VENV)/.with-demo: $(UV) pyproject.toml uv.lock
	@$(UV) sync --locked --inexact --quiet --no-dev --extra demo && touch $@

# Compiled, since the process that trains writes no bytecode: it would compile peft and transformers anew at each start.
# Torch apart from the lock: that names the build for CUDA, gigabytes of it. A CPU's is taken where one is to be had.
$(VENV)/.with-lora: $(VENV)/.with-dev
	@$(BIN)/pip install -q --no-deps --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu $(TORCH)
	@$(BIN)/pip install -q $(TORCH)
	@$(UV) export --locked --quiet --extra lora --prune torch --no-emit-project --no-dev -o $(VENV)/lora.txt
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --require-hashes -r $(VENV)/lora.txt && touch $@

$(VENV)/.with-bench: $(UV) pyproject.toml uv.lock
	@$(UV) sync --locked --inexact --quiet --extra bench && touch $@
