# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of dequant_swiglu_quant."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "dequant_swiglu_quant"
SCHEMA = (
    "(Tensor x, Tensor? weight_scale=None, Tensor? activation_scale=None, Tensor? bias=None, Tensor? quant_scale=None, "
    "Tensor? quant_offset=None, Tensor? group_index=None, bool activate_left=False, int quant_mode=0, "
    "int swiglu_mode=0, float clamp_limit=7.0, float glu_alpha=1.702, float glu_bias=1.0) -> (Tensor, Tensor)"
)
STATIC, DYNAMIC = 0, 1
HALVES, INTERLEAVED_CLAMPED, HALVES_CLAMPED = 0, 1, 2
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    weight_scale: torch.Tensor | None = None
    activation_scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    quant_scale: torch.Tensor | None = None
    quant_offset: torch.Tensor | None = None
    group_index: torch.Tensor | None = None
    activate_left: bool = False
    quant_mode: int = STATIC
    swiglu_mode: int = HALVES
    clamp_limit: float = 7.0
    glu_alpha: float = 1.702
    glu_bias: float = 1.0


def _require_attributes(a: Arguments) -> None:
    require(OP, a.quant_mode in (STATIC, DYNAMIC), f"quant_mode only support 0 or 1, but got {a.quant_mode}")
    require(OP, a.swiglu_mode in (0, 1, 2), f"swiglu_mode only support 0, 1 or 2, but got {a.swiglu_mode}")
    positive = 0 < a.clamp_limit < math.inf
    require(OP, positive, f"clamp_limit should be positive finite, got {a.clamp_limit}")
    require(OP, math.isfinite(a.glu_alpha), f"glu_alpha should be finite, got {a.glu_alpha}")
    require(OP, math.isfinite(a.glu_bias), f"glu_bias should be finite, got {a.glu_bias}")


def _require_groups(a: Arguments) -> int:
    if a.group_index is None:
        return 1
    require_dtype(OP, "group_index", a.group_index, (torch.int64,))
    shape = tuple(a.group_index.shape)
    require(OP, len(shape) == 1 and shape[0] >= 1, f"group_index must have shape (G,), got {shape}")
    absent = a.bias is None and a.quant_offset is None
    require(OP, absent, "bias and quant_offset must be absent with group_index")
    return shape[0]


def _by_group(tensor: torch.Tensor, groups: int, length: int) -> bool:
    if tensor.dim() == 1:
        return groups == 1 and tensor.shape[0] == length
    return tensor.dim() == 2 and tensor.shape[0] == groups and tensor.shape[1] == length


def _require_dequantization(a: Arguments, groups: int) -> None:
    width = a.x.shape[-1]
    require(OP, a.x.dtype != torch.int32 or a.weight_scale is not None, "int32 x needs weight_scale")
    if a.weight_scale is not None:
        require_dtype(OP, "weight_scale", a.weight_scale, (torch.float32,))
        expected = f"(G, 2 H) = ({groups}, {width})"
        fits = _by_group(a.weight_scale, groups, width)
        require(OP, fits, f"weight_scale must have shape {expected}, got {tuple(a.weight_scale.shape)}")
    if a.activation_scale is not None:
        require_dtype(OP, "activation_scale", a.activation_scale, (torch.float32,))
        rows, shape = math.prod(a.x.shape[:-1]), tuple(a.activation_scale.shape)
        fits = math.prod(shape) == rows
        require(OP, fits, f"activation_scale must have a value for each of {rows} rows, got {shape}")
    if a.bias is not None:
        require_dtype(OP, "bias", a.bias, (torch.int32, *_FLOATS))
        fits = _by_group(a.bias, groups, width)
        require(OP, fits, f"bias must have shape (2 H,) = ({width},), got {tuple(a.bias.shape)}")


def _require_quantization(name: str, tensor: torch.Tensor | None, quant_mode: int, groups: int, length: int) -> None:
    if tensor is None:
        return
    require_dtype(OP, name, tensor, _FLOATS if quant_mode == DYNAMIC else _FLOATS[:1])
    one_each = tensor.dim() == 1 and tensor.shape[0] == groups
    expected = f"(G, H) = ({groups}, {length}) or (G,)"
    fits = one_each or _by_group(tensor, groups, length)
    require(OP, fits, f"{name} must have shape {expected}, got {tuple(tensor.shape)}")


def output_shapes(a: Arguments) -> tuple[list[int], list[int]]:
    """Checks everything that does not need data; returns the shapes of y and scale."""
    require_dtype(OP, "x", a.x, (torch.int32, *_FLOATS))
    require(OP, a.x.dim() > 1, f"x dim should larger than 1, got {a.x.dim()}")
    require(OP, a.x.shape[-1] % 2 == 0, f"x last dim should be even, got {a.x.shape[-1]}")
    _require_attributes(a)
    groups = _require_groups(a)
    _require_dequantization(a, groups)
    leading, length = list(a.x.shape[:-1]), a.x.shape[-1] // 2
    absent = a.quant_mode == STATIC or a.quant_offset is None
    require(OP, absent, "quant_offset must be absent in dynamic mode")
    _require_quantization("quant_scale", a.quant_scale, a.quant_mode, groups, length)
    _require_quantization("quant_offset", a.quant_offset, a.quant_mode, groups, length)
    return [*leading, length], leading


@takes(Arguments)
def fake(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Fake kernel."""
    shape, scale = output_shapes(a)
    return a.x.new_empty(shape, dtype=torch.int8), a.x.new_empty(scale, dtype=torch.float32)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randint(-(2**15), 2**15, (13, 130), generator=generator, dtype=torch.int32)
    scales = torch.rand(3, 130, generator=generator) * 2e-4
    rows = torch.rand(13, generator=generator) + 0.5
    smooth = torch.rand(3, 65, generator=generator) + 0.5
    counts = torch.tensor([4, 0, 7])
    values = torch.randn(5, 64, generator=generator)
    grouped = Arguments(sums, scales, rows, quant_scale=smooth, group_index=counts, activate_left=True)
    yield Sample("groups", grouped._replace(quant_mode=DYNAMIC))
    yield Sample("integer bias", Arguments(sums, scales[0], rows, sums[0], quant_mode=DYNAMIC))
    quant = {"quant_scale": smooth[0, :32] / 20, "quant_offset": smooth[1, :32]}
    yield Sample("static", Arguments(values.half(), **quant))
    yield Sample("clamped", Arguments(values.bfloat16(), quant_mode=DYNAMIC, swiglu_mode=INTERLEAVED_CLAMPED))
