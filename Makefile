# `make demo` and `make test` work on a fresh machine: they set up a virtual environment first.
# Another torch: make test TORCH=torch==2.9.1, or with arguments for pip: TORCH='torch --index-url ...'.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Four processes at most: each loads torch. Tests of one module share its fixtures.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadscope

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH_STAMP := $(VENV)/.torch
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint install clean

# From nothing to a solved puzzle: data, training, evaluation on puzzles held out, one of them solved and drawn.
demo: $(STAMP)
	rm -rf demo
	$(BIN)/hrm data sudoku --size 4 --train 2000 --test 500 --augment 30 --extra-clues 4 --out demo/data
	$(BIN)/hrm train demo data=demo/data out=demo/run
	$(BIN)/hrm eval demo/run data=demo/data
	$(BIN)/hrm solve demo/run "..1.3.......12.." --trace --gif demo/solution.gif --png demo/solution.png

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

install: $(STAMP)

# torch comes first and by itself, so that the package takes the one that is there. The stamp holds what was asked for.
ifneq ($(TORCH),$(shell cat $(TORCH_STAMP) 2>/dev/null))
.PHONY: $(TORCH_STAMP)
endif
$(TORCH_STAMP):
	$(PYTHON) -m venv $(VENV)
	@echo "installing $(TORCH) (a large download the first time)"
	$(PIP) $(TORCH)
	@echo "$(TORCH)" > $@

$(STAMP): $(TORCH_STAMP) pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	$(PIP) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info hrm_kernels/lib .mypy_cache .pytest_cache .ruff_cache
