# SPDX-License-Identifier: Apache-2.0
"""The toolkit under test, and compilers against it."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_programs import Compiler, sanitized

from anynpu._native import toolkit_path


@pytest.fixture(scope="session")
def toolkit() -> Path:
    return toolkit_path()


@pytest.fixture(scope="session")
def build(toolkit, tmp_path_factory) -> Compiler:
    """Compiles against the toolkit under test."""
    return Compiler(toolkit, tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def sanitized_builds(pytestconfig, tmp_path_factory) -> Path:
    """One folder for all processes of pytest-xdist, each of which has its own temporary folder in a common one."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if hasattr(pytestconfig, "workerinput") else own) / "sanitized"


@pytest.fixture(scope="session")
def build_asan(sanitized_builds) -> Compiler:
    return sanitized("asan", "address,undefined", sanitized_builds)


@pytest.fixture(scope="session")
def build_tsan(sanitized_builds) -> Compiler:
    return sanitized("tsan", "thread", sanitized_builds)
