# make help lists the targets. Everything runs in the environment made by scripts/setup.

PY   := $(or $(FARSTRIPE_VENV),$(CURDIR)/.venv)/bin/python
SEED ?= 1
RUNS ?= 100
KIND ?= both
STATES ?= 3000000
BACKLOG_MIB ?= 6144

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing (system packages need root)
	@scripts/setup

check: setup ## the unit tests: under a minute
	$(PY) -m pytest -q -n 2 -m "not system and not kill" tests/unit

test: ## the whole suite, as continuous integration runs it (root)
	scripts/test

sim: setup ## RUNS= simulated histories (KIND=pair, tree or both) from SEED= on; a failure prints its own seed
	$(PY) -m tests.sim --seed $(SEED) --runs $(RUNS) --kind $(KIND)

explore: setup ## STATES= crashed pools from SEED= on, each opened and checked
	$(PY) -m tests.testing.poolexplorer --seed $(SEED) --states $(STATES)

night: setup ## explore until the book of all nights, .explored.jsonl, has STATES= of this code
	$(PY) -m tests.testing.explorenight --seed $(SEED) --states $(STATES)

backlog: setup ## a journal of BACKLOG_MIB= (6144) filled with the link cut, both nodes killed, drained in order (root)
	FARSTRIPE_BACKLOG_MIB=$(BACKLOG_MIB) $(PY) -m pytest -q -s -p no:xdist tests/system/test_backlog.py

demo: ## two nodes, a crash, a takeover and the way back (root)
	scripts/demo

bench: ## speed against nbdkit's file plugin and a QEMU mirror, as ratios
	scripts/bench

man: setup ## the manual, docs/man/*.8, from the command tree and replicator/cli/manual
	$(PY) -m replicator.cli.manual docs/man

lint: setup ## ruff, mypy, shellcheck; what is not installed is named and skipped
	scripts/lint

.PHONY: help setup check test sim explore night backlog demo bench man lint
.DEFAULT_GOAL := help
