# To try Tandem: `make demo` and `make test`. To change it: `make check`, `make chaos`, `make bench` and `make clean`.
# You need only make and Python 3.11 or newer with venv and pip. Everything else, also the servers, comes from wheels.

.DEFAULT_GOAL := help
.PHONY: help demo test chaos bench bench-peers pictures docs docs-serve check clean

# `make test PYTHON=python3.13` uses that Python, in an environment of its own.
ifdef PYTHON
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
else
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV := .venv
endif

# `make test SQLALCHEMY=2.0` uses the newest SQLAlchemy 2.0, in an environment of its own.
ifdef SQLALCHEMY
VENV := $(VENV)-sqlalchemy-$(SQLALCHEMY)
endif

# Tests mostly wait for processes to start and end, so three run at once, each on its own servers. On servers that
# DATABASE_URL or REDIS_URL names, one test runs at a time.
TOGETHER := $(if $(DATABASE_URL)$(REDIS_URL),,-n 3 --dist worksteal)
INSTALLED := $(VENV)/.installed
RUN := $(VENV)/bin/python -m

help:
	@echo 'make demo [SOURCE=folder]      index a folder of Python files, with real servers and a real worker;'
	@echo '                               KEEP=1 leaves them running, with a web application and the dashboard'
	@echo 'make test [ARGS="-k scope"]    run the tests on real servers; pytest gets ARGS'
	@echo 'make chaos [SECONDS=60 SEED=1] kill processes and cut connections at random, then count the effects of jobs'
	@echo 'make bench [ARGS=--quick]      compare Tandem with other libraries (about an hour); writes bench/results.md'
	@echo 'make bench-peers               install those libraries, each in an environment of its own'
	@echo 'make pictures                  take the pictures of the dashboard and the tutorial again, with Chromium'
	@echo 'make docs                      build the site of the pages into .site'
	@echo 'make docs-serve                show the site on http://127.0.0.1:8000 while you write'
	@echo 'make check                     check lint, format, types and import contracts'
	@echo 'make clean                     remove environments, caches and local data'
	@echo
	@echo 'PYTHON=python3.13              use this Python. Default: python3, or a newer one if python3 is too old'
	@echo 'SQLALCHEMY=2.0                 use this SQLAlchemy. Default: the newest one that Tandem supports'
	@echo 'DATABASE_URL, REDIS_URL        servers for demo and test. Default: servers from wheels'

demo: $(INSTALLED)
	@$(RUN) examples.demo $(if $(KEEP),--keep) $(if $(SOURCE),'$(patsubst ~%,$(HOME)%,$(SOURCE))')

test: $(INSTALLED)
	@$(RUN) pytest $(TOGETHER) $(ARGS)

chaos: $(INSTALLED)
	@$(RUN) tests.chaos $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(INSTALLED)
	@$(RUN) bench $(ARGS)

bench-peers: $(INSTALLED)
	@$(RUN) bench.environments

pictures: $(INSTALLED)
	@$(RUN) tests.worker.dashboard.pictures $(ARGS)
	@$(if $(ARGS),:,PICTURES=docs/pictures $(RUN) pytest -n 0 -q tests/examples/test_tutorial.py)

docs: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs build --quiet --strict -f docs/site/mkdocs.yml
	@echo 'The site is in .site: open .site/index.html'

docs-serve: $(INSTALLED)
	@NO_MKDOCS_2_WARNING=1 $(RUN) mkdocs serve --strict -f docs/site/mkdocs.yml $(ARGS)

check: $(INSTALLED)
	@$(RUN) ruff check --no-cache
	@$(RUN) ruff format --check --no-cache
	@$(RUN) mypy
	@$(VENV)/bin/lint-imports --no-cache

clean:
	@rm -rf .venv .venv-* .site .tandem .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Install again when pyproject.toml or the interpreter has changed. If the interpreter is gone, dates do not matter.
ifeq ($(realpath $(VENV)/bin/python),)
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml $(realpath $(VENV)/bin/python)
	@$(check_python)
	@echo 'Installing Tandem and its dependencies into $(VENV) (once; takes about a minute)'
	@$(RUN) pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(RUN) pip install --quiet --disable-pip-version-check --editable '.[dev]' $(if $(SQLALCHEMY),'sqlalchemy==$(SQLALCHEMY).*')
	@touch $@

define check_python
test -n '$(PYTHON)' || { \
	echo 'Tandem needs Python 3.11 or newer, but none was found: install one, or type: make $(MAKECMDGOALS) PYTHON=/path/to/python3'; \
	exit 1; }; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	version=$$($(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null); \
	echo "Tandem needs Python 3.11 or newer, but $(PYTHON) is $${version:-not found}: type make $(MAKECMDGOALS) PYTHON=/path/to/python3"; \
	exit 1; }; \
$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "$(PYTHON) cannot make environments: install its venv module, for example: apt install python3-venv"; \
	exit 1; }
endef
