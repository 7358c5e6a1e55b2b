PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := start
.PHONY: start install quickstart test test-slow lint type format bench faults clean help

start: install quickstart ## install and run the quickstart (the default)

install: $(STAMP) ## create .venv and install ltexp with the pinned versions

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ltexp needs Python 3.11 or later; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

quickstart: install ## train ce, crt and mislas on long-tailed digits and compare them (under a minute)
	$(BIN)/ltexp train --multirun method=ce,crt,mislas hydra.sweep.dir=outputs/quickstart resume=true
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

lint: install ## check style (ruff)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: install ## check types (mypy, strict)
	$(BIN)/mypy

format: install ## reformat the code (ruff)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## measure speed against bare PyTorch, as ratios
	$(BIN)/python -m benchmarks

faults: install ## kill, fill disks, give bad inputs ... and see that nothing is lost (docs/reliability.md; KILLS=100 takes an hour)
	$(BIN)/python -m faults

clean: ## remove .venv, caches and the quickstart's outputs
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache outputs/quickstart outputs/stage_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
