# The verbs of the house; `make` alone lists them. Each recipe is what a person would type.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
PYTHON ?= python3
PORT ?= 8000
JOBS ?= 2
DATA ?=
DATA_DIR ?=
MODEL ?= sasrec

# One environment to serve (no torch), one to do everything. The stamp holds the state of what they were made from.
SERVE := .venv-serve
FULL := .venv
AUDIT := .venv-audit
RUN := $(FULL)/bin/python

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

setup: $(FULL)/ready ## make .venv with everything for development: training, tests, load

demo: $(SERVE)/ready ## serve the demo bundle at http://127.0.0.1:8000 (PORT=), or train on DATA= from DATA_DIR= and serve that
ifeq ($(DATA),)
	$(SERVE)/bin/python -m service --bundle artifacts/demo --port $(PORT)
else
	@test -n "$(DATA_DIR)" || { echo "DATA=$(DATA) needs DATA_DIR=, the directory that holds it"; exit 2; }
	@$(MAKE) --no-print-directory artifacts/$(DATA)
	$(SERVE)/bin/python -m service --bundle artifacts/$(DATA) --port $(PORT)
endif

ifneq ($(DATA),)
artifacts/$(DATA): | $(FULL)/ready
	$(RUN) -m models train --model $(MODEL) --data $(DATA) --events "$(DATA_DIR)" --out $@ \
	  $(if $(wildcard $@.training/checkpoint.npz),--resume) --on-bad-row skip $(TRAIN)
endif

demo-bundle: $(FULL)/ready ## train the demo bundle again from the shipped catalogue and the seeded readers
	$(RUN) -m models.demo --out artifacts/demo --overwrite

serve: $(SERVE)/ready ## serve SEQUITUR_BUNDLE (artifacts/current, else artifacts/demo)
	$(SERVE)/bin/python -m service --port $(PORT)

check: $(FULL)/ready ## format, lint, types, import contracts, spelling, packages that fit together
	$(FULL)/bin/ruff format --check .
	$(FULL)/bin/ruff check .
	$(FULL)/bin/mypy service retrieval models loadtests
	$(FULL)/bin/lint-imports
	$(FULL)/bin/typos
	$(RUN) -m pip --disable-pip-version-check check

audit: $(AUDIT)/ready ## known vulnerabilities of what a server installs; asks PyPI, so it needs the network
	@$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement requirements/serve.txt || \
	  { echo "not clean: either a finding stands above, or PyPI's advisories could not be asked about a package"; exit 1; }

test: $(FULL)/ready ## the whole suite, a real redis-server of its own included; what takes minutes is left to test-all
	$(RUN) -m pytest -n $(JOBS) --dist worksteal

test-all: $(FULL)/ready ## everything, trainings, ten thousand random requests and a hundred thousand rows included
	SEQUITUR_PROPERTY_REQUESTS=10000 SEQUITUR_PROPERTY_ROWS=100000 $(RUN) -m pytest -n $(JOBS) --dist worksteal -m "not gpu"

bench: $(FULL)/ready ## where the time of a request goes, stage by stage, above the no-op floor
	$(RUN) -m loadtests stages --bundle artifacts/demo

load: $(FULL)/ready ## scheduled arrivals against a running service: make load PORT=8000
	$(RUN) -m loadtests open-loop --url http://127.0.0.1:$(PORT)

$(SERVE)/ready: requirements/serve.txt
	$(call environment,$(SERVE),requirements/serve.txt)

$(AUDIT)/ready: requirements/audit.txt
	$(call environment,$(AUDIT),requirements/audit.txt)

$(FULL)/ready: requirements/dev.txt
	$(call environment,$(FULL),requirements/dev.txt)

# environment(directory, requirements)
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which with PYTHON=python3.11"; exit 2; }
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@echo "installing $(2) into $(1)"
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $(2)
	@touch $@
endef

.PHONY: help setup demo demo-bundle serve check audit test test-all bench load
