# Everything runs in .venv; the constraints file pins the versions that were tested.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help demo test fuzz check truth base-model reviews addition scores table1 faults gpu clean

help:
	@echo "make demo        install, then compare all methods on the built-in example (about 8 minutes)"
	@echo "make test        install, then the whole test suite with ruff and mypy"
	@echo "make fuzz        20,000 malformed files, configurations and command lines (about 4 minutes)"
	@echo "make truth       every method against the known optimum of a small world; writes docs/truth.md"
	@echo "make reviews     the built-in example over 3 seeds (about 40 minutes); writes its figures into docs/"
	@echo "make addition    five RL methods learn to add, 3 seeds (about 15 minutes); writes its figures into docs/"
	@echo "make scores      what the presets reach in environments, beside Stable-Baselines3 (hours)"
	@echo "make table1      clipping, adaptive KL and neither in three environments (about 15 minutes)"
	@echo "make faults      kills runs, breaks their disks, files and rewards; writes into docs/ (6 minutes)"
	@echo "make gpu         the tests of tests/gpu on CUDA, then speed and memory there (SOURCES=FOLDER, as in docs/benchmarks.md)"
	@echo "make base-model  train the built-in base model again from its data"

# torch first, and from the constraints: whatever would pull it later finds it there
$(INSTALLED): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/trimtab compare reviews --out runs/demo

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

fuzz: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz

truth: $(INSTALLED)
	$(BIN)/python -m trimtab.truth --out docs/truth.md

reviews: $(INSTALLED)
	$(BIN)/trimtab compare reviews --out runs/reviews --seeds 0 1 2 --steps 30 --refreshes 32 --prompts 400
	$(BIN)/trimtab compare reviews --out runs/longer --seeds 0 1 2 --methods grpo --refreshes 80 --prompts 400
	$(BIN)/python benchmarks/document.py runs/reviews runs/longer

addition: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.addition --out docs

scores: $(VENV)/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.scores --document

table1: $(VENV)/installed-dev
	$(BIN)/trimtab compare benchmarks/table1.yaml --out runs/table1

faults: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.faults --document

SOURCES ?= ../shared/data
ON_GPU := --device cuda --precisions bf16 --sources $(SOURCES)

gpu: $(VENV)/installed-dev
	TRIMTAB_TEST_DEVICE=cuda $(BIN)/pytest tests/gpu
	$(BIN)/python -m benchmarks.decoding --device cuda --precision bf16 --models 0.5b 1.5b 7b --batches 1 8 64
	$(BIN)/python -m benchmarks.language $(ON_GPU) --models 0.5b 1.5b --jobs sft dpo --batch 16
	$(BIN)/python -m benchmarks.language $(ON_GPU) --models 1.5b 7b --jobs sft dpo --batch 16 --lora-rank 16
	$(BIN)/python -m benchmarks.language $(ON_GPU) --models 0.5b --jobs grpo ppo

base-model: $(INSTALLED)
	$(BIN)/python -m trimtab.examples.reviews.base_model \
	  --documents data/reviews/documents.jsonl.gz --out src/trimtab/examples/reviews/model

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
