# Builds and installs mlx_ane into .venv, then runs the demo or the tests.
#
#   make demo    trains two models on the emulated Neural Engine, then fine-tunes
#   make test    runs the test suite
#   make clean   removes what was built
#
# Needs Python 3.10 or newer with its headers and venv, and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := CMakeLists.txt pyproject.toml README.md LICENSE NOTICE \
  $(shell find src mlx_ane cmake -type f ! -name '*.pyc')

.PHONY: demo test install-test clean

demo: .venv/.demo
	$(BIN)/python examples/digits.py
	$(BIN)/python examples/train_gpt.py --out build/demo/gpt
	$(BIN)/python examples/lora.py --model build/demo/gpt/model --out build/demo/lora

test: install-test
	$(BIN)/pytest

install-test: .venv/.test

# One wheel serves both; its dependencies differ.
.venv/.demo .venv/.test: .venv/.%: .venv/.wheel
	$(BIN)/pip install --quiet "$$(ls build/wheel/mlx_ane-*.whl)[$*]"
	touch $@

.venv/.wheel: .venv/.python $(SOURCES)
	rm -rf build/wheel
	$(BIN)/pip wheel --no-deps --wheel-dir build/wheel .
	$(BIN)/pip install --quiet --force-reinstall --no-deps build/wheel/mlx_ane-*.whl
	touch $@

.venv/.python:
	@$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	touch $@

clean:
	rm -rf .venv build
