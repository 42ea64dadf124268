# SPDX-License-Identifier: Apache-2.0
"""``anynpu run``: a torch_npu script or module, unmodified."""

from __future__ import annotations

import traceback
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Annotated

import typer

from anynpu.cli.errors import USAGE, fail
from anynpu.compat import install
from anynpu.compat.run import run_script


class Device(str, Enum):
    """Where tensors of the device ``npu`` live."""

    cpu = "cpu"
    cuda = "cuda"


def run(
    script: Annotated[str, typer.Argument(help="The script (with -m: the module) to run.")],
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments, passed on untouched.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module's name, as in python -m.")] = False,
    device: Annotated[Device, typer.Option(help="What the device name npu stands for.")] = Device.cpu,
    soc: Annotated[str | None, typer.Option(help="The chip name to report. [default: Ascend910B]")] = None,
) -> None:
    """Run an unmodified torch_npu script.

    The options of anynpu come before the script, what follows belongs to it.
    """
    if not module and not Path(script).exists():
        fail(f"no such script: {script}", USAGE)
    try:
        install(device.value, soc)
    except (ValueError, RuntimeError) as error:
        fail(str(error), USAGE)
    try:
        run_script(script, args or [], device.value, soc, module)
    except Exception as error:
        traceback.print_exception(type(error), error, _frames_of_the_script(error.__traceback__))
        raise typer.Exit(1) from None


def _frames_of_the_script(frames: TracebackType | None) -> TracebackType | None:
    """The traceback as ``python script`` would show it, without the frames that lead to the script."""
    while frames is not None and frames.tb_frame.f_code is not run_script.__code__:
        frames = frames.tb_next
    frames = frames and frames.tb_next
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in (run_script.__module__, "runpy"):
        frames = frames.tb_next
    return frames
