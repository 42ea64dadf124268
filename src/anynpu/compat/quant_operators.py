# SPDX-License-Identifier: Apache-2.0
"""The published operators that quantise, and the products of quantised matrices, under their published names."""

from __future__ import annotations

from typing import Any

import torch

import anynpu
from anynpu._check import dtype_name, require_dtype
from anynpu._strict import check_weight_quant_matmul_nz_limits, strict_soc
from anynpu.compat import formats
from anynpu.compat.device import mark
from anynpu.compat.errors import PARAM_INVALID, RUNTIME_ERROR
from anynpu.compat.formats import Format
from anynpu.compat.published import INT4, Dtype, published, require_absent, require_weight_dtype, torch_dtype
from anynpu.ops.compressed_matmul import spec as compressed_matmul
from anynpu.ops.dynamic_quant import spec as dynamic_quant
from anynpu.ops.int4_pack.spec import pack_shape
from anynpu.ops.weight_quant_matmul.spec import MATMUL as _MATMUL
from anynpu.ops.weight_quant_matmul.spec import Arguments, is_transposed, matmul_result, matrix_shape


def _pack_code(weight: torch.Tensor, **options: Any) -> int:
    try:
        pack_shape(weight, torch.int32)
    except (TypeError, ValueError):
        return PARAM_INVALID
    return RUNTIME_ERROR  # everything but the data was fine


@published(
    "npu_convert_weight_to_int4pack(Tensor weight, int inner_k_tiles=0) -> Tensor",
    "aclnnConvertWeightToINT4Pack",
    _pack_code,
)
def npu_convert_weight_to_int4pack(weight: torch.Tensor, inner_k_tiles: int = 0) -> torch.Tensor:
    """Packs int4 values, held in int32, eight to an int32; see :func:`anynpu.int4_pack`.

    ``inner_k_tiles`` is reserved. The result is in FRACTAL_NZ when ``weight`` is.
    """
    if weight.dtype != torch.int32:
        got = dtype_name(weight.dtype)
        raise TypeError(
            f"int4_pack: weight must be int32, got {got}: weight dtype only support int32 and float32, but it is {got} "
            "(float32, which holds float4 values, is not implemented by anynpu)"
        )
    packed = mark(anynpu.int4_pack(weight))
    return formats.set_format(packed, Format.FRACTAL_NZ) if formats.is_nz(weight) else packed


@published(
    "npu_weight_quant_batchmatmul(Tensor x, Tensor weight, Tensor antiquant_scale, Tensor? antiquant_offset=None, "
    "Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? bias=None, SymInt antiquant_group_size=0, "
    "int inner_precise=0, int? weight_dtype=None) -> Tensor",
    "aclnnWeightQuantBatchMatmulV2",
)
def npu_weight_quant_batchmatmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    antiquant_scale: torch.Tensor,
    antiquant_offset: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    antiquant_group_size: int = 0,
    inner_precise: int = 0,
    weight_dtype: Dtype | None = None,
) -> torch.Tensor:
    """``x @ ((weight + antiquant_offset) * antiquant_scale) + bias``; see :func:`anynpu.weight_quant_matmul`.

    A weight in FRACTAL_NZ is prepacked at its first use.
    """
    require_weight_dtype(weight, weight_dtype)
    rest = (antiquant_scale, antiquant_offset, bias, quant_scale, quant_offset, antiquant_group_size, inner_precise)
    if formats.is_nz(weight):
        if strict_soc() is not None:
            _check_nz_limits(Arguments(x, weight, *rest))
        if _can_prepack(x, weight):
            prepacked = formats.prepacked(weight, _prepack)
            k, n = prepacked.matrix_shape
            if k == x.shape[-1]:
                return anynpu.weight_quant_matmul(x, prepacked.packed, *rest, n)
    return anynpu.weight_quant_matmul(x, weight, *rest)


