# SPDX-License-Identifier: Apache-2.0
"""The published operators of a mixture of experts around its matrix products, under their published names."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import anynpu
from anynpu._check import dtype_name
from anynpu.compat.gradients import with_gradients
from anynpu.compat.published import Dtype, published, require_absent, torch_dtype
from anynpu.ops.moe_finalize_routing import composite as finalize
from anynpu.ops.swiglu import composite as swiglu


@published(
    "npu_moe_gating_top_k_softmax(Tensor x, Tensor? finished=None, int k=1) -> (Tensor, Tensor, Tensor)",
    "aclnnMoeGatingTopKSoftmax",
)
def npu_moe_gating_top_k_softmax(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k most probable experts of each token; see :func:`anynpu.moe_gating_topk_softmax`."""
    return anynpu.moe_gating_topk_softmax(x, finished, k)[:3]


@published(
    "npu_moe_gating_top_k_softmax_v2(Tensor x, *, int k=1, Tensor? finished=None, int renorm=0, "
    "bool output_softmax=False) -> (Tensor, Tensor, Tensor)",
    "aclnnMoeGatingTopKSoftmaxV2",
)
def npu_moe_gating_top_k_softmax_v2(
    x: torch.Tensor,
    *,
    k: int = 1,
    finished: torch.Tensor | None = None,
    renorm: int = 0,
    output_softmax: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same, renormalised on request; see :func:`anynpu.moe_gating_topk_softmax`."""
    y, experts, _, softmax = anynpu.moe_gating_topk_softmax(
        x, finished, k, renorm=renorm, output_softmax=output_softmax
    )
    return y, experts, softmax


@published(
    "npu_moe_gating_top_k(Tensor x, int k, *, Tensor? bias=None, Tensor? input_ids=None, Tensor? tid2eid=None, "
    "int k_group=1, int group_count=1, int group_select_mode=0, int renorm=0, int norm_type=0, bool out_flag=False, "
    "float routed_scaling_factor=1.0, float eps=1e-20) -> (Tensor, Tensor, Tensor)",
    "aclnnMoeGatingTopK",
)
def npu_moe_gating_top_k(
    x: torch.Tensor,
    k: int,
    *,
    bias: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    out_flag: bool = False,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k best experts of each token; see :func:`anynpu.moe_gating_topk`. The scores come without out_flag too."""
    return anynpu.moe_gating_topk(
        x, k, bias=bias, input_ids=input_ids, tid2eid=tid2eid, k_group=k_group, group_count=group_count,
        group_select_mode=group_select_mode, renorm=renorm, norm_type=norm_type,
        routed_scaling_factor=routed_scaling_factor, eps=eps,
    )  # fmt: skip


@published(
    "npu_moe_init_routing_v2(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, "
    "int active_num=-1, int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, int expert_tokens_num_type=0, "
    "bool expert_tokens_num_flag=False, int quant_mode=-1, int[] active_expert_range=[], int row_idx_type=0, "
    "int? x_dtype=None) -> (Tensor, Tensor, Tensor, Tensor)",
    "aclnnMoeInitRoutingV3",
)
def npu_moe_init_routing_v2(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    expert_tokens_num_flag: bool = False,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] = (),
    row_idx_type: int = 0,
    x_dtype: Dtype | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sorts tokens by expert; see :func:`anynpu.moe_init_routing`. The counts come with or without their flag."""
    if x_dtype is not None and torch_dtype("x_dtype", x_dtype) != x.dtype:
        raise NotImplementedError(f"x_dtype must be that of x, {dtype_name(x.dtype)}, got {x_dtype}")
    return anynpu.moe_init_routing(
        x, expert_idx, scale=scale, offset=offset, active_num=active_num, expert_capacity=expert_capacity,
        expert_num=expert_num, drop_pad_mode=drop_pad_mode, expert_tokens_num_type=expert_tokens_num_type,
        quant_mode=quant_mode, active_expert_range=active_expert_range, row_idx_type=row_idx_type,
    )  # fmt: skip


@published(
    "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None, "
    "Tensor? bias=None, Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None, "
    "bool activate_left=False, int quant_mode=0, int? dst_type=None, int? round_mode=None, int? activate_dim=None, "
    "int swiglu_mode=0, float clamp_limit=7.0, float glu_alpha=1.702, float glu_bias=1.0) -> (Tensor, Tensor)",
    "aclnnDequantSwigluQuantV2",
)
def npu_dequant_swiglu_quant(
    x: torch.Tensor,
    *,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    dst_type: Dtype | None = None,
    round_mode: int | None = None,
    activate_dim: int | None = None,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantise, SwiGLU, quantise; see :func:`anynpu.dequant_swiglu_quant`."""
    _require_int8(dst_type)
    if round_mode not in (None, 0, 1, 2, 3, 4):
        raise ValueError(f"round_mode only support [0, 1, 2, 3, 4], but got {round_mode}")
    last = activate_dim in (None, -1, x.dim() - 1)
    require_absent(round_mode=round_mode or None, activate_dim=None if last else activate_dim)
    return anynpu.dequant_swiglu_quant(
        x, weight_scale=weight_scale, activation_scale=activation_scale, bias=bias, quant_scale=quant_scale,
        quant_offset=quant_offset, group_index=group_index, activate_left=activate_left, quant_mode=quant_mode,
        swiglu_mode=swiglu_mode, clamp_limit=clamp_limit, glu_alpha=glu_alpha, glu_bias=glu_bias,
    )  # fmt: skip


@published("npu_swiglu(Tensor self, int dim=-1) -> Tensor", "aclnnSwiGlu")
def npu_swiglu(self: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The first half activated, times the second; see :func:`anynpu.swiglu`."""
    return with_gradients(anynpu.swiglu, swiglu.swiglu, self, dim)


def _require_int8(dst_type: Dtype | None) -> None:
    if dst_type is not None and torch_dtype("dst_type", dst_type) not in (torch.int8, torch.qint8):
        raise NotImplementedError(f"dst_type must be int8, got {dst_type}")


@published(
    "npu_moe_finalize_routing(Tensor expanded_permuted_rows, Tensor? skip1, Tensor? skip2, Tensor? bias, "
    "Tensor? scales, Tensor expanded_src_to_dst_row, Tensor? export_for_source_row, int? drop_pad_mode=0, "
    "int? k=1) -> Tensor",
    "aclnnMoeFinalizeRoutingV2",
)
def npu_moe_finalize_routing(
    expanded_permuted_rows: torch.Tensor,
    skip1: torch.Tensor | None,
    skip2: torch.Tensor | None,
    bias: torch.Tensor | None,
    scales: torch.Tensor | None,
    expanded_src_to_dst_row: torch.Tensor,
    export_for_source_row: torch.Tensor | None,
    drop_pad_mode: int | None = 0,
    k: int | None = 1,
) -> torch.Tensor:
    """Adds the experts' rows up by token; see :func:`anynpu.moe_finalize_routing`."""
    return _added_up(
        expanded_permuted_rows, skip1, skip2, bias, scales, expanded_src_to_dst_row, export_for_source_row,
        drop_pad_mode=drop_pad_mode or 0, k=1 if k is None else k,
    )  # fmt: skip


def _added_up(*arguments: torch.Tensor | None, **options: int) -> torch.Tensor:
    return with_gradients(anynpu.moe_finalize_routing, finalize.moe_finalize_routing, *arguments, **options)


def require_axes(name: str, tensor: torch.Tensor, axes: int) -> None:
    """``tensor`` has so many axes."""
    if tensor.dim() != axes:
        raise ValueError(f"The dims of input {name} should be {axes} dimensional, but got {tensor.dim()}-dimensional.")


@published(
    "npu_moe_token_unpermute(Tensor permuted_tokens, Tensor sorted_indices, Tensor? probs=None, "
    "bool padded_mode=False, int[]? restore_shape=None) -> Tensor",
    "aclnnMoeTokenUnpermute",
)
def npu_moe_token_unpermute(
    permuted_tokens: torch.Tensor,
    sorted_indices: torch.Tensor,
    probs: torch.Tensor | None = None,
    padded_mode: bool = False,
    restore_shape: Sequence[int] | None = None,
) -> torch.Tensor:
    """Adds the rows of each token up; see :func:`anynpu.moe_finalize_routing`. An index beyond the rows adds nothing.

    ``restore_shape`` has no effect: it belongs to padded_mode, which is not implemented.
    """
    require_absent(padded_mode=padded_mode or None)
    require_axes("permuted_tokens", permuted_tokens, 2)
    require_axes("sorted_indices", sorted_indices, 1)
    if probs is not None:
        require_axes("probs", probs, 2)
    index = sorted_indices.masked_fill(sorted_indices >= permuted_tokens.shape[0], -1)
    return _added_up(permuted_tokens, None, None, None, probs, index, drop_pad_mode=2)
