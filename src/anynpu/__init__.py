# SPDX-License-Identifier: Apache-2.0
"""Ascend NPU quantised operators on ordinary CPUs and GPUs."""

from anynpu import reference
from anynpu._version import __version__
from anynpu.ops.cast import cast
from anynpu.ops.int4_pack import int4_pack, int4_unpack

__all__ = ["__version__", "cast", "int4_pack", "int4_unpack", "reference"]
