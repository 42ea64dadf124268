# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

import pytest
import torch

from anynpu import _native
from anynpu.demo import smollm2

LONGEST = ("test_emulated_avx512.py", "test_gpu.py")


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "cuda"), default="cpu", help="where the tests of tests/gpu run")


def pytest_configure(config):
    if config.getoption("device") == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch.cuda.is_available() is False")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # of the processes that this one starts: they share the cores


@pytest.hookimpl(optionalhook=True)  # tests/compat/installed runs without plugins
def pytest_xdist_auto_num_workers(config):
    """Two processes for the whole suite; one for a part of it, which ends before a second has started, or for a GPU."""
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and config.getoption("device") == "cpu"
    return 2 if whole else 0


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Two processes take files in this order: what takes longest comes first, and ends beside the many short tests."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(params=_native.ISA_TIERS)
def isa(request):
    """Every instruction set tier, best first; tiers that the machine lacks are skipped with the reason."""
    if reason := _native.isa_refusal(request.param):
        pytest.skip(f"{request.param}: {reason}")
    _native.set_max_isa(request.param)
    yield request.param
    _native.set_max_isa(None)


@pytest.fixture(scope="module")
def smollm2_loaded():
    """The model and the tokenizer of the demonstration."""
    try:
        return smollm2.load()
    except smollm2.ModelUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def each_thread_count():
    """Runs a function with 1, 2 and 3 threads and returns the results."""
    before = torch.get_num_threads()

    def run(function):
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(function())
        return results

    yield run
    torch.set_num_threads(before)
