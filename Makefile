# Needs make, Python 3.11 or newer and pip, nothing else. `make` alone lists what there is.
#
# The tools live in .venv, made on the first call. An empty stamp file in it says which extra is installed; the install is
# repeated only when pyproject.toml is newer than the stamp. `make test PYTHON=python3.12` chooses the interpreter.

PYTHON ?= python3
BIN := .venv/bin

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.DEFAULT_GOAL := help
.PHONY: help demo demo-dense test test-long lint
.NOTPARALLEL:  # two pips in one environment tear each other's files

help:
	@echo "make demo       caches, trains and reports on real images that come with the packages; result in demo-run/"
	@echo "make demo-dense the same per pixel: classes, metres, borders, boxes, objects; result in demo-dense-run/"
	@echo "make test       every test that takes seconds"
	@echo "make test-long  the tests that take minutes (kill and resume at 50 moments)"
	@echo "make lint       ruff, mypy and the import contracts"
	@echo "PYTHON=...      the interpreter that .venv is made with (now: $(PYTHON)); rm -r .venv to change it"

demo: .venv/.installed-demo
	$(BIN)/loffta demo

demo-dense: .venv/.installed-demo
	$(BIN)/loffta demo --dense

test: .venv/.installed-test
	$(BIN)/python -m pytest -q -m "not long" -n 2 --dist loadfile

test-long: .venv/.installed-test
	$(BIN)/python -m pytest -q -m long

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/.installed-demo: pyproject.toml | $(BIN)/pip
	@echo "installing loffta[demo] into .venv: minutes, for torch is large"
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

.venv/.installed-test: pyproject.toml | $(BIN)/pip
	@echo "installing loffta[test] into .venv: minutes, for torch is large"
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ .venv/.installed-demo  # the extra `test` contains `demo`

# pip is the last file that venv writes: an environment whose making was cut off is made again. The check must parse in any
# Python, however old.
$(BIN)/pip:
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "error: no interpreter '$(PYTHON)'; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$("$(PYTHON)" --version 2>&1) is too old; loffta needs 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; } >&2
	@"$(PYTHON)" -m venv .venv || \
		{ echo "error: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv"; exit 1; } >&2
