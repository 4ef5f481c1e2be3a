# Two commands need nothing but python3 and a C++ compiler: `make demo` and `make test`.
# Both make the virtual environment in .venv, build the package into it and go on from there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc python tests/cuda -type f -not -path '*/__pycache__/*' -not -name '*.so')
CPP := $(wildcard csrc/*.?pp csrc/cpu/*.?pp csrc/cuda/*.?pp csrc/cuda/*.cu csrc/cuda/*.cuh \
  tests/cuda/*.?pp tests/cuda/*.h benchmarks/*.cpp)
PY := python tests benchmarks examples

.PHONY: demo test test-gpu test-gpu-sanitized lint format clean

demo: $(VENV)/.installed
	$(BIN)/python examples/tiny_grpo/demo.py

test: lint
	$(BIN)/python -m pytest

# What needs a GPU, and its kernels under NVIDIA's checkers.
test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

test-gpu-sanitized: $(VENV)/.installed
	for tool in memcheck racecheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	    $(BIN)/python -m pytest -m gpu tests/test_gpu_ops.py \
	    -k "shape or dtype or vectors or targets or views" || exit 1; \
	done

lint: $(VENV)/.installed
	$(BIN)/ruff check $(PY)
	$(BIN)/ruff format --check $(PY)
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix $(PY)
	$(BIN)/ruff format $(PY)
	$(BIN)/clang-format -i $(CPP)

# torch first and pinned: whatever asks for it later is satisfied. Warnings are errors here only, and
# only here are the CUDA kernels built for the processor as well, to be tested there.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES) CMakeLists.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --config-settings cmake.define.RELEX_WERROR=ON \
	  --config-settings cmake.define.RELEX_EMULATION=ON '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist runs
