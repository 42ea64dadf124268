# SPDX-License-Identifier: Apache-2.0
"""The published operators on groups of rows, under their published names."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

import anynpu
from anynpu._check import require, require_dtype
from anynpu.compat.errors import PARAM_INVALID, PARAM_NULLPTR, RUNTIME_ERROR
from anynpu.compat.published import Dtype, published, require_absent, require_weight_dtype, torch_dtype
from anynpu.ops.grouped_matmul import spec
from anynpu.ops.grouped_matmul_combine import spec as combine_spec
from anynpu.ops.grouped_matmul_combine.weights import unpack_scale


def _combine_arguments(
    x: torch.Tensor,
    w: torch.Tensor,
    group_list: torch.Tensor,
    scale: torch.Tensor | None = None,
    row_index: torch.Tensor | None = None,
    dtype: Dtype | None = None,
    tuning_config: Sequence[int] | None = None,
    x_dtype: Dtype | None = None,
    w_dtype: Dtype | None = None,
    scale_dtype: Dtype | None = None,
    pertoken_scale_dtype: Dtype | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The arguments of anynpu.grouped_matmul_combine; tuning_config is a hint without effect on the result."""
    for name, tensor in (("scale", scale), ("row_index", row_index)):
        if tensor is None:
            raise TypeError(f"grouped_matmul_combine: {name} must be a tensor, got NoneType")
    if dtype not in (None, 0, 6, torch.float32):
        raise ValueError(f"grouped_matmul_combine: dtype must be float32 (0 or torch.float32) or None, got {dtype}")
    require_absent(x_dtype=x_dtype, scale_dtype=scale_dtype, pertoken_scale_dtype=pertoken_scale_dtype)
    require_weight_dtype(w, w_dtype)
    return {"x": x, "weight": w, "scale": scale, "group_list": group_list, "row_index": row_index, **options}


def _combine_code(**arguments: Any) -> int:
    if arguments.get("scale") is None or arguments.get("row_index") is None:
        return PARAM_NULLPTR
    try:
        combine_spec.output_shape(combine_spec.Arguments(**_combine_arguments(**arguments)))
    except (TypeError, ValueError, NotImplementedError):
        return PARAM_INVALID
    return RUNTIME_ERROR  # everything but group_list and row_index was fine


@published(
    "npu_grouped_matmul_finalize_routing(Tensor x, Tensor w, Tensor group_list, *, Tensor? scale=None, "
    "Tensor? bias=None, Tensor? offset=None, Tensor? pertoken_scale=None, Tensor? shared_input=None, "
    "Tensor? logit=None, Tensor? row_index=None, int? dtype=None, float? shared_input_weight=1.0, "
    "SymInt? shared_input_offset=0, SymInt? output_bs=0, int? group_list_type=1, int[]? tuning_config=None, "
    "int? x_dtype=None, int? w_dtype=None, int? scale_dtype=None, int? pertoken_scale_dtype=None) -> Tensor",
    "aclnnGroupedMatmulFinalizeRoutingV3",
    _combine_code,
)
def npu_grouped_matmul_finalize_routing(
    x: torch.Tensor,
    w: torch.Tensor,
    group_list: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    shared_input: torch.Tensor | None = None,
    logit: torch.Tensor | None = None,
    row_index: torch.Tensor | None = None,
    dtype: Dtype | None = None,
    shared_input_weight: float | None = 1.0,
    shared_input_offset: int | None = 0,
    output_bs: int | None = 0,
    group_list_type: int | None = 1,
    tuning_config: Sequence[int] | None = None,
    x_dtype: Dtype | None = None,
    w_dtype: Dtype | None = None,
    scale_dtype: Dtype | None = None,
    pertoken_scale_dtype: Dtype | None = None,
) -> torch.Tensor:
    """The experts' products, added to the rows of their tokens; see :func:`anynpu.grouped_matmul_combine`."""
    arguments = _combine_arguments(
        x, w, group_list, scale, row_index, dtype, tuning_config, x_dtype, w_dtype, scale_dtype, pertoken_scale_dtype,
        bias=bias, offset=offset, pertoken_scale=pertoken_scale, logit=logit, shared_input=shared_input,
        shared_input_weight=1.0 if shared_input_weight is None else shared_input_weight,
        shared_input_offset=shared_input_offset or 0,
        output_bs=output_bs or 0,
        group_list_type=1 if group_list_type is None else group_list_type,
    )  # fmt: skip
    return anynpu.grouped_matmul_combine(**arguments)


