# Each target does all of its set-up: .venv is made where missing and brought up to date when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help train test slow integrations check format clean

help:
	@echo "make train   train and evaluate on the embedded digits (ARGS='model=conv optimization=backprop' to change)"
	@echo "make test    run the fast tests"
	@echo "make slow    run the slow tests (data sets are looked for in FWDGRAD_DATA)"
	@echo "make integrations   install Lightning and Hugging Face beside it, and run their tests and the examples"
	@echo "make check   format check, lint, types, fast tests"
	@echo "make format  format and mend what can be mended"

$(BIN)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fwdgrad needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

train: $(BIN)/.installed
	$(BIN)/python train.py $(ARGS)

test: $(BIN)/.installed
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

slow: $(BIN)/.installed
	$(BIN)/python -m pytest -m slow $(ARGS)

integrations: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[dev,lightning,transformers]' 'jsonargparse[signatures]'
	$(BIN)/python -m pytest tests/integrations tests/test_examples.py $(ARGS)

check: $(BIN)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

format: $(BIN)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
