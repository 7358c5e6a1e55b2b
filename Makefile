PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
EXTRAS ?= dev# of pyproject.toml; CI: dev,datasets,docs,export,pandas,vit

.DEFAULT_GOAL := start
.PHONY: start install quickstart test test-slow test-lowest lint type format docs bench gpu faults clean help

start: install quickstart ## install and run the quickstart (the default)

install: $(STAMP) ## create .venv and install ltexp with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ltexp needs Python 3.11 or later; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing ltexp and what it needs into $(VENV): PyTorch alone is several hundred megabytes"
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch $(STAMP)

quickstart: install ## train ce, crt and mislas on long-tailed digits and compare them (under a minute)
	OMP_NUM_THREADS=1 $(BIN)/ltexp train --multirun method=ce,crt,mislas hydra.sweep.dir=outputs/quickstart resume=true
	$(BIN)/ltexp report outputs/quickstart
	@echo
	@echo "What next (put $(BIN) on your PATH first: source $(BIN)/activate):"
	@echo "  ltexp methods                                           what there is to choose from"
	@echo "  ltexp train -m method=crt,lws,mislas seed=0,1,2         a grid; stages are shared"
	@echo "  ltexp data prepare cifar100                             then: ltexp train dataset=cifar100_lt method=mislas"

test: install ## run the tests
	$(BIN)/python -m pytest -n auto

test-slow: install ## run all tests, the slow ones too
	$(BIN)/python -m pytest -n auto -m "slow or not slow"

test-lowest: ## the default tests with the lowest versions that pyproject.toml allows, in an environment of their own
	$(or $(LOWEST_PYTHON),$(shell command -v python3.12 || echo $(PYTHON))) -m venv .venv-lowest
	.venv-lowest/bin/python -c 'import re, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print("\n".join(re.sub(r"[>=]=([0-9.]+).*", r"==\1", d.split(";")[0]) for d in p["dependencies"]))' > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --disable-pip-version-check --constraint .venv-lowest/constraints.txt --editable ".[dev]"
	.venv-lowest/bin/python -m pytest -n auto

lint: install ## check style (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install ## check types (mypy, strict)
	$(BIN)/mypy

format: install ## reformat the code (ruff)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install ## build the documentation into site/ (installs mkdocs into .venv the first time)
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html; with its search: $(BIN)/python -m http.server -d site"

bench: install ## measure speed against bare PyTorch, as ratios
	$(BIN)/python -m benchmarks

gpu: install ## with a GPU: its tests, then its speed; outputs/gpu.json and gpu.md (docs/gpu.md)
	$(BIN)/python -m benchmarks gpu

faults: install ## kill, fill disks, give bad inputs ... and see that nothing is lost (docs/reliability.md; KILLS=100 takes an hour)
	$(BIN)/python -m faults

clean: ## remove .venv, caches and the quickstart's outputs
	rm -rf $(VENV) .venv-lowest .mypy_cache .pytest_cache .ruff_cache site outputs/quickstart
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