def _can_prepack(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or weight.dtype not in (torch.int8, torch.int32):
        return False
    # Batches are not prepacked; with an axis of size 1, x has a say in what the layout is.
    if not (weight.dim() == x.dim() == 2 and min(weight.shape) > 1):
        return False
    return weight.is_contiguous() or weight.t().is_contiguous()  # else the bytes from its address on are not its own


def _prepack(weight: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    return anynpu.weight_quant_prepack(weight), matrix_shape(_MATMUL, weight)


def _check_nz_limits(a: Arguments) -> None:
    shape, _ = matmul_result(a)
    check_weight_quant_matmul_nz_limits(
        a.x.shape[-1],
        shape[-1],
        int4=a.weight.dtype == torch.int32,
        transposed=is_transposed(a.weight, a.x.shape[-1]),
        per_channel=a.scale.numel() > 1,
        group_size=a.group_size,
        quant_scale=a.quant_scale is not None,
    )


@published(
    "npu_quant_matmul(Tensor x1, Tensor x2, Tensor scale, *, Tensor? offset=None, Tensor? pertoken_scale=None, "
    "Tensor? bias=None, int? output_dtype=None, int? x1_dtype=None, int? x2_dtype=None, "
    "int? pertoken_scale_dtype=None, int? scale_dtype=None, int[]? group_sizes=None, Tensor? y_scale=None) -> Tensor",
    "aclnnQuantMatmulV4",
)
def npu_quant_matmul(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    output_dtype: Dtype | None = None,
    x1_dtype: Dtype | None = None,
    x2_dtype: Dtype | None = None,
    pertoken_scale_dtype: Dtype | None = None,
    scale_dtype: Dtype | None = None,
    group_sizes: list[int] | None = None,
    y_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x1 @ x2`` of int8 or int4 matrices, scaled; see :func:`anynpu.quant_matmul`."""
    if group_sizes is not None and len(group_sizes) != 3:
        raise ValueError(f"group_sizes only support input with three elements, but got {len(group_sizes)}")
    group_m, group_n, group_size = group_sizes or (0, 0, 0)
    if group_m or group_n:
        raise NotImplementedError(f"group_sizes must be [0, 0, group_k], others are not implemented, got {group_sizes}")
    require_absent(
        y_scale=y_scale,
        x1_dtype=x1_dtype,
        x2_dtype=x2_dtype,
        pertoken_scale_dtype=pertoken_scale_dtype,
        scale_dtype=scale_dtype,
    )
    dtype = None if output_dtype is None else torch_dtype("output_dtype", output_dtype)
    return anynpu.quant_matmul(
        x1,
        x2,
        scale,
        offset=offset,
        pertoken_scale=pertoken_scale,
        bias=bias,
        output_dtype=dtype,
        group_size=group_size,
    )


def _dynamic_quant_code(
    input: torch.Tensor,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    quant_mode: str = "pertoken",
    **options: Any,
) -> int:
    try:
        dynamic_quant.outputs(dynamic_quant.Arguments(input, smooth_scales, group_index, None, quant_mode))
    except (TypeError, ValueError):
        return PARAM_INVALID
    return RUNTIME_ERROR if group_index is not None else PARAM_INVALID


@published(
    "npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? dst_type=None, "
    'str quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor)',
    "aclnnDynamicQuantV3",
    _dynamic_quant_code,
)
def npu_dynamic_quant(
    input: torch.Tensor,
    *,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    dst_type: Dtype | None = None,
    quant_mode: str = "pertoken",
    dst_type_max: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and the scales found for them; see :func:`anynpu.dynamic_quant`."""
    require_absent(dst_type_max=dst_type_max or None)
    dtype = torch.int8 if dst_type is None else torch_dtype("dst_type", dst_type)
    dtype = {torch.quint4x2: torch.int32, torch.qint8: torch.int8}.get(dtype, dtype)
    return anynpu.dynamic_quant(input, smooth_scales, group_index, dtype, quant_mode)


def _compressed_matmul_code(
    x1: torch.Tensor,
    x2: torch.Tensor,
    compress_index: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    **options: Any,
) -> int:
    try:
        compressed_matmul.output_shape(compressed_matmul.Arguments(x1, x2, compress_index, bias, scale))
    except (TypeError, ValueError):
        return PARAM_INVALID
    return RUNTIME_ERROR  # the compressed weight is damaged


@published(
    "npu_matmul_compress_dequant(Tensor x1, Tensor x2, Tensor compress_index, Tensor bias, Tensor scale, *, "
    "Tensor? offsetW=None, Tensor? offsetX=None) -> Tensor",
    "aclnnMatmulCompressDequant",
    _compressed_matmul_code,
)
def npu_matmul_compress_dequant(
    x1: torch.Tensor,
    x2: torch.Tensor,
    compress_index: torch.Tensor,
    bias: torch.Tensor,
    scale: torch.Tensor,
    *,
    offsetW: torch.Tensor | None = None,
    offsetX: torch.Tensor | None = None,
) -> torch.Tensor:
    """``(x1 @ W.T + bias) * scale`` with W compressed; see :func:`anynpu.compressed_matmul`."""
    require_absent(offsetW=offsetW, offsetX=offsetX)
    for name, tensor, dtypes in (("scale", scale, (torch.int64, torch.uint64)), ("bias", bias, (torch.int32,))):
        if isinstance(tensor, torch.Tensor):  # the operator takes more than the document
            require_dtype("npu_matmul_compress_dequant", name, tensor, dtypes)
    return anynpu.compressed_matmul(x1, x2, compress_index, bias, scale)


@published(
    "npu_trans_quant_param(Tensor scale, Tensor? offset=None, int? round_mode=0) -> Tensor", "aclnnTransQuantParamV2"
)
def npu_trans_quant_param(
    scale: torch.Tensor, offset: torch.Tensor | None = None, round_mode: int | None = 0
) -> torch.Tensor:
    """Encodes float32 scales and offsets in int64; see :func:`anynpu.trans_quant_param`."""
    return mark(anynpu.trans_quant_param(scale, offset, round_mode or 0))


@published(
    "npu_quantize(Tensor input, Tensor scales, Tensor? zero_points, int dtype, int axis=1, bool div_mode=True) "
    "-> Tensor",
    "aclnnAscendQuantV3",
)
def npu_quantize(
    input: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: Dtype,
    axis: int = 1,
    div_mode: bool = True,
) -> torch.Tensor:
    """Quantises with given scales; see :func:`anynpu.quantize`."""
    return anynpu.quantize(input, scales, zero_points, torch_dtype("dtype", dtype), axis, div_mode)


@published(
    "npu_anti_quant(Tensor x, Tensor scale, *, Tensor? offset=None, int? dst_dtype=None, int? src_dtype=None) "
    "-> Tensor",
    "aclnnAscendAntiQuant",
)
def npu_anti_quant(
    x: torch.Tensor,
    scale: torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    dst_dtype: Dtype | None = None,
    src_dtype: Dtype | None = None,
) -> torch.Tensor:
    """Dequantises int8 or packed int4 codes; see :func:`anynpu.anti_quant`."""
    _require_src_dtype(x, src_dtype)
    dtype = torch.float16 if dst_dtype is None else torch_dtype("dst_dtype", dst_dtype)
    return anynpu.anti_quant(x, scale, offset, dtype)


def _require_src_dtype(x: torch.Tensor, src_dtype: Dtype | None) -> None:
    if src_dtype is None:
        return
    int4 = src_dtype in (INT4, 16, torch.quint4x2)
    if x.dtype == torch.int32 and not int4:
        raise TypeError(f"The datatype of x is int32, src_dtype must be int4, got {src_dtype}")
    if x.dtype != torch.int32 and (int4 or torch_dtype("src_dtype", src_dtype) != x.dtype):
        raise TypeError(f"The datatype of x must match src_dtype, got {dtype_name(x.dtype)} and {src_dtype}")
