# SPDX-License-Identifier: Apache-2.0
"""The published float operators that stand beside the quantised ones in a layer: norms, rotary embedding, activations.

Compositions of torch operators, in float32 and rounded once, so that they run on every device and have gradients.
"""

from __future__ import annotations

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.published import published

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64)
_HEAD_AXES = {"BSND": 2, "SBND": 2, "BNSD": 1, "TND": 1}


@published("npu_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)", "aclnnRmsNorm")
def npu_rms_norm(self: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """``self * rstd * gamma`` in the dtype of ``self``, and ``rstd = rsqrt(mean(self**2) + epsilon)`` in float32.

    ``gamma`` has the shape of the last axes of ``self``, which are normalised and of size 1 in ``rstd``; its dtype is
    that of ``self``, or float32.
    """
    require_dtype("npu_rms_norm", "gamma", gamma, tuple(dict.fromkeys((self.dtype, torch.float32))))
    y, rstd = rms_norm("npu_rms_norm", "self", self, gamma, epsilon)
    return y.to(self.dtype), rstd


@published(
    "npu_gemma_rms_norm(Tensor self, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor)", "aclnnGemmaRmsNorm"
)
def npu_gemma_rms_norm(
    self: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """``npu_rms_norm`` with ``1 + gamma`` for gamma."""
    require_dtype("npu_gemma_rms_norm", "gamma", gamma, tuple(dict.fromkeys((self.dtype, torch.float32))))
    y, rstd = rms_norm("npu_gemma_rms_norm", "self", self, 1 + gamma.float(), epsilon)
    return y.to(self.dtype), rstd


@published(
    "npu_add_rms_norm(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) -> (Tensor, Tensor, Tensor)",
    "aclnnAddRmsNorm",
)
def npu_add_rms_norm(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``npu_rms_norm`` of ``x = x1 + x2``, rounded to their dtype, and ``x``."""
    y, rstd, x = add_rms_norm("npu_add_rms_norm", x1, x2, gamma, epsilon)
    return y.to(x.dtype), rstd, x


def add_rms_norm(
    op: str, x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``rms_norm`` of ``x = x1 + x2``, rounded to their dtype, and ``x``."""
    for name, tensor in (("x2", x2), ("gamma", gamma)):
        require_dtype(op, name, tensor, (x1.dtype,))
    shapes = tuple(x1.shape), tuple(x2.shape)
    require(op, shapes[0] == shapes[1], f"x2 must have the shape of x1, {shapes[0]}, got {shapes[1]}")
    x = x1 + x2
    return *rms_norm(op, "x1", x, gamma, epsilon), x


def rms_norm(
    op: str, name: str, x: torch.Tensor, gamma: torch.Tensor, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """``x * rstd * gamma`` and ``rstd``, both in float32."""
    require_dtype(op, name, x, _FLOATS)
    axes = gamma.dim()
    fits = 1 <= axes <= x.dim() and x.shape[-axes:] == gamma.shape
    shapes = tuple(x.shape), tuple(gamma.shape)
    require(op, fits, f"gamma must have the shape of the last axes of {name}, {shapes[0]}, got {shapes[1]}")
    wide = x.float()
    rstd = torch.rsqrt(wide.square().mean(list(range(-axes, 0)), keepdim=True) + epsilon)
    return wide * rstd * gamma.float(), rstd


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

    ``rotated`` is ``(-second, first)`` of the halves of the last axis ("half") or of each pair in it ("interleave"), or
    ``input @ rotate``.
    """
    return _rotary_mul("npu_rotary_mul", "input", input, {"r1": r1, "r2": r2}, rotary_mode, rotate)


def _rotary_mul(
    op: str,
    name: str,
    x: torch.Tensor,
    factors: dict[str, torch.Tensor],
    rotary_mode: str,
    rotate: torch.Tensor | None = None,
) -> torch.Tensor:
    require_dtype(op, name, x, _FLOATS)
    known = rotary_mode in ("half", "interleave")
    require(op, known, f"The rotary_mode of {op} should be half or interleave, but got {rotary_mode}")
    shape = tuple(x.shape)
    require(op, x.dim() > 0 and shape[-1] % 2 == 0, f"the last axis of {name} must be even, got shape {shape}")
    for factor_name, factor in factors.items():
        require_dtype(op, factor_name, factor, _FLOATS)
        got = tuple(factor.shape)
        fits = len(got) == len(shape) and got[-1] == shape[-1]
        fits = fits and all(size in (1, axis) for size, axis in zip(got, shape, strict=True))
        require(op, fits, f"{factor_name} must have the last axis of {name}, {shape}, and its others or 1, got {got}")
    cos, sin = (factor.to(x.dtype).float() for factor in factors.values())
    wide = x.float()
    if rotate is not None:
        require_dtype(op, "rotate", rotate, _FLOATS)
        expected, got = (shape[-1], shape[-1]), tuple(rotate.shape)
        require(op, expected == got, f"rotate must have shape {expected}, got {got}")
        rotated = wide @ rotate.float()
    elif rotary_mode == "half":
        rotated = _rotated_halves(wide)
    else:
        first, second = wide.unflatten(-1, (-1, 2)).unbind(-1)
        rotated = torch.stack((-second, first), -1).flatten(-2)
    return (wide * cos + rotated * sin).to(x.dtype)


def _rotated_halves(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


@published(
    "npu_apply_rotary_pos_emb(Tensor(a!) query, Tensor(b!) key, Tensor cos, Tensor sin, str layout='BSND', "
    "str rotary_mode='half') -> (Tensor(a!), Tensor(b!))",
    "aclnnApplyRotaryPosEmbV2",
)
def npu_apply_rotary_pos_emb(
    query: torch.Tensor,
    key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    layout: str = "BSND",
    rotary_mode: str = "half",
) -> tuple[torch.Tensor, torch.Tensor]:
    """``npu_rotary_mul`` of query and key, in place; returns them. The axis N of cos and sin is 1."""
    op = "npu_apply_rotary_pos_emb"
    require(op, layout in _HEAD_AXES, f"layout must be one of {', '.join(_HEAD_AXES)}, got {layout!r}")
    if rotary_mode == "quarter":
        raise NotImplementedError("rotary_mode must be half or interleave, quarter is not implemented")
    for name, tensor in (("query", query), ("key", key), ("cos", cos), ("sin", sin)):
        axes, got = len(layout), tensor.dim()
        require(op, got == axes, f"{name} must have {axes} axes in layout {layout}, got {got}")
    for name, factor in (("cos", cos), ("sin", sin)):
        heads = factor.shape[_HEAD_AXES[layout]]
        require(op, heads == 1, f"the axis N of {name} must be 1, got {heads}")
    factors = {"cos": cos, "sin": sin}
    turned = [_rotary_mul(op, n, x, factors, rotary_mode) for n, x in (("query", query), ("key", key))]
    return query.copy_(turned[0]), key.copy_(turned[1])


@published("npu_interleave_rope(Tensor x, Tensor cos, Tensor sin) -> Tensor", "aclnnInterleaveRope")
def npu_interleave_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The even values of the last axis, then the odd ones, rotated as by ``npu_rotary_mul`` with mode half."""
    return interleaved_rope("npu_interleave_rope", "x", x, cos, sin).to(x.dtype)


def interleaved_rope(op: str, name: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """``npu_interleave_rope`` in float32."""
    require_dtype(op, name, x, _FLOATS)
    shape = tuple(x.shape)
    require(op, len(shape) == 4 and shape[-1] % 2 == 0, f"{name} must have 4 axes, the last of them even, got {shape}")
    for factor_name, factor in (("cos", cos), ("sin", sin)):
        require_dtype(op, factor_name, factor, (x.dtype,))
        got = tuple(factor.shape)
        fits = len(got) == 4 and all(size in (1, axis) for size, axis in zip(got[:3], shape[:3], strict=True))
        fits = fits and got[3] == shape[3]
        require(op, fits, f"{factor_name} must have the last axis of {name}, {shape}, and its others or 1, got {got}")
    sorted_pairs = x.float().unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return sorted_pairs * cos.float() + _rotated_halves(sorted_pairs) * sin.float()


@published("npu_gelu(Tensor self, str approximate='none') -> Tensor", "aclnnGeluV2")
def npu_gelu(self: torch.Tensor, approximate: str = "none") -> torch.Tensor:
    """GELU, exact ("none") or with the usual approximation by tanh ("tanh")."""
    require_dtype("npu_gelu", "self", self, _FLOATS)
    known = approximate in ("none", "tanh")
    require("npu_gelu", known, f"approximate must be 'none' or 'tanh', got {approximate!r}")
    return torch.nn.functional.gelu(self.float(), approximate=approximate).to(self.dtype)


@published("npu_silu(Tensor self) -> Tensor", "aclnnSilu")
def npu_silu(self: torch.Tensor) -> torch.Tensor:
    """``self * sigmoid(self)``."""
    require_dtype("npu_silu", "self", self, _FLOATS)
    return torch.nn.functional.silu(self.float()).to(self.dtype)


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


@published(
    "npu_geglu(Tensor self, int dim=-1, int approximate=1, bool activate_left=False) -> (Tensor, Tensor)",
    "aclnnGeGluV3",
)
def npu_geglu(
    self: torch.Tensor, dim: int = -1, approximate: int = 1, activate_left: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """One half of the axis ``dim`` times GELU of the other, and that GELU: of the second half, or ``activate_left``.

    ``approximate`` 0: exact, 1: by tanh.
    """
    op = "npu_geglu"
    require_dtype(op, "self", self, _FLOATS)
    require(op, approximate in (0, 1), f"approximate must be 0 or 1, got {approximate}")
    shape = tuple(self.shape)
    fits = -len(shape) <= dim < len(shape) and shape[dim] % 2 == 0
    require(op, fits, f"dim must be an axis of self of even size, {shape}, got {dim}")
    left, right = self.float().chunk(2, dim)
    active, other = (left, right) if activate_left else (right, left)
    gelu = torch.nn.functional.gelu(active, approximate="tanh" if approximate else "none")
    return (other * gelu).to(self.dtype), gelu.to(self.dtype)


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
