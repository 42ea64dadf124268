# SPDX-License-Identifier: Apache-2.0
"""Runs a script written for torch_npu."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from anynpu.compat import install
from anynpu.compat import soc as chip
from anynpu.compat.finder import FOLDER


def run_script(
    script: str, argv: Sequence[str] = (), device: str = "cpu", soc: str | None = None, module: bool = False
) -> None:
    """Runs ``script`` as ``python script argv...`` would, with the device name npu provided.

    Args:
        script: the path of a script, or of a folder or zip file with a ``__main__``; with ``module`` a module's name.
        argv: its arguments.
        device: see :func:`anynpu.install`.
        soc: see :func:`anynpu.install`.
        module: run a module, as ``python -m`` does.

    Raises:
        FileNotFoundError: there is no such script.
        ImportError: there is no such module.
        Whatever the script raises, SystemExit included.
    """
    if not module and not Path(script).exists():
        raise FileNotFoundError(f"run: no such script: {script}")
    install(device, soc)
    _install_in_child_processes(device)
    if device == "cpu":
        os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels for triton-ascend, on tensors of the CPU
    sys.argv = [script, *argv]
    try:
        _run(script, module)
    except ModuleNotFoundError as error:
        if error.name == "triton":
            error.msg += "; kernels for triton-ascend run in Triton's interpreter: pip install triton"
        raise


def _run(script: str, module: bool) -> None:
    path = os.path.abspath(script)  # as __file__ of a main program is
    if module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    elif Path(script).is_dir() or Path(script).suffix == ".zip":
        runpy.run_path(path, run_name="__main__")  # puts the folder itself on the path
    else:
        sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
        runpy.run_path(path, run_name="__main__")


def _install_in_child_processes(device: str) -> None:
    """Lets processes that the script starts anew find torch_npu, which then installs itself."""
    os.environ["ANYNPU_DEVICE"], os.environ["ANYNPU_SOC"] = device, chip.name()
    sys.path.append(FOLDER)  # multiprocessing hands this one on
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (FOLDER, os.environ.get("PYTHONPATH"))))
