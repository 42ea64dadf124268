# SPDX-License-Identifier: Apache-2.0
"""pytest plugin: ``pytest --anynpu`` runs tests written for torch_npu on this machine.

A package of its own, because pytest imports it in every project of the environment: ``anynpu``, and with it torch, is
imported only when a run asks for it.
"""

from __future__ import annotations

import sys

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("anynpu", "torch_npu on this machine")
    group.addoption("--anynpu", action="store_true", help="provide torch_npu, torchair and the device name npu")
    group.addoption("--anynpu-device", choices=("cpu", "cuda"), default="cpu", help="what npu stands for")
    group.addoption("--anynpu-soc", default=None, help="the chip to report, such as Ascend910B3")
    parser.addini("anynpu", "the same as --anynpu", type="bool", default=False)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Installs before any conftest is imported."""
    options = early_config.known_args_namespace
    if options.anynpu or early_config.getini("anynpu") or "anynpu" in options.plugins:
        from anynpu.compat import install

        try:
            install(options.anynpu_device, options.anynpu_soc)
        except (ValueError, RuntimeError) as error:
            raise pytest.UsageError(f"--anynpu: {error}") from error


def pytest_report_header(config: pytest.Config) -> str | None:
    """Names the device, when there is one."""
    runtime = sys.modules.get("torch_npu.npu")
    if runtime is None:
        return None
    return f"anynpu: npu stands for {config.getoption('anynpu_device')}, reported as {runtime.get_device_name()}"
