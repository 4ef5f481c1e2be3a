# Two commands need nothing but python3 and a C++ compiler: `make demo` and `make test`.
# Both make the virtual environment in .venv, build the package into it and go on from there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc python tests/cuda tests/fuzz/core -type f -not -path '*/__pycache__/*' -not -name '*.so')
CPP := $(wildcard csrc/*.?pp csrc/cpu/*.?pp csrc/cuda/*.?pp csrc/cuda/*.cu csrc/cuda/*.cuh \
  tests/cuda/*.?pp tests/cuda/*.h tests/fuzz/core/*.?pp benchmarks/*.cpp)
PY := python tests benchmarks examples docs/hooks

.PHONY: demo test docs test-gpu test-gpu-sanitized test-asan test-tsan fuzz-core torture lint format clean

demo: $(VENV)/.installed
	$(BIN)/python examples/tiny_grpo/demo.py

# Two processes, each with whole files of tests.
test: lint docs
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The documentation's site, in site/: a broken link, a public name that has no place, a warning fails.
docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What needs a GPU, and its kernels under NVIDIA's checkers.
test-gpu: $(VENV)/.installed
	$(BIN)/python -m pytest -m gpu

test-gpu-sanitized: $(VENV)/.installed
	for tool in memcheck racecheck synccheck; do \
	  compute-sanitizer --tool $$tool --error-exitcode 1 --target-processes all \
	    $(BIN)/python -m pytest -m gpu tests/test_gpu_ops.py \
	    -k "shape or dtype or vectors or targets or views" || exit 1; \
	done

# The suite, with _core under GCC's sanitizers in a package of its own. Their runtime has to be in
# the process before Python is, and libstdc++ for them to see exceptions. Leaks are not asked for:
# at its end the interpreter keeps most of what it has. SIGBUS is for csrc/guard.hpp. TSan's memory
# map needs an address space that is laid out as ever (setarch), and how OpenMP's and BLAS's threads
# wait for each other it cannot see, nor what the emulated GPU's fibres and fault handler do; a
# mapping of 4 TB has no place in it. What measures time or memory would measure the sanitizer.
test-asan: SANITIZER := address
test-asan: EMULATION := ON
test-asan: CHECKED = env LD_PRELOAD="$(call runtime,libasan.so) $(call runtime,libstdc++.so.6)" \
  ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0 UBSAN_OPTIONS=print_stacktrace=1
test-tsan: SANITIZER := thread
test-tsan: EMULATION := OFF
test-tsan: CHECKED = setarch -R \
  env LD_PRELOAD="$(call runtime,libtsan.so) $(call runtime,libstdc++.so.6)" \
  TSAN_OPTIONS=handle_sigbus=0:atexit_sleep_ms=0:suppressions=$(CURDIR)/tests/tsan.supp \
  OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
test-tsan: BEYOND := --deselect tests/test_headers.py::test_the_library_sees_the_very_bytes
test-asan test-tsan: PLACE = $(CURDIR)/build/$@
test-asan test-tsan: $(VENV)/.installed
	CXX=$(CXX) $(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(PLACE)/site \
	  --config-settings build-dir=$(PLACE)/cmake \
	  --config-settings cmake.define.RELEX_SANITIZE=$(SANITIZER) \
	  --config-settings cmake.define.RELEX_CUDA=OFF \
	  --config-settings cmake.define.RELEX_EMULATION=$(EMULATION) \
	  --config-settings cmake.define.RELEX_FUZZ=ON .
	$(CHECKED) PYTHONPATH=$(PLACE)/site $(BIN)/python -m pytest $(TESTS) \
	  --deselect tests/test_kernels_interface.py::test_interrupt \
	  --deselect tests/test_gather.py::test_memory --ignore tests/test_memory_limit.py $(BEYOND)

runtime = $(shell $(CXX) -print-file-name=$(1))

# The kernels and the files under libFuzzer, ASan and UBSan; needs clang. FUZZ: libFuzzer's options.
# -merge=1 tests/fuzz/corpus/core build/fuzz/corpus adds to the first what the second has beyond it.
FUZZ ?= build/fuzz/corpus tests/fuzz/corpus/core -max_total_time=600 -max_len=256
fuzz-core: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet cmake ninja pybind11
	$(BIN)/cmake -S . -B build/fuzz -G Ninja -DCMAKE_CXX_COMPILER=clang++ -DRELEX_FUZZ=ON \
	  -DRELEX_SANITIZE=address -DRELEX_CUDA=OFF -DPython_EXECUTABLE=$(abspath $(BIN))/python \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) \
	  -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build build/fuzz --target core_fuzz
	mkdir -p build/fuzz/corpus
	ASAN_OPTIONS=handle_sigbus=0 build/fuzz/core_fuzz $(FUZZ)

# Every call that can fail failing, kills at every call, power cuts, and a thousand runs in one
# process: what `make test` takes samples of: an hour. FAULTS: python -m faults -h.
torture: $(VENV)/.installed
	cd tests && ../$(BIN)/python -m faults $(FAULTS)
	$(BIN)/python tests/soak.py --runs 1000

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
# only here are the CUDA kernels built for the processor as well, and the fuzz target, for the tests.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	touch $@

$(VENV)/.installed: $(VENV)/.torch $(SOURCES) CMakeLists.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt \
	  --config-settings cmake.define.RELEX_WERROR=ON \
	  --config-settings cmake.define.RELEX_EMULATION=ON \
	  --config-settings cmake.define.RELEX_FUZZ=ON '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist runs site
