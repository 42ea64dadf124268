# SPDX-License-Identifier: Apache-2.0
"""The oracles: plain PyTorch in float64 or exact integers, one for every operator, with the operator's arguments."""

from anynpu.ops.cast.reference import cast
from anynpu.ops.int4_pack.reference import int4_pack, int4_unpack

__all__ = ["cast", "int4_pack", "int4_unpack"]
