# `make demo` and `make test` need only Python 3.11 or newer and a package index that pip can reach.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
# Compilation is most of what the tests cost, and takes a third less with these. `make test QUICK_COMPILE=` is without
# them, as users are; and so is an XLA that does not know them.
QUICK_COMPILE ?= --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1 \
  --xla_llvm_disable_expensive_passes=true

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow smoke bench lint format docs clean

help:
	@echo "make demo       run the tour on real data; the last line is the path of its report"
	@echo "make test       the tests, less those marked slow"
	@echo "make test-slow  only those marked slow"
	@echo "make lint       ruff, basedpyright, import-linter"
	@echo "make format     let ruff mend what it can"
	@echo "make bench      filters, tempered, mcmc, llm, bessel and scaling benchmarks, us and the peers, into benchmarks/results/"
	@echo "make docs       the site, into site/"
	@echo "make clean      remove environments, caches and built files"

# One stamp for each set of packages: a second `make` installs nothing until pyproject.toml changes.
$(VENV)/.core: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[llm]"
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable ".[llm,test]"
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) --editable ".[llm,test,dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	$(PIP) --editable ".[docs]"
	@touch $@

demo: $(VENV)/.core
	$(BIN)/probinf run tour --overwrite

test: $(VENV)/.test
	@flags="$(XLA_FLAGS) $(QUICK_COMPILE)"; \
	XLA_FLAGS="$$flags" $(BIN)/python -c "import jax; jax.numpy.zeros(1)" >/dev/null 2>&1 || \
	  { echo "compiling as users do: this XLA does not know QUICK_COMPILE"; flags="$(XLA_FLAGS)"; }; \
	XLA_FLAGS="$$flags" $(BIN)/python -m pytest -q --numprocesses=$(WORKERS) --dist=worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -q -m slow $(PYTEST_ARGS)

# What .ci/run does on the newest Python.
smoke: $(VENV)/.test
	$(BIN)/python -m pytest -q -m smoke $(PYTEST_ARGS)
	$(BIN)/probinf doctor

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.core
	@for name in filters tempered mcmc llm bessel scaling; do $(BIN)/python -m benchmarks $$name || exit 1; done

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-* .bench .cache site dist build .pytest_cache .ruff_cache .hypothesis
