# SPDX-License-Identifier: Apache-2.0
"""The toolkit under test, and compilers against it."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_programs import Compiler, sanitized

from anynpu.cli.toolkit import toolkit_path


@pytest.fixture(scope="session")
def toolkit() -> Path:
    return toolkit_path()


@pytest.fixture(scope="session")
def build(toolkit, tmp_path_factory) -> Compiler:
    """Compiles against the toolkit under test."""
    return Compiler(toolkit, tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def build_asan(tmp_path_factory) -> Compiler:
    return sanitized("asan", "address,undefined", tmp_path_factory.mktemp("sanitized"))


@pytest.fixture(scope="session")
def build_tsan(tmp_path_factory) -> Compiler:
    return sanitized("tsan", "thread", tmp_path_factory.mktemp("sanitized"))
