# The verbs of the house. `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
