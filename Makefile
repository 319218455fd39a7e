# make search and make test work on a fresh machine with Python 3.11+, make and (better) a C++ compiler.
#
#   ARGS="..."    options passed through, for example make search ARGS="--algorithm darts --seed 1"
#   PYTHON=...    the Python that makes .venv/; a torch it already has is used as it is
#   TORCH="..."   another torch requirement for pip
#   PYFAST_NAS_BUILD=auto|none|cpu|cuda   what is compiled

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYFAST_NAS_BUILD ?= auto
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
KERNELS := $(VENV)/.kernels-$(PYFAST_NAS_BUILD)
SOURCES := $(shell find csrc -type f -name '*.[hc]*' -o -type f -name '*.py' -path 'csrc/*')
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# One thread for each of the two workers: four on two cores would spend their time waiting.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -p no:benchmark
TIMED := @start=$$(date +%s);
TOOK = echo "set-up: $(1) took $$(( $$(date +%s) - start )) s"

.PHONY: search test test-long asan twin gpu-check bench bench-long lint format clean

search: $(KERNELS)
	@$(BIN)/pyfast-nas search $(ARGS)

test: $(READY_DEV) $(KERNELS)
	$(PYTEST) -m "not long" $(ARGS)

# What does not fit into the quick suite: searches on the real data, statistics at full size.
test-long: $(READY_DEV) $(KERNELS)
	$(PYTEST) -m long --timeout 1200 $(ARGS)
	@$(MAKE) --no-print-directory asan ARGS=
	@$(MAKE) --no-print-directory twin ARGS=

# The operators' tests on CPU kernels built with the address and undefined-behaviour sanitizers, in
# build/sanitized/. The longer suite holds the mistakes that they must report.
asan: $(READY_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.sanitizers $(ARGS)

# The operators' tests on the CUDA kernels, whose threads the CPU runs one after the other, in
# build/twin/: no GPU is needed.
twin: $(READY_DEV)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.twin $(ARGS)

# What a GPU has to show, in nine minutes at most; without one, all of it that needs none. A Python
# that is named, as in make gpu-check PYTHON=python3, is used as it is: nothing is installed.
ifeq ($(origin PYTHON),file)
gpu-check: $(READY_DEV)
	$(BIN)/python -m tests.gpu.check $(ARGS)
else
gpu-check:
	$(PYTHON) -m tests.gpu.check $(ARGS)
endif

bench: $(READY_DEV) $(KERNELS)
	$(BIN)/python -m pytest benchmarks --benchmark-only $(ARGS)
	$(BIN)/python -m benchmarks.tables

# The networks once more beside torch.compile of edges, cells and the whole: hours, since each of
# them may compile for one. What is not done by then stands in the tables as such.
bench-long: $(READY_DEV) $(KERNELS)
	for what in edge cell supernet; do \
	  $(BIN)/pyfast-nas bench --what $$what --compile --compile-seconds 3600 --output benchmarks/results \
	    --rivals eager channels-last checkpoint compile-whole compile-whole-channels-last \
	    $(ARGS) || exit 1; \
	done
	$(BIN)/python -m benchmarks.tables

lint: $(READY_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

format: $(READY_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh')

clean:
	rm -rf $(VENV) build dist *.egg-info pyfast_nas/*.so pyfast_nas/_build_info.json

$(READY): pyproject.toml setup.py
	$(TIMED) \
	if [ ! -x $(BIN)/python ]; then \
	  if $(PYTHON) -c "import torch" 2>/dev/null; then site=--system-site-packages; else site=; fi; \
	  echo "set-up: making $(VENV) with $$($(PYTHON) --version)"; \
	  $(PYTHON) -m venv $$site $(VENV) || exit 1; \
	fi; \
	if ! $(BIN)/python -c "import torch" 2>/dev/null; then \
	  echo "set-up: installing $(TORCH)"; $(PIP) "$(TORCH)" || exit 1; \
	fi; \
	$(PIP) "setuptools>=77" wheel ninja "pybind11>=2.12" && \
	PYFAST_NAS_BUILD=none $(PIP) --no-build-isolation -e . && \
	rm -f $(VENV)/.kernels-* && touch $@ && $(call TOOK,the environment)

$(READY_DEV): $(READY)
	$(TIMED) \
	PYFAST_NAS_BUILD=none $(PIP) --no-build-isolation -e ".[dev]" && \
	rm -f $(VENV)/.kernels-* && touch $@ && $(call TOOK,the test tools)

$(KERNELS): $(READY) $(SOURCES) | $(if $(filter test test-long bench bench-long,$(MAKECMDGOALS)),$(READY_DEV))
	$(TIMED) \
	$(BIN)/python -m csrc.build --inplace --kind $(PYFAST_NAS_BUILD) --brief && \
	rm -f $(VENV)/.kernels-* && touch $@ && $(call TOOK,the kernels)
