# Everything that these targets need is created in .venv and .cache; both are ignored by git.
PYTHON ?= python3
export UV_CACHE_DIR ?= $(CURDIR)/.cache/uv
export UV_PYTHON_DOWNLOADS ?= never
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
READY := .venv/.ready

.PHONY: help demo test fast matrix add-ons image browser prometheus bench mutants soak release-check render lint hooks clean

help:
	@echo 'make demo     render the default project, start it, call it, stop it'
	@echo 'make test     every test of the template'
	@echo 'make fast     only the tests that need no installation'
	@echo 'make matrix   every combination of parts, installed, checked and tested'
	@echo 'make add-ons  what people add to a service works with it'
	@echo 'make image    images are built and run, by docker or podman; needs nginx as well'
	@echo 'make browser  the pages /docs and /console in Chromium, as Debian has it'
	@echo 'make prometheus'
	@echo '           the rules and the dashboard, by Prometheus, as Debian has it'
	@echo 'make mutants  break the generated guard on purpose; its tests must notice'
	@echo 'make soak     let generated services live a hard life, for MINUTES (5)'
	@echo 'make release-check'
	@echo '           every Python here, lowest and newest versions; projects of the last release, updated'
	@echo 'make bench    what the guard costs, beside others'
	@echo 'make render   render the default and both flavours, with every part, into .cache/rendered'
	@echo 'make lint     style and types of the template'
	@echo 'make hooks    run the checks before every commit'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv sync --quiet --upgrade --python $(BIN)/python
	@touch $@

demo: $(READY)
	$(BIN)/python -m tools.demo

test: $(READY) lint
	$(BIN)/pytest -n 2 --dist loadgroup -m 'not matrix and not add_ons and not image and not browser and not prometheus'

fast: $(READY)
	$(BIN)/pytest -m 'not slow'

matrix: $(READY)
	$(BIN)/pytest -n 2 --dist loadgroup -m matrix

add-ons: $(READY)
	$(BIN)/pytest -n 2 -m add_ons

image: $(READY)
	$(BIN)/pytest -m image

browser: $(READY)
	$(BIN)/pytest -m browser

prometheus: $(READY)
	$(BIN)/pytest -m prometheus

mutants: $(READY)
	$(BIN)/python -m tools.mutants

soak: $(READY)
	MINUTES=$(or $(MINUTES),5) $(BIN)/python -m tools.soak

release-check: $(READY)
	$(BIN)/python -m tools.release_check $(ROWS)

bench: $(READY)
	$(BIN)/python -m tools.bench all

render: $(READY)
	$(BIN)/python -m tools.render

lint: $(READY)
	$(BIN)/ruff check --config pyproject.toml .
	$(BIN)/ruff format --config pyproject.toml --check .
	$(BIN)/mypy

hooks: $(READY)
	$(BIN)/pre-commit install

clean:
	rm -rf .venv .cache
