# Everything a person or CI runs starts here; `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
KEEP ?=

.PHONY: help venv demo down test lint types unit e2e crd docs
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: venv ## Tell the whole story on a real cluster; KEEP=1 leaves it running
	@$(PY) -m demo $(if $(KEEP),--keep)

down: venv ## Stop and remove what demo, e2e or dev/dev started, and nothing else
	@dev/dev down

test: lint types unit ## Run every tier of tests but the whole-stack one

lint: venv ## Check style, layers and generated files
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	$(PY) -m pilotage_operator.api.crd --check
	$(PY) -m pilotage_operator.api.reference --check
	$(PY) docs/reference/metrics.py --check
	$(PY) docs/reference/settings.py --check
	$(PY) docs/reference/contract.py --check
	$(PY) docs/reference/cli.py --check

types: venv ## Check types in strict mode
	.venv/bin/pyright

unit: venv ## Run the tests that need no node: decisions, runtime, rules, the real API server, the chart
	dev/dev build
	$(PY) -m pytest tests --ignore tests/e2e

e2e: venv ## Run the whole-stack tests on a real cluster
	$(PY) -m pytest tests/e2e

crd: venv ## Render the CRD from the API's models
	$(PY) -m pilotage_operator.api.crd --write

docs: venv ## Render the reference pages from the code
	$(PY) -m pilotage_operator.api.reference --write
	$(PY) docs/reference/metrics.py --write
	$(PY) docs/reference/settings.py --write
	$(PY) docs/reference/contract.py --write
	$(PY) docs/reference/cli.py --write

venv: .venv/.ready ## Make the virtual environment from the pinned constraints
.venv/.ready: pyproject.toml constraints.txt dev/venv hatch_build.py runtime/pilotage_runtime/protocol/open_inference.proto
	@dev/venv
	@touch $@
