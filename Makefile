# Every target does its own set-up: Python 3.11 or newer and make are all that is needed.
# `make test PYTHON=python3.13` runs the same on another Python, in an environment of its own.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
ARGS ?=
# One more than a small machine's two cores, because tests also wait.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run check test conformance soak lint bench lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

run: $(VENV)/runtime ## everything on this machine, with sample events and a page (ARGS=--once: no page)
	@$(BIN)/python -m local.run $(ARGS)

check: lint ## before each commit: lint, and every test that starts no process
	$(PYTEST) --numprocesses=$(WORKERS) --dist=worksteal --no-processes -rfE $(ARGS)

test: $(VENV)/dev ## every suite (ARGS='tests/test_envelope.py -k name' for less)
	$(PYTEST) --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

conformance: $(VENV)/dev ## run tests/svix on the Svix that SVIX_SERVER_URL and SVIX_TOKEN name
	CONFORMANCE=1 $(PYTEST) tests/svix $(ARGS)

soak: $(VENV)/dev ## every suite at full length (about an hour)
	SOAK=1 $(PYTEST) --override-ini=faulthandler_timeout=7500 $(ARGS)

lint: $(VENV)/dev ## ruff, mypy --strict, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(wildcard *.sh deploy/*.sh) .ci/run

bench: $(VENV)/dev ## measure the relay and a naive function: cost, rate limits, crashes, memory (ARGS=--quick)
	$(BIN)/python -m bench $(ARGS)

lock: $(VENV)/dev ## recompile requirements*.in
	$(BIN)/uv pip compile $(LOCK) requirements.in -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) requirements-dev.in -o requirements-dev.txt

LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --quiet --upgrade --custom-compile-command "make lock"

clean: ## remove everything that make created
	rm -rf .venv .local .mypy_cache .pytest_cache .ruff_cache .hypothesis

# `runtime` and `dev` are stamp files: if a requirements file is newer, make installs it again.
$(VENV)/runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, but $(PYTHON) is $(VERSION). Try: make $(MAKECMDGOALS) PYTHON=python3.13"; exit 1; }
	@echo "Setting up Python $(VERSION) in $(VENV) (takes about a minute, only the first time)"
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) can't make environments: on Debian, apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.txt
	@echo "Adding the tools for tests and lint"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
