# Every target does its own set-up: Python 3.11 or newer and make are all that is needed.
# `make test PYTHON=python3.13` runs the same on another Python, in an environment of its own.

PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV := .venv/$(VERSION)
BIN := $(VENV)/bin
ARGS ?=
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run check test conformance soak lint bench lock clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

run: $(VENV)/runtime ## the whole thing on this machine: simulator, function, sample events (ARGS=--once to exit)
	@$(BIN)/python -m local.run $(ARGS)

check: lint ## before each commit: lint, and every test that starts no process
	$(PYTEST) --numprocesses=$(WORKERS) --dist=worksteal --no-processes -rfE $(ARGS)

test: $(VENV)/dev ## every suite (ARGS='tests/test_envelope.py -k name' for less)
	$(PYTEST) --numprocesses=$(WORKERS) --dist=worksteal $(ARGS)

conformance: $(VENV)/dev ## what the relay relies on a Svix for, on that of SVIX_SERVER_URL and SVIX_TOKEN
	CONFORMANCE=1 $(PYTEST) tests/svix $(ARGS)

soak: $(VENV)/dev ## the suites at full length, one after the other: an hour or so
	SOAK=1 $(PYTEST) --override-ini=faulthandler_timeout=7500 $(ARGS)

lint: $(VENV)/dev ## ruff, mypy --strict, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(wildcard *.sh deploy/*.sh) .ci/run

bench: $(VENV)/dev ## what an event costs and what a rate limit does, beside a naive function (ARGS=--quick)
	$(BIN)/python -m bench $(ARGS)

lock: $(VENV)/dev ## compile requirements*.in anew
	$(BIN)/uv pip compile $(LOCK) requirements.in -o requirements.txt
	$(BIN)/uv pip compile $(LOCK) requirements-dev.in -o requirements-dev.txt

LOCK := --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --quiet --upgrade --custom-compile-command "make lock"

clean: ## remove what make made
	rm -rf .venv .local .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamps: an environment is made anew when what it is made of has changed.
$(VENV)/runtime: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed, $(PYTHON) is $(VERSION): make PYTHON=python3.13"; exit 1; }
	@echo "Setting up Python $(VERSION) in $(VENV) (a minute, once)"
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "$(PYTHON) can't make environments: on Debian, apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.txt
	@echo "Adding the tools for tests and lint"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@