_PARAMETERS = (
    "Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, Tensor[]? offset=None, "
    "Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, Tensor[]? per_token_scale=None, "
)
_ACTIVATION = (
    "Tensor[]? activation_input=None, Tensor[]? activation_quant_scale=None, "
    "Tensor[]? activation_quant_offset=None, int? split_item=0, int? group_type=None, int? group_list_type=0, "
    "int? act_type=0, "
)
Tensors = Sequence[torch.Tensor]


def _grouped_matmul_arguments(
    x: Tensors,
    weight: Tensors,
    group_list: torch.Tensor | None = None,
    split_item: int | None = 0,
    group_type: int | None = None,
    group_list_type: int | None = 0,
    output_dtype: Dtype | None = None,
    tuning_config: Sequence[int] | None = None,
    act_type: int | None = 0,
    weight_dtype: Dtype | None = None,
    **lists: Tensors | None,
) -> dict[str, Any]:
    """The arguments of anynpu.grouped_matmul; tuning_config is a hint without effect on the result."""
    covered = ("bias", "scale", "antiquant_scale", "antiquant_offset", "per_token_scale")
    require_absent(act_type=act_type or None, **{n: v or None for n, v in lists.items() if n not in covered})
    for matrix in weight:
        require_weight_dtype(matrix, weight_dtype)
    if x and weight and lists.get("scale") and weight[0].dtype == torch.int32:
        lists = {**lists, "scale": _with_groups(lists["scale"], weight)}
        if x[0].dtype == torch.int32:
            x, lists = _int8_rows(x, weight, lists)
    return {
        "x": x,
        "weight": weight,
        "group_list": group_list,
        **{name: lists.get(name) for name in covered},
        "split_item": split_item or 0,
        "group_type": -1 if group_type is None else group_type,
        "group_list_type": group_list_type or 0,
        "output_dtype": None if output_dtype is None else torch_dtype("output_dtype", output_dtype),
    }


def _int8_rows(x: Tensors, weight: Tensors, lists: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """int4 x as int8, with the bias that takes away what the product of int8 x and int4 weights subtracts."""
    require_absent(bias=lists.get("bias") or None)
    biases = []
    for scale, matrix in zip(lists["scale"], weight, strict=False):
        stacked = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (matrix, unpack_scale(scale))]
        biases.append(anynpu.make_w4a8_bias(*stacked).view(*matrix.shape[:-2], -1))
    rows = [anynpu.int4_unpack(part, torch.int8) for part in x]
    return rows, {**lists, "bias": biases}


def _with_groups(scales: Tensors, weight: Tensors) -> list[torch.Tensor]:
    """Scales of int4 weights, where those of channels, (E, N), have the axis of their one group."""
    dims = [matrix.dim() for matrix in weight] + [0] * len(scales)
    return [scale.unsqueeze(-2) if scale.dim() == dim - 1 else scale for scale, dim in zip(scales, dims, strict=False)]


def _grouped_matmul_code(group_list: torch.Tensor | Sequence[int] | None = None, **arguments: Any) -> int:
    if group_list is not None and not isinstance(group_list, torch.Tensor):
        group_list = torch.tensor(group_list, dtype=torch.int64)
    try:
        spec.results(spec.Arguments(**_grouped_matmul_arguments(group_list=group_list, **arguments)))
    except (TypeError, ValueError, NotImplementedError):
        return PARAM_INVALID
    return RUNTIME_ERROR  # everything but the values of group_list was fine


@published(
    f"npu_grouped_matmul({_PARAMETERS}Tensor? group_list=None, {_ACTIVATION}int[]? tuning_config=None, "
    "int? output_dtype=None, int? x_dtype=None, int? weight_dtype=None, int? scale_dtype=None, "
    "int? per_token_scale_dtype=None) -> Tensor[]",
    "aclnnGroupedMatmulV5",
    _grouped_matmul_code,
)
def _grouped_matmul(x: Tensors, weight: Tensors, **options: Any) -> list[torch.Tensor]:
    if options.get("group_type") is None and options.get("group_list") is not None:
        raise ValueError("Requires manual passing group_type, current is None.")
    return anynpu.grouped_matmul(**_grouped_matmul_arguments(x, weight, **options))


