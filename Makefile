# The book's four commands; each sets up what it needs in .venv, once. `make help` lists them.

VENV    ?= .venv
PROFILE ?= toy
JOBS    ?= 2
APT     ?= 1
# Set PYTHON to choose the interpreter; otherwise the first of these that works is taken.
PYTHON  ?=
PYTHONS := python3 python3.13 python3.12 python3.11 python
TORCH   := $(shell sed -n 's/^torch==\([0-9.]*\).*/\1/p' constraints.txt)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN   := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PIP   := $(BIN)/python -m pip --disable-pip-version-check
PINS  := pyproject.toml constraints.txt requirements-assets.txt
stage  = @printf '\n== %s ==\n' "$(1)"
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -q
# For the second run of the notebooks that the site shows: what the runner gives a kernel.
KERNEL := TQDM_DISABLE=1 HF_HUB_OFFLINE=1 PYTHONHASHSEED=0 OMP_NUM_THREADS=1 \
	TOKENIZERS_PARALLELISM=false MINISEARCH_RUN_DIR=$(CURDIR)/_build/second_run
published := from minisearch import book, chapters as c; \
	print(*(book.find_run(p.read_text(), "smoke") / "notebook.ipynb" for p in c.chapter_paths()))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book test lab clean chromium bench

help:
	@echo 'make book   run every chapter and build the site into _build/html'
	@echo '            PROFILE=smoke|toy|small|full (toy)  JOBS=processes ($(JOBS))'
	@echo 'make test   style, types, tests, chapters at smoke, the site and its links'
	@echo '            APT=0 does not install Chromium where it is missing'
	@echo 'make lab    JupyterLab, where the chapters open as notebooks'
	@echo 'make clean  delete _build (runs of every profile, site) and tool caches; $(VENV) stays'
	@echo
	@echo 'Set-up goes into $(VENV): PYTHON=/path/to/python3.12 chooses the interpreter, CUDA=1 takes'
	@echo 'the CUDA build of torch, TORCH_INDEX=URL another index of CPU wheels.'

book: $(VENV)/.book
	$(BIN)/minisearch book --profile $(PROFILE) --jobs $(JOBS)

test: $(VENV)/.test chromium
	$(call stage,1 of 6: style)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(call stage,2 of 6: types)
	$(BIN)/mypy
	$(call stage,3 of 6: unit property parity and chapter tests)
	$(PYTEST) -n $(JOBS) --dist worksteal --ignore=tests/site --ignore=tests/bench \
		--doctest-modules tests src/minisearch
	$(if $(wildcard tests/bench/test_*.py),$(PYTEST) tests/bench)
	$(call stage,4 of 6: the site from smoke runs)
	$(BIN)/minisearch book --profile smoke --jobs $(JOBS)
	$(call stage,5 of 6: a second run of each smoke notebook)
	notebooks=$$($(BIN)/python -c '$(published)') && $(KERNEL) $(BIN)/pytest -q -n $(JOBS) \
		--dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout 120 \
		--nbval-sanitize-with tests/nbval.cfg $$notebooks
	$(call stage,6 of 6: links and pages in a browser)
	$(PYTEST) tests/site

lab: $(VENV)/.lab
	$(BIN)/jupyter lab chapters

# For who changes the agents' code: what it costs beside TRL, which nothing else here needs.
bench: $(VENV)/.bench
	$(PYTEST) -s tests/bench/test_agents.py
	$(BIN)/python tests/bench/agent_speed.py

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find chapters data_scripts src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# -- set-up: one stamp an extra set, renewed when a pin changes ------------------------------------

$(VENV)/.book: $(VENV)/.torch $(PINS)
	$(PIP) install -qq -e '.[book]' -c constraints.txt
	$(BIN)/minisearch data get toy
	@touch $@

$(VENV)/.test: $(VENV)/.torch $(PINS)
	$(PIP) install -qq -e '.[book,test,classroom]' -c constraints.txt
	$(BIN)/minisearch data get toy
	@touch $@

$(VENV)/.bench: $(VENV)/.torch $(PINS)
	$(PIP) install -qq -e '.[test,bench]' -c constraints.txt
	@touch $@

$(VENV)/.lab: $(VENV)/.torch $(PINS)
	$(PIP) install -qq -e '.[lab]' -c constraints.txt
	$(BIN)/minisearch data get toy
	$(BIN)/jupytext-config \
		--settings-file $(VENV)/etc/jupyter/labconfig/default_setting_overrides.json \
		set-default-viewer python
	@touch $@

# CPU torch wherever it can be had: a wheel that pip is configured to find; on Linux without an
# NVIDIA card the CPU index; else the default build. Never CUDA by accident: it takes gigabytes.
$(VENV)/.torch: $(BIN)/python constraints.txt
	@echo 'Setting up $(VENV): torch $(TORCH) first, then the rest (a few minutes)'
	@$(PIP) --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	@if [ -z '$(CUDA)' ] && $(PIP) install -qq --no-index --no-deps torch==$(TORCH) 2>/dev/null; then :; \
	elif [ "$$(uname -s)" != Linux ] || [ -e /dev/nvidiactl ] || [ -n '$(CUDA)' ]; then \
		$(PIP) install -qq --no-deps torch==$(TORCH); \
	elif $(PIP) install -qq --no-deps --retries 1 --timeout 30 torch==$(TORCH) \
		--index-url $(TORCH_INDEX); then :; \
	else \
		echo 'make: no CPU build of torch $(TORCH) for' \
			"$$($(BIN)/python -c 'import sys; print("Python %d.%d" % sys.version_info[:2])')" \
			'at $(TORCH_INDEX).' >&2; \
		printf '  %s\n' 'Another index of CPU wheels:  make TORCH_INDEX=https://...' \
			'A wheel on this disk:         PIP_FIND_LINKS=/its/folder make ...' \
			'The CUDA build (about 3 GB):  make CUDA=1 ...' >&2; \
		exit 1; \
	fi
	@touch $@

# Every candidate is run: a shim may exist and fail, and a system's python3 may lack venv.
usable := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
$(BIN)/python:
	@for name in $(or $(PYTHON),$(PYTHONS)); do \
		if $$name -c '$(usable)' >/dev/null 2>&1; then \
			echo "Creating $(VENV) with $$($$name --version)"; \
			exec $$name -m venv --clear $(VENV); \
		fi; \
	done; \
	echo 'make: no usable Python among: $(or $(PYTHON),$(PYTHONS)).' >&2; \
	for name in $(or $(PYTHON),$(PYTHONS)); do \
		printf '  %-12s ' "$$name:"; \
		"$$name" -c 'import sys; print("version %d.%d" % sys.version_info[:2], end=", "); import venv, ensurepip; print("can make environments")' 2>&1 | tail -n 1; \
	done >&2; \
	echo '  Needed: Python 3.11, 3.12 or 3.13 with venv and ensurepip (Debian, Ubuntu: apt install' >&2; \
	echo '  python3-venv). Then run make again, or name one: make PYTHON=/path/to/python3.12 ...' >&2; \
	exit 1

# Headless Chromium for the site tests where Debian packages and root are at hand; they skip without.
chromium:
	@[ '$(APT)' != 0 ] || exit 0; \
	for name in chromium chromium-browser google-chrome; do \
		command -v $$name >/dev/null && exit 0; \
	done; \
	command -v apt-get >/dev/null || exit 0; \
	if [ "$$(id -u)" = 0 ]; then as_root=env; \
	elif sudo -n true 2>/dev/null; then as_root='sudo -n'; else exit 0; fi; \
	echo 'Installing chromium for the browser tests'; \
	{ $$as_root apt-get update -qq; DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -qq -y \
		--no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 || true
