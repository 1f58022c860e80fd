# Two commands for a newcomer, `make demo` and `make test`; for a change, `make check`, `make chaos`, `make bench` and
# `make clean`.
# They need make and a Python >= 3.11 with venv and pip; everything else, the servers included, comes from wheels.

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench bench-peers check clean

# `make test PYTHON=python3.13` takes that one, and an environment of its own.
ifdef PYTHON
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
else
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
endif

# Most of a test's time is waiting for processes that start and end, so three run at once; each has servers of its own,
# unless they are given: then one after the other.
TOGETHER := $(if $(DATABASE_URL)$(REDIS_URL),,-n 3 --dist worksteal)
INSTALLED := $(VENV)/.installed
RUN := $(VENV)/bin/python -m

help:
	@echo 'make demo [SOURCE=folder]      the census of a folder of Python files: real servers, a real worker'
	@echo 'make test [ARGS="-k scope"]    the tests, on real servers; ARGS are for pytest'
	@echo 'make chaos [SECONDS=60 SEED=1] kills, outages and cut connections at random, then a count of what jobs did'
	@echo 'make bench [ARGS=--quick]      Tandem and its peers side by side, an hour on a quiet machine; bench/results.md'
	@echo 'make bench-peers               install those peers, each in an environment of its own'
	@echo 'make check                     lint, format, types, import contracts'
	@echo 'make clean                     remove what these have made'
	@echo
	@echo 'PYTHON=python3.13              use this Python; the default is python3, or a newer one if that is too old'
	@echo 'DATABASE_URL, REDIS_URL        if they are set, demo and test use these servers'

demo: $(INSTALLED)
	@$(RUN) examples.demo $(if $(SOURCE),'$(patsubst ~%,$(HOME)%,$(SOURCE))')

test: $(INSTALLED)
	@$(RUN) pytest $(TOGETHER) $(ARGS)

chaos: $(INSTALLED)
	@$(RUN) tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(INSTALLED)
	@$(RUN) bench $(ARGS)

bench-peers: $(INSTALLED)
	@$(RUN) bench.environments

check: $(INSTALLED)
	@$(RUN) ruff check --no-cache
	@$(RUN) ruff format --check --no-cache
	@$(RUN) mypy
	@$(VENV)/bin/lint-imports --no-cache

clean:
	@rm -rf .venv .venv-* .tandem .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Again when what is needed has changed, or the interpreter; and if the interpreter has gone, whatever the dates are.
ifeq ($(realpath $(VENV)/bin/python),)
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml $(realpath $(VENV)/bin/python)
	@$(check_python)
	@echo 'Installing Tandem and what it needs into $(VENV) (once; takes about a minute)'
	@$(RUN) pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(RUN) pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

define check_python
test -n '$(PYTHON)' || { \
	echo 'Tandem needs Python 3.11 or newer, and there is none: install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3'; \
	exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	version=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null); \
	echo "Tandem needs Python 3.11 or newer, and $(PYTHON) is $${version:-not there}"; \
	exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "$(PYTHON) cannot make environments: install its venv module, for example apt install python3-venv"; \
	exit 1; }
endef
