# The commands of the house. `make serve` and `make test` make their own environment in .venv.
PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
# tests have one thread each, so two at a time; a file's tests stay together, and share its servers. In the files' own
# order: by numbers of tests, the interpreter's one, the longest of all, would come last and keep one core alone
SPREAD ?= -n 2 --dist loadfile --no-loadscope-reorder
# where the demo encoder-decoder is trained, and for how long: two CPU cores take twelve hours for as many steps
DEVICE ?= cpu
MINUTES ?= $(if $(filter cuda,$(DEVICE)),3.5,720)

.PHONY: serve test test-fast gpu check docs format bench demo demo-eval clean

serve: $(VENV)/.serve
	$(BIN)/trefoil serve --host $(HOST) --port $(PORT)

test test-fast: export OMP_WAIT_POLICY ?= PASSIVE

test: $(VENV)/.test
	$(MAKE) --no-print-directory check
	$(BIN)/pytest $(SPREAD)

test-fast: $(VENV)/.test
	$(BIN)/pytest $(SPREAD) -m "not slow and not gpu and not docker" -x

gpu: $(VENV)/.test
	$(BIN)/pytest -m gpu

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/write_reference.py --check

docs: $(VENV)/.test
	$(BIN)/python docs/write_reference.py

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.test
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/serving_peers.py run

demo: $(VENV)/.test
	cd examples && ../$(BIN)/python -m trefoil_demo.decoder --out ../models/trefoil_models/demo/decoder
	cd examples && ../$(BIN)/python -m trefoil_demo.encoder --out ../models/trefoil_models/demo
	cd examples && ../$(BIN)/python -m trefoil_demo.encoder_decoder --device $(DEVICE) --minutes $(MINUTES) \
	  --out ../models/trefoil_models/demo/encoder-decoder

demo-eval: $(VENV)/.serve
	cd examples && ../$(BIN)/python -m trefoil_demo.evaluate

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by itself, so that no other package chooses a build of it
$(VENV)/.serve: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable ".[test]"
	touch $(VENV)/.serve $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
