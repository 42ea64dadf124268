# SPDX-License-Identifier: Apache-2.0
"""``anynpu run``: a torch_npu script or module, unmodified."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from anynpu.cli.errors import USAGE, fail


class Device(str, Enum):
    """Where tensors of the device ``npu`` live."""

    cpu = "cpu"
    cuda = "cuda"


def run(
    script: Annotated[str, typer.Argument(help="The script (with -m: the module) to run.")],
    args: Annotated[list[str] | None, typer.Argument(help="Its arguments, passed on untouched.")] = None,
    module: Annotated[bool, typer.Option("-m", help="SCRIPT is a module name, as in python -m.")] = False,
    device: Annotated[Device, typer.Option(help="What the device name npu stands for.")] = Device.cpu,
    soc: Annotated[str | None, typer.Option(help="The chip name to report [default: Ascend910B].")] = None,
) -> None:
    """Run an unmodified torch_npu script on this machine. Options of anynpu come before SCRIPT."""
    raise NotImplementedError
