# `make quickstart` and `make test` work on a fresh machine: they build the environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin
# The user's own images: a folder, a file or a Hub name. Empty: rendered objects with exact part masks.
DATA ?=
OUT ?= outputs/$(if $(DATA),own_images,quickstart)
SEED ?= 0
# More settings of the pretraining, such as ARGS="--steps 200".
ARGS ?=
# For photographs their own recipe, and as few steps of it.
RECIPE := training/recipes/$(if $(DATA),tiny_real.yaml --steps 600 --checkpoint_steps 100,quickstart.yaml)

.PHONY: quickstart test test-slow quality style environment

# One process: on a GPU if there is one, else on all cores.
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no

quickstart: environment
	$(LAUNCH) training/pretrain.py $(RECIPE) --output_dir $(OUT) --seed $(SEED) $(if $(DATA),--dataset "$(DATA)") $(ARGS)
ifeq ($(DATA),)
	test -e $(OUT)/data/validation-00000-of-00001.parquet || \
	  $(BIN)/python -m evaluation.synthetic_parts --output $(OUT)/data --split validation --images 200 --image_size 128 --seed 1 --difficulty colours
	$(BIN)/python -m evaluation.part_segmentation --model $(OUT)/model --dataset $(OUT)/data --untrained --seed $(SEED) \
	  --baselines color_kmeans color_position_kmeans --output $(OUT)/scores.json --pictures $(OUT)/pictures
	$(BIN)/python -m hub_cards.card --model $(OUT)/model --results $(OUT)/scores.json --curves $(OUT)/curves.png --pictures $(OUT)/pictures
else
	$(BIN)/python -m evaluation.visualize --model $(OUT)/model --dataset "$(DATA)" --output $(OUT)/pictures
	$(BIN)/python -m hub_cards.card --model $(OUT)/model --curves $(OUT)/curves.png --pictures $(OUT)/pictures
endif
	@echo "In $(OUT): model/ (with its card README.md), curves.png, pictures/$(if $(DATA),, and scores.json)"

environment: .venv/installed

.venv/installed: setup.cfg pyproject.toml requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing into .venv (torch is large: this can take some minutes)"
	$(BIN)/python -m pip install --quiet -r requirements.txt -e ".[dev]"
	touch $@

# A test file's processes share the cores, so that one thread each is best.
test: environment
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

test-slow: environment
	$(BIN)/python -m pytest -m slow

quality: environment
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

style: environment
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
