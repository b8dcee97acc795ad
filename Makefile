# Everything runs in .venv, which every target sets up by itself when it is missing, broken or out of date.
# POSIX sh and GNU make 3.81 are enough.

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.stamp
PIP    := $(BIN)/python -m pip --disable-pip-version-check
LOCKED := requirements/dev.txt

# The stamp names the tree that it was made for: a copied or moved .venv, or one whose Python is gone, is made anew.
# It is removed before anything changes and written last, so that an interrupted set-up starts over.
MADE_FOR := $(shell $(BIN)/python -c 'import pip' 2>/dev/null && cat $(STAMP) 2>/dev/null)
ifneq ($(MADE_FOR),$(CURDIR))
.PHONY: $(STAMP)
endif

.DEFAULT_GOAL := help
.PHONY: help setup demo cluster test browser soak bench check format coverage docs lock clean

help: ## show this list
	@echo 'usage: make TARGET'
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{ printf "%-11s %s\n", $$1, $$2 }'
	@echo
	@echo '  PYTHON=…  the CPython (3.11 or newer) that .venv is made from'

setup: $(STAMP) ## make .venv, with the penstock command in it
	@echo 'ready: $(BIN)/penstock'

demo: $(STAMP) ## show the three jobs on real servers
	@$(BIN)/penstock demo

cluster: $(STAMP) ## start Redis, three relays and HAProxy on this machine, until Ctrl-C
	@exec $(BIN)/python deploy/cluster.py

# The tests start penstock hundreds of times, which would compile it each time where Python is told to keep no bytecode.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP) ## run every test but the browser's and the soak tests, on all cores
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Screenshots of what a person would see are kept.
PENSTOCK_SCREENSHOTS ?= build/screenshots
browser: export PYTHONDONTWRITEBYTECODE :=
browser: export PENSTOCK_SCREENSHOTS := $(PENSTOCK_SCREENSHOTS)
browser: $(STAMP) ## run the tests in a real browser; its screenshots go to build/screenshots
	@$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'browser and not soak'

soak: $(STAMP) ## run the slow, seeded tests
	@$(BIN)/python -m pytest -m soak

bench: $(STAMP) ## measure beside its peers (QUICK=1: a first look; ONLY=relay,pipe: some of it)
	@$(PIP) install -qq --require-hashes -r requirements/bench.txt
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

check: $(STAMP) ## format, lint, types, import contracts, docs in step with the code
	@failed=; \
	run() { echo "$$@"; "$$@" || failed="$$failed [$$*]"; }; \
	run $(BIN)/ruff format --check .; \
	run $(BIN)/ruff check .; \
	run $(BIN)/mypy; \
	run $(BIN)/lint-imports --no-logo; \
	run $(PIP) check; \
	run $(BIN)/python -m pytest -q tests/test_docs.py tests/test_exports.py tests/test_imports.py; \
	test -z "$$failed" || { echo "check failed:$$failed" >&2; exit 1; }

format: $(STAMP) ## format the code and fix what lint can fix
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

coverage: $(STAMP) ## run the tests and show which branches they miss
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

docs: $(STAMP) ## write the reference of docs/cli.md anew, from the commands
	@$(BIN)/python docs/cli_reference.py

# One lock for Python 3.11 and newer on every system, with the hashes of every file of a release.
# No index or download address is written: whoever installs decides where packages come from.
UV_COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links --upgrade

lock: $(STAMP) ## write requirements/ anew, from pyproject.toml and the newest releases
	@echo 'locking requirements …'
	@$(PIP) install -qq --require-hashes -r requirements/lock.txt
	@$(UV_COMPILE) --group lock --output-file requirements/lock.txt
	@$(UV_COMPILE) pyproject.toml --output-file requirements/runtime.txt
	@$(UV_COMPILE) pyproject.toml --group dev --output-file $(LOCKED)
	@$(UV_COMPILE) pyproject.toml --extra redis --extra prometheus --constraint $(LOCKED) --output-file requirements/image.txt
	@$(UV_COMPILE) --group build --constraint $(LOCKED) --output-file requirements/build.txt
	@$(UV_COMPILE) --group bench --constraint $(LOCKED) --output-file requirements/bench.txt

clean: ## remove .venv, caches and build results
	rm -rf $(VENV) build dist bench/.build bench/results htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# A .venv made for this tree is updated in place; any other is thrown away. The first candidate that runs is taken:
# a name on PATH may be a shim without a version behind it, or lack venv.
define FIND_PYTHON
for python in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11 python; do \
	test -n "$$python" && "$$python" -c \
		'import ensurepip, ssl, sys, venv; sys.exit(sys.version_info < (3, 11) or sys.implementation.name != "cpython")' \
		>/dev/null 2>&1 && break; \
	python=; \
done; \
if test -z "$$python"; then \
	echo 'penstock needs CPython 3.11 or newer with the venv module, and none was found on PATH.' >&2; \
	echo 'Install one (Debian, Ubuntu: apt install python3-venv), or name it: make setup PYTHON=/path/to/python3' >&2; \
	exit 1; \
fi
endef

$(STAMP): $(LOCKED) pyproject.toml
	@rm -f $(STAMP)
ifneq ($(MADE_FOR),$(CURDIR))
	@$(FIND_PYTHON); \
	echo "making $(VENV) from $$python ($$("$$python" -c 'import platform; print(platform.python_version())'))"; \
	rm -rf $(VENV) && "$$python" -m venv $(VENV)
endif
	@echo 'installing the packages of $(LOCKED)'
	@$(PIP) install -qq --require-hashes -r $(LOCKED)
	@$(PIP) install -qq --no-build-isolation --no-deps --editable .
	@printf '%s\n' '$(CURDIR)' > $(STAMP)
