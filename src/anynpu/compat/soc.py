# SPDX-License-Identifier: Apache-2.0
"""The chip that the shim reports."""

from __future__ import annotations

import os
import re

DEFAULT = "Ascend910B"

# Published numbers of get_soc_version(); the first model of a series stands for the series.
_VERSIONS = {
    "Ascend910A": 101,
    "Ascend910B1": 220,
    "Ascend910B2C": 222,
    "Ascend910B2": 221,
    "Ascend910B3": 223,
    "Ascend910B4-1": 225,
    "Ascend910B4": 224,
    "Ascend310P1": 200,
    "Ascend310P2": 201,
    "Ascend310P3": 202,
    "Ascend310B1": 240,
    "Ascend310B2": 241,
    "Ascend310B3": 242,
    "Ascend310B4": 243,
    "Ascend910_9391": 250,
    "Ascend910_9392": 251,
    "Ascend910_9381": 252,
    "Ascend910_9382": 253,
    "Ascend910_9372": 254,
    "Ascend910_9362": 255,
}

_name = DEFAULT


def choose(name: str | None) -> None:
    """Sets the reported chip; None: that of ``ANYNPU_SOC``, else Ascend910B."""
    global _name
    argument = "soc"
    if name is None:
        name, argument = os.environ.get("ANYNPU_SOC") or DEFAULT, "ANYNPU_SOC"
    if not re.fullmatch(r"Ascend\w[\w-]*", name):
        raise ValueError(f"install: {argument} must be a chip name such as Ascend910B or Ascend310P3, got {name!r}")
    _name = name


def name() -> str:
    """The reported chip: that of ``install(soc=...)``, else ``ANYNPU_SOC``, else Ascend910B."""
    return _name


def version() -> int:
    """The published number of the chip, or of the first model of its series; -1 for one without."""
    return next((number for model, number in _VERSIONS.items() if model.startswith(_name)), -1)
