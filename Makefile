# Everything a person or CI runs starts here; `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python

.PHONY: help venv
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

venv: .venv/.ready ## Make the virtual environment from the pinned constraints
.venv/.ready: pyproject.toml constraints.txt
	@dev/venv
	@touch $@
