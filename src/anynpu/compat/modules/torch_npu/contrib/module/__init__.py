# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.contrib.module``: layers of models, and linear layers over the quantised operators.

Callers of the latter assign weights and scales. What is not asked for is None, the rest parameters without gradients,
0 until callers assign int8 or packed int4 values, and scales in other dtypes, to their ``.data``.
"""

from __future__ import annotations

from typing import Any

import torch

from anynpu.compat.errors import module_getattr
from anynpu.compat.published import Dtype
from anynpu.compat.quant_operators import npu_quant_matmul, npu_weight_quant_batchmatmul
from torch_npu.contrib.module._layers import (
    BiLSTM,
    ChannelShuffle,
    DropoutWithByteMask,
    Focus,
    LabelSmoothingCrossEntropy,
    Mish,
    NpuDropPath,
    Prefetcher,
    SiLU,
    Swish,
)

__all__ = [
    "BiLSTM",
    "ChannelShuffle",
    "DropoutWithByteMask",
    "Focus",
    "LabelSmoothingCrossEntropy",
    "LinearA8W8Quant",
    "LinearQuant",
    "LinearWeightQuant",
    "Mish",
    "NpuDropPath",
    "Prefetcher",
    "SiLU",
    "Swish",
]


class _Linear(torch.nn.Module):
    def _register(self, name: str, wanted: bool, *shape: int, dtype: torch.dtype = torch.float32, device: Any = None):
        value = torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device=device), False) if wanted else None
        self.register_parameter(name, value)


class LinearQuant(_Linear):
    """``npu_quant_matmul`` of int8, or packed int4, inputs and weights (out_features, in_features)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        offset: bool = False,
        pertoken_scale: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        output_dtype: Dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.output_dtype = in_features, out_features, output_dtype
        self._register("weight", True, out_features, in_features)
        self._register("scale", True, out_features)
        self._register("offset", offset, out_features)
        self._register("pertoken_scale", pertoken_scale, out_features)
        self._register("bias", bias, out_features, dtype=torch.int32)

    def forward(self, linear_quant_input: torch.Tensor) -> torch.Tensor:
        """The product, scaled; its dtype is ``output_dtype``, int8 by default."""
        dtypes = linear_quant_input.dtype, self.weight.dtype
        if dtypes not in ((torch.int8, torch.int8), (torch.int32, torch.int32)):
            raise ValueError(
                f"{type(self).__name__}: input and weight should be both torch.int32 or both torch.int8 datatype, but "
                f"now input is {dtypes[0]}, weight is {dtypes[1]}."
            )
        return npu_quant_matmul(
            linear_quant_input, self.weight.transpose(-1, -2), self.scale, offset=self.offset,
            pertoken_scale=self.pertoken_scale, bias=self.bias, output_dtype=self.output_dtype,
        )  # fmt: skip


class LinearA8W8Quant(LinearQuant):
    """The older name of ``LinearQuant``."""


class LinearWeightQuant(_Linear):
    """``npu_weight_quant_batchmatmul`` with int8 weights (out_features, in_features), or packed int4 ones."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        antiquant_offset: bool = False,
        quant_scale: bool = False,
        quant_offset: bool = False,
        antiquant_group_size: int = 0,
        inner_precise: int = 0,
        weight_dtype: Dtype | None = None,
    ) -> None:
        super().__init__()
        self.antiquant_group_size, self.inner_precise = antiquant_group_size, inner_precise
        self.weight_dtype = weight_dtype
        self._register("weight", True, out_features, in_features, device=device)
        for name, wanted in (
            ("antiquant_scale", True),
            ("antiquant_offset", antiquant_offset),
            ("quant_scale", quant_scale),
            ("quant_offset", quant_offset),
            ("bias", bias),
        ):
            self._register(name, wanted, out_features, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product. Scales and offsets of groups lie as the weight does, (out_features, groups)."""
        scale, offset = (
            group.transpose(-1, -2) if group is not None and group.dim() == 2 else group
            for group in (self.antiquant_scale, self.antiquant_offset)
        )
        return npu_weight_quant_batchmatmul(
            x, self.weight.transpose(-1, -2), scale, offset, self.quant_scale, self.quant_offset, self.bias,
            self.antiquant_group_size, self.inner_precise, self.weight_dtype,
        )  # fmt: skip


__getattr__ = module_getattr(__name__, globals())
