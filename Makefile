# Everything a developer does here; `make help` lists it. Each target sets up what it needs, in .venv and build/.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
CXX ?= g++
JOBS ?= 3
PYTEST_ARGS ?=

VENV := .venv
OLDEST := build/oldest
DOCS := build/docs
PLUGIN_TESTS := tests/plugins tests/test_launch.py tests/ranks
# What these are of is ours, whatever the version of a framework.
OURS_ALONE := choices foreseen later remembered search
# Called by name, never by activating: a script's first line holds the path where the environment was made.
PY := $(abspath $(VENV))/bin/python

NATIVE_SOURCES := $(shell find csrc -path csrc/build -prune -o -name '*.[ch]pp' -print -o -name '*.h' -print)
# The tests are compiled, with warnings as errors too, by csrc/Makefile.
CPP_SOURCES := $(wildcard csrc/*.cpp csrc/sim/*.cpp)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PYTHONUNBUFFERED := 1

.PHONY: help install demo test soak fuzz ledger-load check check-oldest lint types stub warnings examples sanitize bench wheel wheel-check docs clean FORCE

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Tests in $(JOBS) processes, then those marked `alone`, whatever came of the first. pytest exits with 5 where it finds
# nothing to run: a mistake only if neither of them does.
define run_tests
	@together=0; alone=0; \
	$(1) --pass together -n $(JOBS) --dist loadfile $(PYTEST_ARGS) || together=$$?; \
	$(1) --pass alone $(PYTEST_ARGS) || alone=$$?; \
	case "$$together $$alone" in "0 0" | "0 5" | "5 0") ;; *) exit 1 ;; esac
endef

install: $(VENV)/.native  ## the .venv with everything a developer needs, and the native module

demo: install  ## train a small network on real images and show where the joules went
	$(PY) examples/demo.py

test: install  ## run the tests (PYTEST_ARGS="-k name" to choose)
	$(call run_tests,$(PY) -m pytest)

# What guides it by coverage is for this alone, and has no wheels for every Python and machine that tests run on.
fuzz: install  ## a million messages for the privileged helper, guided by coverage (a few minutes; as root)
	$(PY) -m pip install --quiet --progress-bar off -r requirements/fuzz.txt
	PYTHONPATH="$(CURDIR)/tests/powerd:$(CURDIR)/benchmarks" $(PY) tests/fuzz/powerd_fuzz.py

ledger-load: install  ## 80,000 runs into ledgers, a third of them and all importers killed (half an hour; needs PostgreSQL)
	$(PY) benchmarks/ledger_load.py

soak: install  ## a day of random faults in virtual time (a minute or two)
	$(PY) -m pytest -m soak tests/measure/test_soak.py $(PYTEST_ARGS)

check: lint types stub warnings  ## every gate that is not a test (the tests run the examples)

check-oldest: install $(OLDEST)/.tools  ## the tests of plugins, launch and ranks that need no quiet machine, with the oldest frameworks that are supported
	PYTHONPATH="$(CURDIR)" $(OLDEST)/bin/python -m pytest $(PLUGIN_TESTS) \
	    $(OURS_ALONE:%=--ignore=tests/plugins/test_micro_batch_%.py) --pass together -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

sanitize:  ## run the C++ tests under ThreadSanitizer and AddressSanitizer
	$(MAKE) -C csrc sanitize

# ---- set-up ----------------------------------------------------------------------------------------------------------

$(VENV)/.tools: requirements/bootstrap.txt requirements/torch.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit("energy-plugins needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	@echo "--- setting up $(VENV): a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --progress-bar off -r requirements/bootstrap.txt
	$(PY) -m pip install --progress-bar off -r requirements/torch.txt
	$(PY) -m pip install --progress-bar off -r requirements/dev.txt
	@touch $@

$(DOCS)/.tools: requirements/docs.txt
	@echo "--- setting up $(DOCS): half a minute the first time"
	rm -rf $(DOCS)
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --progress-bar off -r requirements/docs.txt
	@touch $@

# The native module is found beside its sources: it is the same one.
$(OLDEST)/.tools: requirements/bootstrap.txt requirements/torch.txt requirements/oldest.txt
	@echo "--- setting up $(OLDEST): a few minutes the first time"
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --progress-bar off -r requirements/bootstrap.txt
	$(OLDEST)/bin/python -m pip install --progress-bar off -r requirements/torch.txt
	$(OLDEST)/bin/python -m pip install --progress-bar off -r requirements/oldest.txt
	@touch $@

# A library that was deleted by hand is built again, whatever the stamp says.
ifeq ($(wildcard energy_plugins/_native*.so),)
$(VENV)/.native: FORCE
endif

$(VENV)/.native: $(VENV)/.tools setup.py pyproject.toml $(NATIVE_SOURCES)
	@echo "--- compiling the native module and the simulated drivers"
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# ---- the gates -------------------------------------------------------------------------------------------------------

lint: $(VENV)/.tools  ## ruff and clang-format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(NATIVE_SOURCES)

types: install  ## mypy --strict
	$(PY) -m mypy

stub: install  ## the native module against its stub
	$(PY) scripts/check_stub.py

warnings: $(VENV)/.tools  ## compile all C++ with warnings as errors
	@echo "--- compiling $(words $(CPP_SOURCES)) files with warnings as errors"
	@includes="$$($(PY) -m pybind11 --includes | sed 's/-I/-isystem /g')"; \
	printf '%s\n' $(CPP_SOURCES) | xargs -P $(JOBS) -I{} $(CXX) -std=c++17 -O2 -fPIC -Icsrc $$includes \
	    -Wall -Wextra -Wconversion -Werror -c {} -o /dev/null

examples: install  ## run every example on simulated GPUs
	@for example in $(filter-out examples/demo.py,$(wildcard examples/*.py)); do \
	    echo "--- $$example"; $(PY) $$example; \
	done

# ---- figures and packages --------------------------------------------------------------------------------------------

bench: install  ## run the benchmarks; those that need a GPU say so and are skipped without one
	@missed=; for benchmark in $(wildcard benchmarks/[a-z]*.py); do \
	    echo "--- $$benchmark"; $(PY) $$benchmark || missed="$$missed $$benchmark"; \
	done; \
	if [ -n "$$missed" ]; then echo "missed a bar, or failed:$$missed"; exit 1; fi

# The simulated drivers bear the real ones' file names, though not their SONAMEs, and are opened by path: auditwheel must not
# take them for dependencies.
wheel: $(VENV)/.tools  ## build a manylinux wheel into dist/
	rm -rf build/wheel
	$(PY) -m build --wheel --no-isolation --outdir build/wheel
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel repair --exclude libcuda.so.1 --exclude libnvidia-ml.so.1 \
	    --wheel-dir dist build/wheel/*.whl

wheel-check: wheel  ## install the wheel where there is no compiler, and run the demo from it
	rm -rf build/wheel-check
	$(PYTHON) -m venv build/wheel-check
	build/wheel-check/bin/python -m pip install --progress-bar off -r requirements/bootstrap.txt
	build/wheel-check/bin/python -m pip install --progress-bar off -r requirements/torch.txt
	wheel=$$(ls -t dist/*.whl | head -1) && CC=/bin/false CXX=/bin/false build/wheel-check/bin/python -m pip install \
	    --progress-bar off --only-binary :all: -c requirements/dev.txt "$$wheel[lightning]" scikit-learn
	cp examples/demo.py build/wheel-check/
	cd build/wheel-check && CC=/bin/false CXX=/bin/false bin/python demo.py --quick

docs: $(DOCS)/.tools  ## build the documents' site into build/site; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --quiet --strict
	@echo "build/site/index.html is written"

clean:  ## remove what was built, but not .venv
	rm -rf build dist *.egg-info energy_plugins/_native*.so energy_plugins/testing/lib csrc/build
