# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import anynpu

MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(anynpu.__path__, "anynpu.")
    if not info.name.startswith(("anynpu.compat", "anynpu.cli", "anynpu.__main__"))
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("triton", "peft"):
            raise
        pytest.skip(f"needs {error.name}")
    assert doctest.testmod(module).failed == 0
