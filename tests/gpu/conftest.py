# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels over the case tables: on a GPU with `pytest --device cuda`, else by Triton's interpreter.

The interpreter has to be chosen before a kernel is imported: ../test_gpu.py runs this folder in a process of its own.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import triton
from gpu_cases import INTERPRETED

import anynpu
from anynpu._register import operators


def pytest_ignore_collect(collection_path, config):
    wanted = INTERPRETED or config.getoption("device") == "cuda"
    return True if collection_path.name.startswith("test_") and not wanted else None


@pytest.fixture(scope="session", autouse=True)
def quicken_the_interpreter():
    """Leaves out what takes the interpreter most of its time and changes no result: it replaces the functions of
    triton.language anew whenever one jitted function calls another, and computes whether sums and products of
    integers overflow, for an assertion that only its option ``debug`` makes, which is off."""
    if not INTERPRETED:
        yield
        return
    from triton.runtime import interpreter

    torch.set_num_threads(1)  # tensors are small: threads would only wait for each other
    patch, builder = interpreter._patch_lang, interpreter.interpreter_builder
    options = builder.options
    assert not options.debug
    done = patch(SimpleNamespace(__globals__={"tl": triton.language, "core": triton.language.core}))
    interpreter._patch_lang = lambda function: interpreter._LangPatchScope()
    builder.options = dataclasses.replace(options, sanitize_overflow=False)
    yield
    builder.options = options
    interpreter._patch_lang = patch
    done.restore()


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Where the tensors of a test live."""
    if INTERPRETED:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU, or tests/test_gpu.py")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def kernel():
    """The CUDA kernel of an operator by name: through the dispatcher on a GPU, bare in the interpreter."""
    return lambda name: operators[name].cuda_kernel if INTERPRETED else operators[name].overload


@pytest.fixture(autouse=True)
def no_error_is_left(device):
    """An error that a kernel noted and the test did not ask for fails the test."""
    yield
    anynpu.check_device_errors()
