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
    if name.endswith("triton"):
        pytest.importorskip("triton", reason="GPU kernels need Triton")
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0
