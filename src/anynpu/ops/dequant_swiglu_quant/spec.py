# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of dequant_swiglu_quant."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

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


def _require_attributes(quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias) -> None:
    require(OP, quant_mode in (STATIC, DYNAMIC), f"quant_mode only support 0 or 1, but got {quant_mode}")
    require(OP, swiglu_mode in (0, 1, 2), f"swiglu_mode only support 0, 1 or 2, but got {swiglu_mode}")
    positive = 0 < clamp_limit < math.inf
    require(OP, positive, f"clamp_limit should be positive finite, got {clamp_limit}")
    require(OP, math.isfinite(glu_alpha), f"glu_alpha should be finite, got {glu_alpha}")
    require(OP, math.isfinite(glu_bias), f"glu_bias should be finite, got {glu_bias}")


def _require_groups(group_index, bias, quant_offset) -> int:
    if group_index is None:
        return 1
    require_dtype(OP, "group_index", group_index, (torch.int64,))
    shape = tuple(group_index.shape)
    require(OP, len(shape) == 1 and shape[0] >= 1, f"group_index must have shape (G,), got {shape}")
    absent = bias is None and quant_offset is None
    require(OP, absent, "bias and quant_offset must be absent with group_index")
    return shape[0]


def _by_group(tensor: torch.Tensor, groups: int, length: int) -> bool:
    if tensor.dim() == 1:
        return groups == 1 and tensor.shape[0] == length
    return tensor.dim() == 2 and tensor.shape[0] == groups and tensor.shape[1] == length


def _require_dequantization(x, weight_scale, activation_scale, bias, groups) -> None:
    width = x.shape[-1]
    require(OP, x.dtype != torch.int32 or weight_scale is not None, "int32 x needs weight_scale")
    if weight_scale is not None:
        require_dtype(OP, "weight_scale", weight_scale, (torch.float32,))
        expected = f"(G, 2 H) = ({groups}, {width})"
        fits = _by_group(weight_scale, groups, width)
        require(OP, fits, f"weight_scale must have shape {expected}, got {tuple(weight_scale.shape)}")
    if activation_scale is not None:
        require_dtype(OP, "activation_scale", activation_scale, (torch.float32,))
        rows, shape = math.prod(x.shape[:-1]), tuple(activation_scale.shape)
        fits = math.prod(shape) == rows
        require(OP, fits, f"activation_scale must have a value for each of {rows} rows, got {shape}")
    if bias is not None:
        require_dtype(OP, "bias", bias, (torch.int32, *_FLOATS))
        fits = _by_group(bias, groups, width)
        require(OP, fits, f"bias must have shape (2 H,) = ({width},), got {tuple(bias.shape)}")


def _require_quantization(name: str, tensor: torch.Tensor | None, quant_mode: int, groups: int, length: int) -> None:
    if tensor is None:
        return
    require_dtype(OP, name, tensor, _FLOATS if quant_mode == DYNAMIC else _FLOATS[:1])
    one_each = tensor.dim() == 1 and tensor.shape[0] == groups
    expected = f"(G, H) = ({groups}, {length}) or (G,)"
    fits = one_each or _by_group(tensor, groups, length)
    require(OP, fits, f"{name} must have shape {expected}, got {tuple(tensor.shape)}")


def output_shapes(
    x, weight_scale, activation_scale, bias, quant_scale, quant_offset, group_index,
    activate_left, quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias,
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Checks everything that does not need data; returns the shapes of y and scale."""
    require_dtype(OP, "x", x, (torch.int32, *_FLOATS))
    require(OP, x.dim() > 1, f"x dim should larger than 1, got {x.dim()}")
    require(OP, x.shape[-1] % 2 == 0, f"x last dim should be even, got {x.shape[-1]}")
    _require_attributes(quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias)
    groups = _require_groups(group_index, bias, quant_offset)
    _require_dequantization(x, weight_scale, activation_scale, bias, groups)
    leading, length = list(x.shape[:-1]), x.shape[-1] // 2
    absent = quant_mode == STATIC or quant_offset is None
    require(OP, absent, "quant_offset must be absent in dynamic mode")
    _require_quantization("quant_scale", quant_scale, quant_mode, groups, length)
    _require_quantization("quant_offset", quant_offset, quant_mode, groups, length)
    return [*leading, length], leading


def fake(
    x, weight_scale=None, activation_scale=None, bias=None, quant_scale=None, quant_offset=None, group_index=None,
    activate_left=False, quant_mode=0, swiglu_mode=0, clamp_limit=7.0, glu_alpha=1.702, glu_bias=1.0,
):  # fmt: skip
    """Fake kernel."""
    shape, scale = output_shapes(
        x, weight_scale, activation_scale, bias, quant_scale, quant_offset, group_index,
        activate_left, quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias,
    )  # fmt: skip
    return x.new_empty(shape, dtype=torch.int8), x.new_empty(scale, dtype=torch.float32)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randint(-(2**15), 2**15, (13, 130), generator=generator, dtype=torch.int32)
    scales = torch.rand(3, 130, generator=generator) * 2e-4
    rows = torch.rand(13, generator=generator) + 0.5
    smooth = torch.rand(3, 65, generator=generator) + 0.5
    counts = torch.tensor([4, 0, 7])
    values = torch.randn(5, 64, generator=generator)
    yield Sample("groups", (sums, scales, rows, None, smooth, None, counts, True, DYNAMIC))
    yield Sample("integer bias", (sums, scales[0], rows, sums[0], None, None, None, False, DYNAMIC))
    yield Sample("static", (values.half(), None, None, None, smooth[0, :32] / 20, smooth[1, :32]))
    yield Sample("clamped", (values.bfloat16(), *[None] * 6, False, DYNAMIC, INTERLEAVED_CLAMPED))
