# SPDX-License-Identifier: Apache-2.0
"""The published float operators that do in one what a layer does in two or three steps: gates, norms, softmax.

Compositions of torch operators, in float32 and rounded once, so that they run on every device and have gradients.
"""

from __future__ import annotations

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.float_operators import add_rms_norm
from anynpu.compat.published import published

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@published(
    "npu_clipped_swiglu(Tensor x, *, Tensor? group_index=None, int dim=-1, float alpha=1.702, float limit=7.0, "
    "float bias=1.0, bool interleaved=True) -> Tensor",
    "aclnnClippedSwiglu",
)
def npu_clipped_swiglu(
    x: torch.Tensor,
    *,
    group_index: torch.Tensor | None = None,
    dim: int = -1,
    alpha: float = 1.702,
    limit: float = 7.0,
    bias: float = 1.0,
    interleaved: bool = True,
) -> torch.Tensor:
    """``a * sigmoid(alpha * a) * (b + bias)``, a at most ``limit``, b at most that much either way.

    a and b are every other value of the axis ``dim`` and those behind it, taken together, or without ``interleaved``
    its halves. ``group_index`` are counts: rows behind their sum, of the axes before ``dim``, are 0.
    """
    op = "npu_clipped_swiglu"
    require_dtype(op, "x", x, _FLOATS)
    shape = tuple(x.shape)
    fits = len(shape) > 1 and -len(shape) <= dim < len(shape) and shape[dim] % 2 == 0
    require(op, fits, f"dim must be an axis of even size of x, of at least 2 axes, {shape}, got {dim}")
    axis = dim % len(shape)
    flat = x.float().reshape(-1, x.shape[axis:].numel())
    a, b = (flat[:, ::2], flat[:, 1::2]) if interleaved else flat.chunk(2, 1)
    a, b = a.clamp(max=limit), b.clamp(-limit, limit)
    y = a * torch.sigmoid(alpha * a) * (b + bias)
    if group_index is not None:
        require_dtype(op, "group_index", group_index, (torch.int64,))
        rows = torch.arange(flat.shape[0], device=x.device)
        y = torch.where(rows[:, None] < group_index.sum(), y, 0)
    return y.to(x.dtype).reshape(*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])


@published("npu_gelu_mul(Tensor input, *, str approximate='none') -> Tensor", "aclnnGeluMul")
def npu_gelu_mul(input: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """GELU of the first half of the last axis, exact ("none") or by tanh ("tanh"), times the second."""
    op = "npu_gelu_mul"
    require_dtype(op, "input", input, _FLOATS)
    shape = tuple(input.shape)
    require(op, len(shape) > 1 and shape[-1] % 2 == 0, f"the last axis of input must be even, got shape {shape}")
    require(op, approximate in ("none", "tanh"), f"approximate must be 'none' or 'tanh', got {approximate!r}")
    active, other = input.float().chunk(2, -1)
    return (torch.nn.functional.gelu(active, approximate=approximate) * other).to(input.dtype)


def _group_norm_swish(
    op: str, input: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    require_dtype(op, "input", input, _FLOATS)
    shape = tuple(input.shape)
    fits = len(shape) > 1 and groups > 0 and shape[1] % groups == 0 and input.numel() > 0
    require(op, fits, f"axis 1 of input must be a multiple of the {groups} groups, got shape {shape}")
    for name, vector in (("weight", weight), ("bias", bias)):
        require_dtype(op, name, vector, tuple(dict.fromkeys((input.dtype, torch.float32))))
        got = tuple(vector.shape)
        require(op, got == shape[1:2], f"{name} must have shape {shape[1:2]}, got {got}")
    grouped = input.float().reshape(shape[0], groups, -1)
    variance, mean = torch.var_mean(grouped, -1, correction=0, keepdim=True)
    rstd = torch.rsqrt(variance + eps)
    normal = ((grouped - mean) * rstd).reshape(*shape[:2], -1) * weight.float()[:, None] + bias.float()[:, None]
    out = (normal * torch.sigmoid(scale * normal)).reshape(shape)
    return out.to(input.dtype), mean.squeeze(-1).to(weight.dtype), rstd.squeeze(-1).to(weight.dtype)


@published(
    "npu_group_norm_silu(Tensor input, Tensor weight, Tensor bias, int group, float eps=1e-05) "
    "-> (Tensor, Tensor, Tensor)",
    "aclnnGroupNormSiluV2",
)
def npu_group_norm_silu(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, group: int, eps: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """SiLU of the normalised groups of axis 1, and their means and reciprocal deviations (N, group)."""
    return _group_norm_swish("npu_group_norm_silu", input, group, weight, bias, eps, 1.0)


@published(
    "npu_group_norm_swish(Tensor input, int num_groups, Tensor weight, Tensor bias, float? eps=1e-05, "
    "float? swish_scale=1.0) -> (Tensor, Tensor, Tensor)",
    "aclnnGroupNormSwish",
)
def npu_group_norm_swish(
    input: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float | None = 1e-5,
    swish_scale: float | None = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same with ``normal * sigmoid(swish_scale * normal)``."""
    options = (1e-5 if eps is None else eps, 1.0 if swish_scale is None else swish_scale)
    return _group_norm_swish("npu_group_norm_swish", input, num_groups, weight, bias, *options)


@published(
    "npu_add_rms_norm_cast(Tensor x1, Tensor x2, Tensor gamma, float epsilon=1e-06) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "aclnnAddRmsNormCast",
)
def npu_add_rms_norm_cast(
    x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``npu_add_rms_norm`` with its first result in float32 too, in front: of the rounded one."""
    y, rstd, x = add_rms_norm("npu_add_rms_norm_cast", x1, x2, gamma, epsilon)
    rounded = y.to(x.dtype)
    return rounded.float(), rounded, rstd, x


@published(
    "npu_scaled_masked_softmax(Tensor x, Tensor mask, Scalar scale=1, bool fixed_triu_mask=False) -> Tensor",
    "aclnnScaledMaskedSoftmax",
)
def npu_scaled_masked_softmax(
    x: torch.Tensor, mask: torch.Tensor, scale: float = 1, fixed_triu_mask: bool = False
) -> torch.Tensor:
    """``softmax(x * scale)`` over the last axis, without what ``mask`` hides; or with ``fixed_triu_mask`` what lies
    above the diagonal. Rows of which all is hidden are NaN.
    """
    op = "npu_scaled_masked_softmax"
    require_dtype(op, "x", x, _FLOATS)
    require_dtype(op, "mask", mask, (torch.bool,))
    require(op, x.dim() >= 2, f"x must have at least 2 axes, got {x.dim()}")
    if fixed_triu_mask:
        mask = torch.ones(x.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
    pairs = zip(reversed(mask.shape), reversed(x.shape), strict=False)
    fits = mask.dim() <= x.dim() and all(size in (1, whole) for size, whole in pairs)
    require(op, fits, f"mask must broadcast to the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}")
    return (x.float() * scale).masked_fill(mask, -torch.inf).softmax(-1).to(x.dtype)