@published(
    f"npu_grouped_matmul.List({_PARAMETERS}int[]? group_list=None, {_ACTIVATION}ScalarType? output_dtype=None) "
    "-> Tensor[]",
    "aclnnGroupedMatmul",
    _grouped_matmul_code,
)
def _grouped_matmul_list(x: Tensors, weight: Tensors, **options: Any) -> list[torch.Tensor]:
    if options.get("split_item") in (None, 0, 1):
        x, options = _rows_by_group(x, weight, options)
        return anynpu.grouped_matmul(**_grouped_matmul_arguments(x, weight, **options))
    options["group_list"] = torch.tensor(options["group_list"], dtype=torch.int64, device=x[0].device if x else None)
    if options.get("group_type") is None:
        options["group_type"] = 0
    return anynpu.grouped_matmul(**_grouped_matmul_arguments(x, weight, **options))


def _rows_by_group(x: Tensors, weight: Tensors, options: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """One x of many groups as many of one group: the results are then many."""
    ends = options["group_list"]
    if len(x) != 1 or len(weight) != len(ends):
        raise ValueError(
            "Invalid inputs. When split_item = 0 or 1 and input group_list is not None, the following two conditions "
            "are supposed to be satisfied: (1) length of x equals 1; (2) length of weight equals that of group_list. "
            f"Actual lengths: x [{len(x)}], weight [{len(weight)}], group_list [{len(ends)}]."
        )
    bounds = list(itertools.pairwise((0, *ends)))
    if any(not first <= last <= x[0].shape[0] for first, last in bounds):
        raise ValueError(f"group_list must be running sums of at most {x[0].shape[0]}, the rows of x, got {list(ends)}")

    def cut(tensor: torch.Tensor) -> list[torch.Tensor]:
        return [tensor[first:last] for first, last in bounds]

    options = {**options, "group_list": None, "group_type": -1}
    if options.get("per_token_scale"):
        options["per_token_scale"] = cut(options["per_token_scale"][0])
    return cut(x[0]), options


def npu_grouped_matmul(x: Tensors | torch.Tensor, weight: Tensors | torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """Products of groups of rows with their weights; see :func:`anynpu.grouped_matmul`.

    ``group_list`` is a tensor or a list of numbers. Callers pass bare tensors too, in place of a list of one.
    """
    listed = {
        name: [value] if isinstance(value, torch.Tensor) and name != "group_list" else value
        for name, value in {"x": x, "weight": weight, **options}.items()
    }
    group_list = listed.get("group_list")
    if group_list is None or isinstance(group_list, torch.Tensor):
        return _grouped_matmul(**listed)
    return _grouped_matmul_list(**listed)


@published(
    "npu_quant_grouped_matmul_dequant(Tensor x, Tensor quantized_weight, Tensor weight_scale, Tensor group_list, *, "
    "Tensor? bias=None, Tensor? x_scale=None, Tensor? x_offset=None, Tensor? smooth_scale=None, "
    "str quant_mode='pertoken') -> Tensor",
    "aclnnQuantGroupedMatmulDequant",
)
def npu_quant_grouped_matmul_dequant(
    x: torch.Tensor,
    quantized_weight: torch.Tensor,
    weight_scale: torch.Tensor,
    group_list: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    x_scale: torch.Tensor | None = None,
    x_offset: torch.Tensor | None = None,
    smooth_scale: torch.Tensor | None = None,
    quant_mode: str = "pertoken",
) -> torch.Tensor:
    """``npu_grouped_matmul`` of rows (T, K) that are quantised first, and int8 weights (E, N, K) with scales (E, N).

    ``group_list`` are running sums of the rows of the experts. Float16.
    """
    op = "npu_quant_grouped_matmul_dequant"
    mode = None if quant_mode == "pertoken" else quant_mode
    require_absent(bias=bias, x_scale=x_scale, x_offset=x_offset, smooth_scale=smooth_scale, quant_mode=mode)
    for name, tensor, dtype, axes in (
        ("x", x, torch.float16, 2),
        ("quantized_weight", quantized_weight, torch.int8, 3),
        ("weight_scale", weight_scale, torch.float32, 2),
    ):
        require_dtype(op, name, tensor, (dtype,))
        require(op, tensor.dim() == axes, f"{name} must have {axes} axes, got {tensor.dim()}")
    expected, got = tuple(quantized_weight.shape[:2]), tuple(weight_scale.shape)
    require(op, expected == got, f"weight_scale must have shape {expected}, got {got}")
    codes, scale = anynpu.dynamic_quant(x)
    return anynpu.grouped_matmul(
        [codes], [quantized_weight.transpose(1, 2)], group_list, scale=[weight_scale], per_token_scale=[scale],
        split_item=3, group_type=0, output_dtype=torch.float16,
    )[0]  # fmt: skip
