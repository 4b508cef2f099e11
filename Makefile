# make help lists the targets.  Every target sets up .venv by itself when it is missing or older than its inputs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.ready
DEMO := $(VENV)/.demo-ready

.PHONY: help setup demo test test-slow mutants campaigns lint types format tables report plans bench gpu-check clean

help:  ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/: .*## /\t/' | expand -t 12

setup: $(SETUP)  ## create .venv with all extras, in the exact versions of constraints.txt

define install
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(1)]'
	@touch $@
endef

$(SETUP): pyproject.toml constraints.txt
	$(call install,dev)

$(DEMO): pyproject.toml constraints.txt
	$(call install,train)

demo: $(if $(wildcard $(SETUP)),$(SETUP),$(DEMO))  ## train the 2-bit MLP on embedded MNIST digits with FOGZO (10 to 20 seconds)
	$(BIN)/python train.py

test: $(SETUP)  ## run the test suite, all but its slow tests, in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(SETUP)  ## run what the test suite leaves out for its length
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

mutants: $(SETUP)  ## plant single-line faults in the method: each must turn a test red (up to 30 minutes)
	$(BIN)/python scripts/mutants.py

campaigns: $(SETUP)  ## look for faults: odd configs, damaged files, full disks, kills at random moments (hours; docs/log.md)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/campaigns/configs.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/campaigns/kills.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/campaigns/files.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/campaigns/disk.py

lint: $(SETUP)  ## ruff: rules and format; import-linter: who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(SETUP)  ## mypy, strict
	$(BIN)/mypy

format: $(SETUP)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: $(SETUP)  ## rebuild every table from results/, and the figures that pages show
	$(BIN)/python scripts/make_tables.py

report: $(SETUP)  ## build site/: report.html, every figure, tables for LaTeX
	$(BIN)/python scripts/make_report.py

plans: $(SETUP)  ## write docs/costs.md: what every recipe costs
	$(BIN)/python scripts/make_plans.py

bench: $(SETUP)  ## speed and memory, each figure beside its limit (about 15 minutes)
	$(BIN)/python scripts/bench.py

gpu-check: $(SETUP)  ## prove the code on this machine's CUDA GPU, and time it (at most 8 minutes)
	$(BIN)/python scripts/gpu_check.py

clean:  ## remove caches; runs (outputs/, results/) and .venv stay
	rm -rf build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
