# Every target sets up what it needs in $(VENV) and does so once: the stamp files in there remember what is done.
#
#   make demo    train a small VAE, stock PyTorch against genmod      ARGS="--data FOLDER" is passed on
#   make test    the whole test suite                                 ARGS="-k gaussian" is passed on
#   make bench   the benchmarks                                       ARGS is passed on
#   make tables  the tables of README.md and docs/, from benchmarks/results/
#   make stress  thousands of random cases, under sanitizers too   ARGS="properties --scale 0.1" is passed on
#   make lint    ruff and mypy
#   make docs    the documentation, into docs/_build
#   make clean   remove what was built, and the environment
#
# PYTHON=python3.12 chooses the interpreter, VENV=folder the environment, TORCH_INDEX=URL where torch comes from.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

# Without an NVIDIA GPU: torch's CPU build does the job of the one on PyPI, which brings gigabytes of CUDA libraries, and
# nothing could run the CUDA kernels, even where there is an nvcc to compile them. (tests/packaging compiles them anyway.)
ifeq ($(shell uname -s)$(shell command -v nvidia-smi),Linux)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export GENMOD_CUDA ?= 0
endif

# pip would try an index that cannot be reached again for every single package, for minutes.
REACHABLE := $(PY) -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1] + "/torch/", timeout=10)' 2>/dev/null

NATIVE_SOURCES := setup.py pyproject.toml constraints.txt $(shell find build_support csrc -type f -not -name '*.pyc')

.PHONY: help demo test bench tables stress lint docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.genmod-train
	$(PY) -m genmod demo $(ARGS)

# A worker that crashes ends the run: pytest-xdist would start another, and then wait forever for the last tests. No
# test takes a tenth of the seconds allowed, so one that takes all of them hangs; its threads' stacks are printed.
test: $(VENV)/.genmod-test
	$(PY) -m pytest --numprocesses=auto --max-worker-restart=0 --timeout=900 --timeout-method=thread $(ARGS)

bench: $(VENV)/.genmod-test
	$(PY) -m genmod bench $(ARGS)

tables: $(VENV)/.genmod-test
	$(PY) -m genmod bench tables

stress: $(VENV)/.genmod-test
	$(PY) -m stress $(ARGS)

lint: $(VENV)/.lint
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# -W: a warning, such as a reference to what does not exist, is an error.
docs: $(VENV)/.genmod-test
	$(PY) -m sphinx -q -W --keep-going docs docs/_build

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "genmod needs Python 3.10 or later, and '$(PYTHON)' is not that; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: apt install python3-venv;" \
	       "or name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# A new pip and setuptools first: those that old interpreters carry do not know the licence field or build isolation flags.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	@echo "installing torch into $(VENV); the download takes a while the first time"
	$(INSTALL) --upgrade pip
	$(INSTALL) --upgrade setuptools wheel
	@if $(REACHABLE) '$(TORCH_INDEX)'; then from='--extra-index-url $(TORCH_INDEX)'; fi; \
	  set -x; $(INSTALL) $$from torch numpy
	@touch $@

# Editable, so that only a change in what is compiled asks for another install (and setuptools need not warn of that).
EDITABLE = @echo "building genmod into $(VENV); compiling its C++ part takes about a minute the first time"; \
  PYTHONWARNINGS='ignore:Editable installation' $(INSTALL) --no-build-isolation --editable

$(VENV)/.genmod-train: $(VENV)/.torch $(NATIVE_SOURCES)
	$(EDITABLE) '.[train]'
	@touch $@

$(VENV)/.genmod-test: $(VENV)/.torch $(NATIVE_SOURCES)
	$(EDITABLE) '.[test]'
	@touch $@ $(VENV)/.genmod-train

$(VENV)/.lint: $(VENV)/.genmod-test
	$(INSTALL) ruff mypy pre-commit
	@touch $@

clean:
	rm -rf $(VENV) build dist out docs/_build *.egg-info genmod/_C.* genmod/_build.json
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
