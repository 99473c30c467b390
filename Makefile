PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs clean

demo: .venv/installed  ## train, evaluate and draw, on photographs that are kept here
	$(BIN)/python experiments/unet_nuclei.py train

test: .venv/installed-test
	$(BIN)/python -m pytest -n 2 --dist worksteal  # most of the time is one core, compiling

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs  ## the site, in build/site; runs the notebook
	PATH="$(CURDIR)/$(BIN):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install -q -e .
	touch $@

.venv/installed-test: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install -q -e '.[test]'
	touch $@ .venv/installed

.venv/installed-docs: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install -q -e '.[docs]'
	touch $@ .venv/installed

.venv/installed-dev: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ .venv/installed .venv/installed-test
