# SPDX-License-Identifier: Apache-2.0
#
# The list of verbs. Every target makes .venv first, with all that the targets need; only python3 (3.11 or newer, with its
# headers), a C and C++ compiler and make must be there. Everything else, CMake included, comes from PyPI.

PYTHON ?= python3
TORCH ?= torch==2.13.0
WERROR ?= ON
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --no-input --disable-pip-version-check --quiet
READY := $(VENV)/ready
NATIVE := CMakeLists.txt $(shell find csrc -type f)

# One thread per process: the tests run in $(WORKERS) processes, and tiny networks gain nothing from more.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest

.PHONY: help venv demo test lint test-c bench accuracy golden docs check isas clean distclean
.DEFAULT_GOAL := help

help: ## print this list
	@awk -F ': .*## ' '/^[a-z-]+: .*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(READY) ## make .venv and build the native module

# torch goes first and by exact version, so that the index decides once which build of it comes.
$(READY): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "python3 is too old: intonly needs 3.11 or newer; give one with PYTHON=..." >&2; exit 1; }
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt '$(TORCH)'
	$(PIP) install -c constraints.txt scikit-build-core nanobind cmake ninja
	$(PIP) install -c constraints.txt --no-build-isolation --config-settings=cmake.define.INTONLY_WERROR=$(WERROR) -e '.[torch,onnx,report,dev]'
	touch $@

demo: $(READY) ## quantize a small network from end to end
	$(RUN) examples/demo.py

test: $(READY) ## run all tests
	$(PYTEST) tests -n $(WORKERS) --dist loadfile

lint: $(READY) ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test-c: $(READY) ## run the tests of the C code: header, sanitizers, disassembly, equal bytes, a short fuzzing run
	$(PYTEST) tests/csrc tests/fuzz tests/test_native.py tests/test_native_program.py

bench: ## time every network beside other runtimes (the README's table); makes .venv-peers for them first
	bench/peers/setup.sh .venv-peers
	.venv-peers/bin/python bench/latency.py

accuracy: $(READY) ## measure accuracy on the networks beside the project; prints tables, keeps JSON lines
	$(RUN) bench/accuracy.py
	$(RUN) bench/accuracy.py --beds resnet20_jpeg,resnet44_jpeg --recipes w4a8
	$(RUN) bench/faces.py

golden: $(READY) ## rewrite the golden files; review the difference like code
	$(PYTEST) tests/test_golden.py --update-golden
	git --no-pager diff --stat -- tests

docs: $(READY) ## list the pages and check their links
	$(RUN) .ci/check_docs.py

check: lint test docs isas ## everything that must pass before a change goes in, and all tests once more on each instruction set

isas: $(READY) ## run the tests that run networks with each instruction set of this machine; compare bytes on all beds
	@for isa in $$($(RUN) -c 'from intonly import _native; print(*_native.isas())'); do \
	  echo "== INTONLY_ISA=$$isa"; INTONLY_ISA=$$isa $(PYTEST) tests/backends tests/suites tests/test_pipeline.py tests/test_evaluation.py -n $(WORKERS) || exit 1; \
	done
	@if [ -d ../shared/data ]; then $(RUN) bench/equal_bytes.py --samples 100; else echo "no real networks beside the project: bench/equal_bytes.py not run"; fi
	INTONLY_FUZZ_SECONDS=120 $(PYTEST) tests/fuzz

clean: ## remove what builds and tools left behind; keeps .venv
	rm -rf build dist out .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## remove .venv, too
	rm -rf $(VENV) .venv-peers
