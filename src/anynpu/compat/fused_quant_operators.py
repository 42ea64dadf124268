# SPDX-License-Identifier: Apache-2.0
"""The published operators that fuse a quantiser with what stands before it: the same operators one after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import anynpu
from anynpu._check import require, require_dtype
from anynpu.compat.float_operators import add_rms_norm
from anynpu.compat.published import Dtype, published, require_absent, torch_dtype

Tensors = Sequence[torch.Tensor]


@published(
    "npu_grouped_matmul_swiglu_quant(Tensor x, Tensor weight, Tensor group_list, Tensor weight_scale, Tensor x_scale, "
    "*, Tensor? bias=None, Tensor? offset=None) -> (Tensor, Tensor, Tensor)",
    "aclnnGroupedMatmulSwigluQuant",
)
def npu_grouped_matmul_swiglu_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    group_list: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``grouped_matmul`` and ``dequant_swiglu_quant`` of int8; the left half is activated, ``group_list`` cumulative.

    ``bias`` belongs to int4 weights (A8W4), as in ``grouped_matmul_combine``. Rows behind the last group are 0, and so
    is the third result.
    """
    require_absent(offset=offset)
    y, scale = _grouped_swiglu_quant(x, weight, group_list, weight_scale, x_scale, bias, 0)
    return y, scale, scale.new_zeros(())


