# Everything runs in an environment of its own, .venv, which the first target that needs it creates.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := build/demo
DEMO_MODEL := repvgg_a0/train_legacy_bn

.DEFAULT_GOAL := help

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY) ## create the environment

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev --group docs
	@touch $@

demo: env ## fold a real export, verify it, show the result
	@mkdir -p $(DEMO)
	$(BIN)/python -m models.skeletons fill $(DEMO_MODEL) $(DEMO)/repvgg_a0.onnx
	$(BIN)/onnxrep inspect $(DEMO)/repvgg_a0.onnx
	@echo
	$(BIN)/onnxrep optimize $(DEMO)/repvgg_a0.onnx -o $(DEMO)/repvgg_a0.rep.onnx --report $(DEMO)/report.json
	@echo
	$(BIN)/onnxrep verify $(DEMO)/repvgg_a0.onnx $(DEMO)/repvgg_a0.rep.onnx
	@echo
	@ls -l $(DEMO)

test: lint types layers docs unit ## run all checks and all tests

lint: env ## ruff: style, docstrings, bugs, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env ## mypy, strict
	$(BIN)/mypy

layers: env ## imports only go down the list of modules
	$(BIN)/lint-imports --no-logo

unit: env ## pytest
	$(BIN)/python -m pytest

zoo: env ## fold and verify every real export; one table (about two minutes)
	$(BIN)/python -m models.zoo

zoo-half: env ## the same in float16
	$(BIN)/python -m models.zoo --half

fuzz: env ## 100,000 random regions, the share of needless refusals, more examples of each property (about two hours)
	HYPOTHESIS_PROFILE=fuzz ONNXREP_REGIONS=100000 ONNXREP_REGIONS_START=100000 \
		$(BIN)/python -m pytest -s tests/test_regions.py tests/test_lattice.py

mutants: env ## wrong folds: which the proof of each fold catches, which the end-to-end check alone (about ten minutes)
	$(BIN)/python -m tests.mutants

batch-faults: env ## 500 models with 40 faulty files in one run, and killed at random moments and resumed (about ten minutes)
	$(BIN)/python -m tests.batch_faults

bench: env ## what the proofs cost, and latency over the zoo: tables of times (about ten minutes)
	$(BIN)/python -m benchmarks.proof
	$(MAKE) bench-latency

bench-latency: env ## export, deploy form, ours and, with PEERS=PYTHON, what other tools make of the zoo, side by side
	$(BIN)/python -m benchmarks.latency --again --seconds 8 $(if $(PEERS),--peers $(PEERS)) --plot build/latency.svg

bench-cuda: env ## the same with the CUDA execution provider: float32 with TF32 off and on, float16, batch 1 and 32
	for batch in 0 32; do for kind in "" --tf32 --half; do \
		$(BIN)/python -m benchmarks.latency --again --seconds 8 --provider cuda --batch $$batch $$kind || exit 1; \
	done; done

bench-external: env ## memory and time of a model with 2.3 GB of external data (needs 8 GB of disk)
	$(BIN)/python -m benchmarks.external

bench-tool: env ## wall time and memory of the whole process beside other tools: make bench-tool PEERS=PYTHON (a few minutes)
	$(BIN)/python -m benchmarks.tool $(if $(PEERS),--peers $(PEERS))

calibrate: env ## how fast this machine is: the rates on which estimates of time rest, and a check of the estimates
	$(BIN)/python -m benchmarks.calibrate

bench-exchanges: env ## whole networks with and without exchanges of neighbours
	$(BIN)/python -m benchmarks.exchanges

bench-siblings: env ## convolutions of one value, apart and joined
	$(BIN)/python -m benchmarks.siblings

bench-growth: env ## time per node at 1,000 to 100,000 nodes (five minutes)
	$(BIN)/python -m benchmarks.growth

fuzz-reader: env ## 2,000 damaged models: no traceback, no crash
	$(BIN)/python -m tests.fuzz_reader

blocks: env ## write docs/blocks.md anew from the catalogue
	$(BIN)/python -m models.blocks.table

screenshots: env ## write docs/images anew: both pages and the terminal (needs Chromium; about three minutes)
	$(BIN)/python -m docs.screenshots

golden: env ## write the golden texts anew; review the difference
	ONNXREP_GOLDEN=write $(BIN)/python -m pytest tests/test_golden.py
	git diff --stat tests/golden

docs: env ## build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/python -m mkdocs build --quiet

changelog: env ## gather the fragments in changelog.d for a release: make changelog VERSION=0.2.0
	$(BIN)/towncrier build --yes --version $(VERSION)

clean: ## remove what make made
	rm -rf $(VENV) build site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.PHONY: help env demo test lint types layers unit zoo zoo-half fuzz mutants batch-faults bench bench-latency bench-external fuzz-reader
.PHONY: calibrate bench-cuda bench-tool bench-growth bench-exchanges bench-siblings screenshots blocks golden docs changelog clean
