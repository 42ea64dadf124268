# SPDX-License-Identifier: Apache-2.0
"""The published float operators that stand beside the quantised ones in a layer: norms, rotary embedding, activations.

Compositions of torch operators, in float32 and rounded once, so that they run on every device and have gradients.
"""

from __future__ import annotations

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.published import published, require_absent

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64)


@published("npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)", "aclnnRmsNorm")
def npu_rms_norm(self: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """``self * rstd * gamma`` in the dtype of ``self``, and ``rstd = rsqrt(mean(self**2) + epsilon)`` in float32.

    ``gamma`` has the shape of the last axes of ``self``, which are normalised and of size 1 in ``rstd``; its dtype is
    that of ``self``, or float32.
    """
    require_dtype("npu_rms_norm", "gamma", gamma, tuple(dict.fromkeys((self.dtype, torch.float32))))
    return _rms_norm("npu_rms_norm", "self", self, gamma, epsilon)


@published(
    "npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, Tensor)",
    "aclnnAddRmsNorm",
)
def npu_add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``npu_rms_norm`` of ``x = x1 + x2``, rounded to their dtype, and ``x``."""
    op = "npu_add_rms_norm"
    for name, tensor in (("x2", x2), ("gamma", gamma)):
        require_dtype(op, name, tensor, (x1.dtype,))
    shapes = tuple(x1.shape), tuple(x2.shape)
    require(op, shapes[0] == shapes[1], f"x2 must have the shape of x1, {shapes[0]}, got {shapes[1]}")
    x = x1 + x2
    return *_rms_norm(op, "x1", x, gamma, epsilon), x


def _rms_norm(
    op: str, name: str, x: torch.Tensor, gamma: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    require_dtype(op, name, x, _FLOATS)
    axes = gamma.dim()
    fits = 1 <= axes <= x.dim() and x.shape[-axes:] == gamma.shape
    shapes = tuple(x.shape), tuple(gamma.shape)
    require(op, fits, f"gamma must have the shape of the last axes of {name}, {shapes[0]}, got {shapes[1]}")
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(list(range(-axes, 0)), keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


@published(
    "npu_rotary_mul(Tensor input, Tensor r1, Tensor r2, str rotary_mode='half', Tensor? rotate=None) -> Tensor",
    "aclnnRotaryPositionEmbedding",
)
def npu_rotary_mul(
    input: torch.Tensor,
    r1: torch.Tensor,
    r2: torch.Tensor,
    rotary_mode: str = "half",
    rotate: torch.Tensor | None = None,
) -> torch.Tensor:
    """``input * r1 + rotated * r2``, with the cosines r1 and sines r2, which broadcast, rounded to the dtype of input.

    ``rotated`` is ``(-second, first)`` of the halves of the last axis ("half") or of each pair in it ("interleave").
    """
    op = "npu_rotary_mul"
    require_absent(rotate=rotate)
    require_dtype(op, "input", input, _FLOATS)
    known = rotary_mode in ("half", "interleave")
    require(op, known, f"The rotary_mode of npu_rotary_mul should be half or interleave, but got {rotary_mode}")
    shape = tuple(input.shape)
    require(op, input.dim() > 0 and shape[-1] % 2 == 0, f"the last axis of input must be even, got shape {shape}")
    for name, factor in (("r1", r1), ("r2", r2)):
        require_dtype(op, name, factor, _FLOATS)
        got = tuple(factor.shape)
        fits = len(got) == len(shape) and got[-1] == shape[-1]
        fits = fits and all(size in (1, axis) for size, axis in zip(got, shape, strict=True))
        require(op, fits, f"{name} must have the last axis of input, {shape}, and its others or 1, got {got}")
    x, r1, r2 = input.float(), r1.to(input.dtype).float(), r2.to(input.dtype).float()
    if rotary_mode == "half":
        first, second = x.chunk(2, -1)
        rotated = torch.cat((-second, first), -1)
    else:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((-second, first), -1).flatten(-2)
    return (x * r1 + rotated * r2).to(input.dtype)


@published("npu_gelu(Tensor self, str approximate='none') -> Tensor", "aclnnGeluV2")
def npu_gelu(self: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """GELU, exact ("none") or with the usual approximation by tanh ("tanh")."""
    require_dtype("npu_gelu", "self", self, _FLOATS)
    known = approximate in ("none", "tanh")
    require("npu_gelu", known, f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return torch.nn.functional.gelu(self.float(), approximate=approximate).to(self.dtype)


@published("npu_fast_gelu(Tensor self) -> Tensor", "aclnnFastGelu")
def npu_fast_gelu(self: torch.Tensor) -> torch.Tensor:
    """``self * sigmoid(1.702 * self)``."""
    return _fast_gelu("npu_fast_gelu", self)


@published("fast_gelu(Tensor self) -> Tensor", "aclnnFastGelu")
def fast_gelu(self: torch.Tensor) -> torch.Tensor:
    """The older name of ``npu_fast_gelu``."""
    return _fast_gelu("fast_gelu", self)


def _fast_gelu(op: str, x: torch.Tensor) -> torch.Tensor:
    require_dtype(op, "self", x, _FLOATS)
    wide = x.float()
    return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)


@published("npu_scatter_nd_update(Tensor input, Tensor indices, Tensor updates) -> Tensor", "aclnnScatterNdUpdate")
def npu_scatter_nd_update(input: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """A copy of ``input`` with ``input[tuple(indices[i])] = updates[i]`` for every i of the leading axes of indices.

    Of two updates of one place either may win.
    """
    return input.index_put(_places("npu_scatter_nd_update", input, indices, updates), updates)


@published(
    "npu_scatter_nd_update_(Tensor(a!) input, Tensor indices, Tensor updates) -> Tensor(a!)", "aclnnScatterNdUpdate"
)
def npu_scatter_nd_update_(input: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> torch.Tensor:
    """``npu_scatter_nd_update`` in place; returns ``input``."""
    return input.index_put_(_places("npu_scatter_nd_update_", input, indices, updates), updates)


def _places(op: str, x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """One index tensor for each of the leading axes of ``x`` that ``indices`` names."""
    require_dtype(op, "indices", indices, _INTEGERS)
    require_dtype(op, "updates", updates, (x.dtype,))
    shape, axes = tuple(x.shape), indices.shape[-1] if indices.dim() else 0
    fits = 1 <= axes <= len(shape)
    require(op, fits, f"the last axis of indices must be 1 to {len(shape)}, got shape {tuple(indices.shape)}")
    expected, got = (*indices.shape[:-1], *shape[axes:]), tuple(updates.shape)
    require(op, expected == got, f"updates must have shape {expected}, got {got}")
    places = indices.long().unbind(-1)
    inside = [(place >= 0) & (place < size) for place, size in zip(places, shape, strict=False)]
    known = torch.stack(inside).all()
    torch._assert_async(known, f"{op}: indices must be at least 0 and less than the sizes of the first {axes} axes")
    return places