@published(
    "npu_grouped_matmul_swiglu_quant_v2(Tensor x, Tensor[] weight, Tensor[] weight_scale, Tensor x_scale, "
    "Tensor group_list, *, Tensor? smooth_scale=None, Tensor[]? weight_assist_matrix=None, Tensor? bias=None, "
    "int? dequant_mode=0, int? dequant_dtype=6, int? quant_mode=0, int? quant_dtype=1, int? group_list_type=0, "
    "int[]? tuning_config=None, int? x_dtype=None, int? weight_dtype=None, int? weight_scale_dtype=None, "
    "int? x_scale_dtype=None) -> (Tensor, Tensor)",
    "aclnnGroupedMatmulSwigluQuantV2",
)
def _grouped_matmul_swiglu_quant_v2(
    x: torch.Tensor,
    weight: Tensors,
    weight_scale: Tensors,
    x_scale: torch.Tensor,
    group_list: torch.Tensor,
    *,
    smooth_scale: torch.Tensor | None = None,
    weight_assist_matrix: Tensors | None = None,
    bias: torch.Tensor | None = None,
    dequant_mode: int | None = 0,
    dequant_dtype: Dtype | None = 6,
    quant_mode: int | None = 0,
    quant_dtype: Dtype | None = 1,
    group_list_type: int | None = 0,
    tuning_config: Sequence[int] | None = None,
    x_dtype: Dtype | None = None,
    weight_dtype: Dtype | None = None,
    weight_scale_dtype: Dtype | None = None,
    x_scale_dtype: Dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    groups = weight_scale[0].dim() == 3 if weight_scale else False
    require_absent(
        smooth_scale=smooth_scale, bias=bias, dequant_mode=None if dequant_mode in (None, 0, groups) else dequant_mode,
        dequant_dtype=None if dequant_dtype in (None, 0, 6, torch.float32) else dequant_dtype,
        quant_mode=quant_mode or None, quant_dtype=None if quant_dtype in (None, 0, 1, torch.int8) else quant_dtype,
        x_dtype=x_dtype, weight_dtype=weight_dtype, weight_scale_dtype=weight_scale_dtype, x_scale_dtype=x_scale_dtype,
    )  # fmt: skip
    if len(weight) != 1 or len(weight_scale) != 1:
        raise ValueError(f"weight and weight_scale must be lists of one tensor, got {len(weight)}, {len(weight_scale)}")
    bias_of_int4 = None if weight_assist_matrix is None else weight_assist_matrix[0]
    return _grouped_swiglu_quant(x, weight[0], group_list, weight_scale[0], x_scale, bias_of_int4, group_list_type or 0)


def npu_grouped_matmul_swiglu_quant_v2(
    x: torch.Tensor,
    weight: Tensors | torch.Tensor,
    weight_scale: Tensors | torch.Tensor,
    x_scale: torch.Tensor,
    group_list: torch.Tensor,
    **options: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``npu_grouped_matmul_swiglu_quant`` with counts on request (``group_list_type`` 1).

    ``weight`` and ``weight_scale`` are lists of one tensor, or that tensor; ``weight_assist_matrix`` is a list of its
    bias.
    """
    listed = ([value] if isinstance(value, torch.Tensor) else value for value in (weight, weight_scale))
    return _grouped_matmul_swiglu_quant_v2(x, *listed, x_scale, group_list, **options)


def _grouped_swiglu_quant(
    x: torch.Tensor,
    weight: torch.Tensor,
    group_list: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    bias: torch.Tensor | None,
    group_list_type: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    if group_list_type not in (0, 1):
        raise ValueError(f"group_list_type must be 0 or 1, got {group_list_type}")
    if weight.dim() == 5:  # FRACTAL_NZ spelled out: (E, N / 32, K / 16, 16, 32), in words (E, N / 64, K / 16, 16, 8)
        weight = weight.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
    if weight.dtype == torch.int32:
        if bias is None:
            raise ValueError("int4 weights (A8W4) need their bias (weight_assist_matrix)")
        scale = weight_scale if weight_scale.dim() == 3 else weight_scale.unsqueeze(1)
        product = anynpu.grouped_matmul_combine(
            x, weight, scale, group_list, torch.arange(x.shape[0], device=x.device), bias, pertoken_scale=x_scale,
            group_list_type=group_list_type,
        )  # fmt: skip
        return anynpu.dynamic_quant(anynpu.swiglu(product))
    if bias is not None:
        raise ValueError("a bias is for int4 weights (A8W4), these are int8")
    (product,) = anynpu.grouped_matmul(
        [x], [weight], group_list=group_list, split_item=3, group_type=0, group_list_type=group_list_type,
        output_dtype=torch.int32,
    )  # fmt: skip
    counts = group_list if group_list_type else group_list.diff(prepend=group_list.new_zeros(1))
    return anynpu.dequant_swiglu_quant(
        product, weight_scale=weight_scale.float(), activation_scale=x_scale, group_index=counts, activate_left=True,
        quant_mode=1,
    )  # fmt: skip


@published(
    "npu_dequant_bias(Tensor x, Tensor weight_scale, Tensor? activation_scale, Tensor? bias, *, "
    "ScalarType? output_dtype=None) -> Tensor",
    "aclnnDequantBias",
)
def npu_dequant_bias(
    x: torch.Tensor,
    weight_scale: torch.Tensor,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    output_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``(x + bias) * weight_scale * activation_scale`` of int32 products x; a float bias is added last."""
    op = "npu_dequant_bias"
    dtype = torch.float16 if output_dtype is None else torch_dtype("output_dtype", output_dtype)
    known = dtype in (torch.float16, torch.bfloat16)
    require(op, known, f"Only supported output_dtype is float16 and bfloat16, got {dtype}")
    require_dtype(op, "x", x, (torch.int32,))
    require_dtype(op, "weight_scale", weight_scale, (torch.float32, torch.bfloat16))
    require(op, x.dim() == 2, f"x must have 2 axes, got {x.dim()}")
    for name, vector, size in (
        ("weight_scale", weight_scale, 1),
        ("activation_scale", activation_scale, 0),
        ("bias", bias, 1),
    ):
        if vector is not None:
            expected, got = (x.shape[size],), tuple(vector.shape)
            require(op, expected == got, f"{name} must have shape {expected}, got {got}")
    if activation_scale is not None:
        require_dtype(op, "activation_scale", activation_scale, (torch.float32,))
    if bias is not None:
        require_dtype(op, "bias", bias, (torch.int32, torch.float32, torch.float16, torch.bfloat16))
    integer = bias is not None and bias.dtype == torch.int32
    y = (x + bias if integer else x).float() * weight_scale.float()
    if activation_scale is not None:
        y = y * activation_scale[:, None]
    return (y if bias is None or integer else y + bias.float()).to(dtype)


@published(
    "npu_add_rms_norm_quant(Tensor x1, Tensor x2, Tensor gamma, Tensor scales1, Tensor? zero_points1=None, "
    "Tensor? beta=None, Tensor? scales2=None, Tensor? zero_points2=None, *, int axis=-1, float epsilon=1e-06, "
    "bool div_mode=True, int? dst_type=None) -> (Tensor, Tensor, Tensor)",
    "aclnnAddRmsNormQuant",
)
def npu_add_rms_norm_quant(
    x1: torch.Tensor,
    x2: torch.Tensor,
    gamma: torch.Tensor,
    scales1: torch.Tensor,
    zero_points1: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    scales2: torch.Tensor | None = None,
    zero_points2: torch.Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-6,
    div_mode: bool = True,
    dst_type: Dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int8 codes of ``x * rstd * gamma + beta`` for ``x = x1 + x2``, with one or two sets of scales, and x.

    The codes are ``round(y / scales + zero_points)``, or the product without ``div_mode``; the second are 0 without
    ``scales2``.
    """
    op = "npu_add_rms_norm_quant"
    require(op, axis == -1, f"axis should be -1, but got {axis}")
    if dst_type is not None and torch_dtype("dst_type", dst_type) not in (torch.int8, torch.qint8):
        raise NotImplementedError(f"dst_type must be int8, got {dst_type}")
    for name, vector in (
        ("beta", beta),
        ("scales1", scales1),
        ("zero_points1", zero_points1),
        ("scales2", scales2),
        ("zero_points2", zero_points2),
    ):
        if vector is not None:
            expected, got = tuple(gamma.shape), tuple(vector.shape)
            require(op, expected == got, f"{name} must have the shape of gamma, {expected}, got {got}")
    y, _, x = add_rms_norm(op, x1, x2, gamma, epsilon)
    if beta is not None:
        y = y + beta.float()

    def codes(scales: torch.Tensor, zero_points: torch.Tensor | None) -> torch.Tensor:
        require_dtype(op, "scales", scales, (torch.float32, torch.bfloat16, torch.float16))
        scaled = y / scales.float() if div_mode else y * scales.float()
        shifted = scaled if zero_points is None else scaled + zero_points.float()
        return shifted.round().clamp(-128, 127).to(torch.int8)

    first = codes(scales1, zero_points1)
    return first, torch.zeros_like(first) if scales2 is None else codes(scales2, zero_points2), x


@published(
    "npu_add_rms_norm_dynamic_quant(Tensor x1, Tensor x2, Tensor gamma, *, Tensor? smooth_scale1=None, "
    "Tensor? smooth_scale2=None, Tensor? beta=None, float epsilon=1e-06, bool[2] output_mask=[]) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "aclnnAddRmsNormDynamicQuantV2",
)
def npu_add_rms_norm_dynamic_quant(
    x1: torch.Tensor,
    x2: torch.Tensor,
    gamma: torch.Tensor,
    *,
    smooth_scale1: torch.Tensor | None = None,
    smooth_scale2: torch.Tensor | None = None,
    beta: torch.Tensor | None = None,
    epsilon: float = 1e-6,
    output_mask: Sequence[bool] = (),
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """int8 codes of ``y = x * rstd * gamma + beta`` for ``x = x1 + x2``, twice, x, and the scales of the codes.

    Of each row ``scale = max(abs(y * smooth_scale)) / 127`` in float32. ``output_mask`` says which of the two are
    wanted, by default the first, and the second with ``smooth_scale2``; what is not wanted is empty.
    """
    op = "npu_add_rms_norm_dynamic_quant"
    wanted = list(output_mask) or [True, smooth_scale2 is not None]
    require(op, len(wanted) == 2, f"output_mask must have 2 entries, got {len(wanted)}")
    smooth = {"smooth_scale1": smooth_scale1, "smooth_scale2": smooth_scale2}
    for name, vector in (*smooth.items(), ("beta", beta)):
        if vector is not None:
            require_dtype(op, name, vector, (x1.dtype,))
            expected, got = tuple(gamma.shape), tuple(vector.shape)
            require(op, expected == got, f"{name} must have the shape of gamma, {expected}, got {got}")
    require(op, gamma.dim() == 1, f"gamma must have 1 axis, got {gamma.dim()}")
    require(op, gamma.numel() > 0, "gamma must not be empty")
    y, _, x = add_rms_norm(op, x1, x2, gamma, epsilon)
    if beta is not None:
        y = y + beta.float()
    results = [
        _dynamic_codes(y if scale is None else y * scale.float()) if given else (y.new_empty(0).char(), y.new_empty(0))
        for scale, given in zip(smooth.values(), wanted, strict=True)
    ]
    return results[0][0], results[1][0], x, results[0][1], results[1][1]


def _dynamic_codes(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = y.abs().amax(-1, keepdim=True) / 127
    codes = (y / scale.masked_fill(scale == 0, 1)).round().clamp(-128, 127).to(torch.int8)
    return codes, scale.squeeze(-1)


@published(
    "npu_dynamic_quant_asymmetric(Tensor x, *, Tensor? smooth_scales=None, Tensor? group_index=None, "
    'int? dst_type=None, str quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor, Tensor)',
    "aclnnDynamicQuantV3",
)
def npu_dynamic_quant_asymmetric(
    x: torch.Tensor,
    *,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    dst_type: Dtype | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes ``round(x / scale + offset)`` with ``scale = (max - min) / (high - low)``, ``offset = high - max / scale``.

    One scale and offset for each row of the last axis, in float32; all are 0 for a row of one value.
    """
    op = "npu_dynamic_quant_asymmetric"
    require_absent(dst_type_max=dst_type_max or None, quant_mode=None if quant_mode == "pertoken" else quant_mode)
    dtype = torch.int8 if dst_type is None else torch_dtype("dst_type", dst_type)
    require(op, dtype in (torch.int8, torch.qint8, torch.quint4x2), f"dst_type must be int8 or quint4x2, got {dtype}")
    require_dtype(op, "x", x, (torch.float16, torch.bfloat16, torch.float32))
    require(op, x.dim() > 1, f"Input shape dim should be greater than 1, got {x.dim()}")
    require(op, x.shape[-1] > 0, f"the last axis of x must not be empty, got shape {tuple(x.shape)}")
    low, high = (-8, 7) if dtype == torch.quint4x2 else (-128, 127)
    values = _smoothed(op, x, smooth_scales, group_index)
    greatest = values.amax(-1, keepdim=True)
    scale = (greatest - values.amin(-1, keepdim=True)) / (high - low)
    flat = scale == 0
    divisor = scale.masked_fill(flat, 1)
    offset = (high - greatest / divisor).masked_fill(flat, 0)
    codes = (values / divisor + offset).round().clamp(low, high).masked_fill(flat, 0)
    if dtype != torch.quint4x2:
        return codes.to(torch.int8), scale.squeeze(-1), offset.squeeze(-1)
    return _packed(op, codes), scale.squeeze(-1), offset.squeeze(-1)


def _packed(op: str, codes: torch.Tensor) -> torch.Tensor:
    """Eight int4 of the last axis in an int32."""
    fits = codes.shape[-1] % 8 == 0
    require(op, fits, f"Input shape last dim must be divded by 8 when int4 quantization, got {codes.shape[-1]}")
    return anynpu.int4_pack(codes.int().flatten(0, -2)).unflatten(0, codes.shape[:-1])


@published(
    "npu_kronecker_quant(Tensor x, Tensor kronecker_p1, Tensor kronecker_p2, float? clip_ratio=None, "
    "int? dst_dtype=None) -> (Tensor, Tensor)",
    "aclnnFlatQuant",
)
def npu_kronecker_quant(
    x: torch.Tensor,
    kronecker_p1: torch.Tensor,
    kronecker_p2: torch.Tensor,
    clip_ratio: float | None = None,
    dst_dtype: Dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """int4 codes ``round(y / scale)`` of ``y = kronecker_p1 @ x @ kronecker_p2``, eight in an int32.

    x is (T, M, N); each token has a scale, ``max(abs(y)) * clip_ratio / 7``. In float32; codes are saturated.
    """
    op = "npu_kronecker_quant"
    dtype = torch.int32 if dst_dtype is None else torch_dtype("dst_dtype", dst_dtype)
    require(op, dtype in (torch.int32, torch.quint4x2), f"dst_dtype must be int32 (eight int4), got {dtype}")
    require_dtype(op, "x", x, (torch.float16, torch.bfloat16))
    require(op, x.dim() == 3, f"x must have shape (T, M, N), got {tuple(x.shape)}")
    require(op, x.shape[1:].numel() > 0, f"M and N of x must be at least 1, got shape {tuple(x.shape)}")
    for name, factor, size in (("kronecker_p1", kronecker_p1, x.shape[1]), ("kronecker_p2", kronecker_p2, x.shape[2])):
        require_dtype(op, name, factor, (x.dtype,))
        expected, got = (size, size), tuple(factor.shape)
        require(op, expected == got, f"{name} must have shape {expected}, got {got}")
    ratio = 1.0 if clip_ratio is None else clip_ratio
    require(op, 0 < ratio <= 1, f"clip_ratio must be in (0, 1], got {ratio}")
    y = kronecker_p1.float() @ (x.float() @ kronecker_p2.float())
    scale = y.abs().amax((1, 2)) * (ratio / 7)
    divisor = scale.masked_fill(scale == 0, 1)[:, None, None]
    return _packed(op, (y / divisor).round().clamp(-8, 7)), scale


def _smoothed(
    op: str, x: torch.Tensor, smooth_scales: torch.Tensor | None, group_index: torch.Tensor | None
) -> torch.Tensor:
    """x in float32, times the smoothing scales of its rows; ``group_index`` are the ends of the groups of rows."""
    if smooth_scales is None:
        require(op, group_index is None, "group_index needs smooth_scales")
        return x.float()
    require_dtype(op, "smooth_scales", smooth_scales, (x.dtype,))
    leading = () if group_index is None else tuple(group_index.shape)
    expected, got = (*leading, x.shape[-1]), tuple(smooth_scales.shape)
    require(op, len(leading) < 2 and expected == got, f"smooth_scales must have shape {expected}, got {got}")
    if group_index is None:
        return x.float() * smooth_scales.float()
    rows = x.shape[:-1].numel()
    require(op, group_index.numel() > 0, "group_index must not be empty")
    ascending = (group_index.diff() >= 0).all() & (group_index[0] >= 0) & (group_index[-1] == rows)
    torch._assert_async(ascending, f"{op}: group_index must be ends of groups in ascending order, the last {rows}")
    group = torch.searchsorted(group_index, torch.arange(rows, dtype=group_index.dtype, device=x.device), right=True)
    return x.float() * smooth_scales.float()[group].view(x.shape)
