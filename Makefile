PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share what they train, so they stay in one process.
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-all test-lowest test-newest fuzz lint clean

# The stamp is newer than the packaging files exactly when the environment is up to date.
$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/tfcompress demo

test: $(VENV)/.installed
	$(PYTEST)

test-all: $(VENV)/.installed
	$(PYTEST) -m "slow or not slow"

# What training, exporting and running files need, under other versions.
CORE := tests/transforms tests/integer tests/wrap tests/quantization tests/lowering tests/tflite \
	tests/export tests/test_exactness.py
IN = .venv-$(subst test-,,$@)

test-lowest:
	$(PYTHON) -m venv $(IN)
	$(IN)/bin/python tests/versions.py lowest > $(IN)/lowest.txt
	$(IN)/bin/pip install --quiet --constraint $(IN)/lowest.txt --editable . 'pytest>=8' pytest-xdist
	$(IN)/bin/python tests/versions.py installed
	$(IN)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(CORE)

test-newest:
	$(PYTHON) -m venv $(IN)
	$(IN)/bin/pip install --quiet --upgrade --pre --editable . 'pytest>=8' pytest-xdist
	$(IN)/bin/python tests/versions.py installed
	$(IN)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(CORE)

# Thousands of damaged files, each in a process that may die of it.
fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzzing.run -n 340

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest build dist *.egg-info
