# Every target sets up what it needs. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

# The first of these that is Python 3.11 or newer makes .venv; override with PYTHON=python3.12.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
RUN := $(VENV)/bin/python
CHAPTER ?=
NUMBER ?=
SLUG ?=
TITLE ?=
BENCH ?= cce
# Arguments for what a target starts: pytest in `make test`, JupyterLab in `make lab`.
ARGS ?=

# A kernel of the same name in the user's home folder must not stand in for that of .venv.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help book test lab reproduce bench offline-book new-chapter lint clean python env-book env-lab env-test env-bench

help:  ## show this list
	@echo "Lossbook: make TARGET"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| grep '## ' $(MAKEFILE_LIST)
	@echo "Override the interpreter with PYTHON=python3.12."

book: env-book  ## build the HTML book and print where it is
	@$(RUN) -m lossbook.site.build

offline-book: book  ## the same with every script and font inside, for rooms without internet (needs npm)
	@$(RUN) -m lossbook.site.offline

test: env-test  ## check the style, build the book, run every test (some minutes; ARGS="-k word" for a part)
	@$(RUN) -m lossbook.site.check $(ARGS)

lint: env-test  ## check code style and notebooks only (seconds)
	@$(RUN) -m lossbook.site.check --lint

lab: env-lab  ## open the notebooks in JupyterLab (ARGS="--port 9999")
	@$(RUN) -m lossbook.site.lab $(ARGS)

reproduce: env-lab  ## execute the notebooks and rewrite their committed outputs; CHAPTER=17 for one
	@$(RUN) -m lossbook.site.reproduce $(CHAPTER)

bench: env-bench  ## time the kernels side by side with their peers; BENCH="cce --help" for its options
	@$(RUN) -m lossbook bench $(BENCH)

new-chapter: env-lab  ## start a chapter from the template: NUMBER=18 SLUG=double_sparsity [TITLE="..."]
	@$(RUN) -m lossbook.site.new_chapter "$(NUMBER)" "$(SLUG)" --title "$(TITLE)"

clean:  ## remove everything that was built, and .venv
	rm -rf _build $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

env-book env-lab env-test env-bench: env-%: python
	@"$(PYTHON)" lossbook/site/environment.py $* $(if $(filter file,$(origin PYTHON)),,--exact)

python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Lossbook needs Python 3.11 or newer, and none was found; name one with: make PYTHON=/path/to/python" >&2; exit 1; \
	elif ! command -v "$(PYTHON)" >/dev/null; then \
		echo "there is no command $(PYTHON); name a Python 3.11 or newer with: make PYTHON=/path/to/python" >&2; exit 1; fi
