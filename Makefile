# Everything runs in one virtual environment, made here from Python alone: `make train` is all a fresh clone needs.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
# Byte-compiling every installed file takes longer than compiling the few that a run really imports.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile

.PHONY: help train bench test test-slow torture docs docs-serve format clean

help:
	@echo 'make train       install into $(VENV) and train, on data/nerf_synthetic/lego or the built-in scene (ARGS="..." is passed on)'
	@echo 'make bench       measure this machine and every field on it (ARGS="..." is passed on)'
	@echo 'make test        lint, types, imports and the quick tests; with Python 3.12 or newer also their coverage'
	@echo 'make test-slow   the slow tests'
	@echo 'make torture     corrupts files of every kind (CORRUPTIONS=100 each), and kills trainings at random moments (KILLS=100)'
	@echo 'make docs        build the documentation into site/; make docs-serve shows it'
	@echo 'make format      format the code and mend what the linter can mend'
	@echo 'make clean       remove $(VENV) and all caches; runs/ and data/ are kept'
	@echo 'Another interpreter: make PYTHON=python3.12 train'

train: $(VENV)/.installed
	$(BIN)/python train_lego.py $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python -m jaxrf bench $(ARGS)

# Most of the tests' time is compilation, which takes half as long when XLA does not optimize, and a
# third less again with its older emitters; those that are marked so run what users run.
QUICK_FLAGS := --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1
QUICK_COMPILING := JAX_DISABLE_MOST_OPTIMIZATIONS=1 XLA_FLAGS='$(QUICK_FLAGS)' $(BIN)/python -m pytest -n auto

# Coverage is measured where it costs next to nothing, with the sys.monitoring of Python 3.12; to have
# it with 3.11 too, where tests then take a third longer: make COVERAGE=--cov=jaxrf test
COVERAGE ?= $(shell $(BIN)/python -c 'import sys; print("--cov=jaxrf" * (sys.version_info >= (3, 12)))' 2>/dev/null)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(QUICK_COMPILING) --dist loadfile -m "not slow" $(COVERAGE) $(ARGS)

# make test-slow SLOW="slow and not long" leaves out what takes most of the time. Those that run what
# users run stay together by file, as some train what the others look at.
SLOW ?= slow

test-slow: $(VENV)/.installed-dev
	$(QUICK_COMPILING) --dist load -m "$(SLOW) and not as_used" $(ARGS)
	$(BIN)/python -m pytest -n auto --dist loadfile -m "$(SLOW) and as_used" $(ARGS)

KILLS ?= 100
CORRUPTIONS ?= 100
CORRUPTED := tests/data/test_corruptions.py tests/convert/test_corrupted_weights.py tests/cli/test_corrupted_runs.py

torture: $(VENV)/.installed-dev
	JAXRF_CORRUPTIONS=$(CORRUPTIONS) $(QUICK_COMPILING) --dist load $(CORRUPTED) $(ARGS)
	JAXRF_KILLS=$(KILLS) $(BIN)/python -m pytest tests/torture $(ARGS)

# Warnings are errors, a link that leads nowhere among them.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

docs-serve: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# runs/ and data/ cost hours to make again, so they are never removed here.
clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written last, so an interrupted step is begun again; --clear makes a half-made environment new.
# A recent pip is worth its download: it resolves and unpacks much faster than those that come with Python 3.11.
$(VENV)/.created:
	@command -v '$(PYTHON)' >/dev/null || { echo "No '$(PYTHON)' here. Name a Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@'$(PYTHON)' -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("jaxrf needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" % v[:2])'
	'$(PYTHON)' -m venv --clear $(VENV)
	$(INSTALL) --quiet --upgrade pip
	touch $@

# Only what training imports is compiled to bytecode, once, even where Python is told to write none:
# every start would else take two seconds longer. The kernels for CPUs are compiled too.
WARM_UP := PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import jaxrf.studies.bench, orbax.checkpoint, tensorboardX, imageio.v3, matplotlib.pyplot; from jaxrf.core.kernels import calls; calls.compile_all()'

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/.created
	$(INSTALL) --editable .
	$(WARM_UP)
	touch $@

$(VENV)/.installed-dev: requirements.txt requirements-dev.txt requirements-photos.txt pyproject.toml | $(VENV)/.created
	$(INSTALL) --editable '.[dev,photos]'
	$(WARM_UP)
	touch $@ $(VENV)/.installed
