# pocketfocus: `make` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo web check test lint format clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= build/demo
# Core AI is left to `--targets`: the interpreter that checks its files takes minutes.
TARGETS ?= executorch,coreml,onnx
# A few seconds of learning, one size of photo and 20 timed calls of each file show the whole path
# within minutes; `pocketfocus build` by itself takes a minute, three sizes and 50.
MINUTES ?= 0.15
SIZES ?= own
RUNS ?= 20
PAGE := mobile_harness/web/page
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup \
	--no-loadscope-reorder
NEED_NPM := command -v npm >/dev/null || { echo "make web needs Node.js with npm: install nodejs and npm" >&2; exit 2; }
# The first interpreter that runs and is in range; 3.11 first, where wheels are the most complete.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && { echo $$p; break; }; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install everything into .venv (PYTHON=... chooses the interpreter)

# Debian splits ensurepip off its python3, so pip may have to be borrowed from outside.
$(STAMP): pyproject.toml
	@python='$(PYTHON)'; \
	if ! "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		>/dev/null 2>&1; then \
		echo "pocketfocus needs CPython 3.11, 3.12 or 3.13 (tried: $${python:-all on PATH}):" \
			"install one, or name it with 'make PYTHON=/path/to/python3.12'" >&2; exit 2; fi; \
	"$(BIN)/python" -m pip --version >/dev/null 2>&1 || { \
		echo "creating $(VENV) with $$python"; \
		"$$python" -m venv --clear $(VENV) >/dev/null 2>&1 || { \
			"$$python" -m venv --clear --without-pip $(VENV) && \
			"$$python" -m pip --python $(BIN)/python install pip; }; }
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

demo: $(STAMP) ## run the whole path once into build/demo: distil, quantize, export, verify, bench, report
	$(BIN)/pocketfocus build --out $(OUT) --targets $(TARGETS) --distill-minutes $(MINUTES) --sizes $(SIZES) --runs $(RUNS)

web: $(PAGE)/node_modules/.installed ## build the page of `pocketfocus serve` (needs Node.js with npm)
	@$(NEED_NPM)
	cd $(PAGE) && npm run build

# The stamp is ours: now and then npm fails by itself (ENOTEMPTY while it removes) or says that all
# is well with half of the files missing (TAR_ENTRY_ERROR). So what it installed has to build the
# page before it is believed, and it gets three tries, each from an empty place.
$(PAGE)/node_modules/.installed: $(PAGE)/package.json $(PAGE)/package-lock.json
	@$(NEED_NPM)
	cd $(PAGE) && for try in first second third; do \
		rm -rf node_modules; npm ci --no-audit --no-fund --ignore-scripts && npm run build && \
		touch node_modules/.installed && break; done
	@test -e $@

check: lint ## the inner loop: lint, and the tests that need no exported file, browser or training
	$(PYTEST) -m "not exported and not browser and not slow" \
		--durations 5 --durations-min 3

test: $(STAMP) ## run all tests, on as many cores as there are, 4 at most
	$(PYTEST)

lint: $(STAMP) ## check style (ruff) and types (mypy)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## format and mend what ruff can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment, build outputs and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
