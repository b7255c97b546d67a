# Two commands do everything: `make demo` and `make test`. Each installs what it needs into .venv first.
.DEFAULT_GOAL := help
PYTHON ?= python
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SLIDE ?=
DEMO ?= demo
SECONDS ?= 120

.PHONY: help install demo test node fuzz check bench bench-peers build clean

help:  ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY)  ## Create .venv with the pinned versions

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt uv
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)  ## Synthesise (or take SLIDE=...) a slide, convert it, tile it, show the result
	$(BIN)/python examples/demo.py --out '$(DEMO)' $(if $(SLIDE),'$(SLIDE)')

test: $(READY)  ## Run all tests, doctests, README blocks and examples, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

node:  ## Install zarrita and Viv's loader into .node, for the tests that read stores with them
	mkdir -p .node
	cp tests/node/package.json .node/
	npm install --silent --no-package-lock --no-audit --no-fund --prefix .node

fuzz: $(READY)  ## Read small slides mutated at random, for SECONDS=120, and keep what breaks
	$(BIN)/python tests/fuzz/fuzz.py --seconds $(SECONDS)

check: $(READY)  ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) .bench/.ready  ## Measure against a bare roofline and against peers, which go into .bench
	$(BIN)/python benchmarks/run.py $(ARGS)

bench-peers: $(READY) .bench/.ready  ## Measure against other converters, which go into .bench
	$(BIN)/python benchmarks/peers.py $(ARGS)

.bench/.ready: benchmarks/peers.txt
	$(PYTHON) -m venv .bench
	.bench/bin/python -m pip install -q -r benchmarks/peers.txt
	@touch $@

build: $(READY)  ## Build the wheel and the source distribution into dist/
	$(BIN)/python -m build --installer uv

clean:  ## Remove what make made
	rm -rf $(VENV) .bench .node dist build $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis
