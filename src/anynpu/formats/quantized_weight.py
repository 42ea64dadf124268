# SPDX-License-Identifier: Apache-2.0
"""A quantised matrix in the convention of weight_quant_matmul, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from anynpu.ops.int4_pack import int4_pack
from anynpu.ops.weight_quant_matmul.spec import matrix_shape


@dataclass(frozen=True)
class QuantizedWeight:
    """The arguments of weight_quant_matmul that describe a weight: ``real = (code + offset) * scale``.

    Attributes:
        weight: packed int4 (int32) or int8, logically ``[K, N]``.
        scale: float32 ``[N]`` or ``[G, N]``.
        offset: None, or float32 like scale.
        group_size: 0, or how many k share a row of scale.
        input_order: None, or int64 ``[K]``: row k of the weight belongs to column ``input_order[k]`` of x.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None = None
    group_size: int = 0
    input_order: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return matrix_shape("QuantizedWeight", self.weight)

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        offset: torch.Tensor | None = None,
        group_size: int = 0,
        input_order: torch.Tensor | None = None,
        bits: int = 4,
    ) -> QuantizedWeight:
        """From signed codes ``[N, K]`` and scale, offset ``[N, G]``, ordered as ``torch.nn.Linear.weight``."""
        group_size = 0 if group_size >= codes.shape[1] else group_size
        offset = None if offset is None else rows_of_groups(offset)
        return cls(packed(codes, bits), rows_of_groups(scale), offset, group_size, input_order)


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes ``[N, K]`` as the weight argument ``[K, N]``.

    Int4 is packed along K where K is a multiple of 8, else along N where N is one; a matrix that is neither keeps a
    byte for each code.
    """
    n, k = codes.shape
    axis = packing_axis(k, n) if bits == 4 else None
    if axis == "k":
        return int4_pack(codes.to(torch.int32).contiguous()).t()
    if axis == "n":
        return int4_pack(codes.t().to(torch.int32).contiguous())
    return codes.to(torch.int8).contiguous().t()


def packing_axis(k: int, n: int) -> str | None:
    """The axis along which int4 ``[K, N]`` is packed: "k", "n", or None where neither is a multiple of 8.

    A single word, K = 8 and N = 1, would read as K = 1 and N = 8 without an x, so it is not packed either.
    """
    if k % 8 == 0 and (k, n) != (8, 1):
        return "k"
    return "n" if n % 8 == 0 else None


def rows_of_groups(parameter: torch.Tensor) -> torch.Tensor:
    """A scale or offset ``[N, G]`` as float32 ``[G, N]``, or ``[N]`` when G is 1."""
    parameter = parameter.to(torch.float32)
    return parameter[:, 0].contiguous() if parameter.shape[1] == 1 else parameter.t().contiguous()
