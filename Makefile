# Two commands do everything on a machine that has Python 3.11+, make and a package registry: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Threads that wait by spinning are 50 times slower beside other busy programs.
export GOMP_SPINCOUNT ?= 10000
# Without bytecode, which uv leaves to the first import, each process would compile all that it imports: 7 s instead of 4 for torch.
unexport PYTHONDONTWRITEBYTECODE
# The tests, beside each other: a process for each core, of one thread.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal --durations 15

# uv installs in a quarter of pip's time; pip does it where uv cannot, for it does not read pip's configuration.
get = $(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[$(1)]' \
	|| $(BIN)/python -m pip install --quiet --no-compile --editable '.[$(1)]'

.DEFAULT_GOAL := help

.venv/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(call get,test)
	@touch $@

install: .venv/installed  ## create .venv and install hybvit with everything its tests need

demo: .venv/installed  ## train the digits, evaluate, sample and write a report (two to five minutes on two cores)
	@$(BIN)/python benchmarks/demo.py

test: lint types unit  ## lint, types and all tests

lint: .venv/installed  ## ruff: style and format
	$(BIN)/ruff check src tests benchmarks docs examples
	$(BIN)/ruff format --check src tests benchmarks docs examples

types: .venv/installed  ## mypy
	$(BIN)/mypy

unit: .venv/installed  ## pytest, the slow tests too
	$(PYTEST)

quick: .venv/installed  ## pytest without the slow tests (two to three minutes on two cores)
	$(PYTEST) -m 'not slow'

format: .venv/installed  ## let ruff rewrite what `make lint` would complain about
	$(BIN)/ruff check --fix src tests benchmarks docs examples
	$(BIN)/ruff format src tests benchmarks docs examples

.venv/installed-docs: .venv/installed
	$(call get,docs)
	@touch $@

docs: .venv/installed-docs  ## build the documentation site into site/, and check its links
	@$(BIN)/python docs/build_site.py

tutorials: .venv/installed  ## run the tutorials of docs/ and write their outputs, pictures and notebooks
	@$(BIN)/python docs/tutorials.py

readme: .venv/installed  ## render the figures of README.md and docs/ from results/
	$(BIN)/python docs/render.py

.venv/dist:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet build twine check-wheel-contents uv || (rm -r $@; false)

dist: .venv/dist  ## build the wheel and the sdist into dist/, and check them
	rm -rf dist
	.venv/dist/bin/python -m build --outdir dist
	.venv/dist/bin/python -m twine check --strict dist/*
	.venv/dist/bin/check-wheel-contents dist/*.whl
	@du -h dist/*

oldest: .venv/dist  ## install the wheel with the oldest allowed versions, which are downloaded, and use it
	PATH="$(CURDIR)/.venv/dist/bin:$$PATH" $(PYTHON) benchmarks/install.py oldest

clean:  ## delete .venv and caches (runs/ stays)
	rm -rf .venv dist build site .pytest_cache .mypy_cache .ruff_cache

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

.PHONY: install demo test lint types unit quick format docs tutorials readme dist oldest clean help
