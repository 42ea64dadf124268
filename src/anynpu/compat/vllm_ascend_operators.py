# SPDX-License-Identifier: Apache-2.0
"""Operators of vllm-ascend's own extension, ``torch.ops._C_ascend``, which needs the vendor's library.

Its mixtures of experts and sparse attention call these whether or not the extension is there. They are those of
torch_npu under other names, and with other modes: so these have their meaning from what the models compute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from anynpu.compat.fused_quant_operators import npu_grouped_matmul_swiglu_quant
from anynpu.compat.published import require_absent
from anynpu.compat.routing_operators import (
    npu_dequant_swiglu_quant,
    npu_moe_gating_top_k,
    npu_moe_init_routing_v2,
)
from anynpu.compat.sparse_attention_operators import (
    npu_lightning_indexer,
    npu_quant_lightning_indexer,
    npu_sparse_flash_attention,
)

_library = torch.library.Library("_C_ascend", "DEF")


def _operator(schema: str) -> Callable[..., Any]:
    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(schema.partition("(")[0], body, "CompositeImplicitAutograd")
        return body

    return register


@_operator(
    "moe_gating_top_k(Tensor x, int k, int k_group, int group_count, int group_select_mode, int renorm, "
    "int norm_type, bool out_flag, float routed_scaling_factor, float eps, Tensor? bias_opt=None) "
    "-> (Tensor, Tensor, Tensor)"
)
def moe_gating_top_k(
    x: torch.Tensor,
    k: int,
    k_group: int,
    group_count: int,
    group_select_mode: int,
    renorm: int,
    norm_type: int,
    out_flag: bool,
    routed_scaling_factor: float,
    eps: float,
    bias_opt: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``npu_moe_gating_top_k``; ``renorm`` 1 divides the k weights by their sum, which sigmoid's always are."""
    divided = renorm == 1 and norm_type == 0
    weights, experts, scores = npu_moe_gating_top_k(
        x, k, bias=bias_opt, k_group=k_group, group_count=group_count, group_select_mode=group_select_mode,
        renorm=0 if renorm == 1 else renorm, norm_type=norm_type, out_flag=out_flag,
        routed_scaling_factor=1.0 if divided else routed_scaling_factor, eps=eps,
    )  # fmt: skip
    if divided:
        wide = weights.float()
        weights = (wide / (wide.sum(-1, keepdim=True) + eps) * routed_scaling_factor).to(x.dtype)
    return weights, experts, scores


_operator(
    "npu_moe_init_routing_custom(Tensor x, Tensor expert_idx, *, Tensor? scale=None, Tensor? offset=None, "
    "int active_num=-1, int expert_capacity=-1, int expert_num=-1, int drop_pad_mode=0, int expert_tokens_num_type=0, "
    "bool expert_tokens_num_flag=False, int quant_mode=-1, int[] active_expert_range=[], int row_idx_type=0) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)(npu_moe_init_routing_v2)  # its defaults too: torch leaves out arguments that equal those of the schema


@_operator(
    "grouped_matmul_swiglu_quant_weight_nz(Tensor x, Tensor weight, Tensor weight_scale, Tensor x_scale, "
    "Tensor group_list, *, Tensor? bias=None, Tensor? offset=None, float swiglu_limit=0.0) "
    "-> (Tensor output, Tensor output_scale, Tensor output_offset)"
)
def grouped_matmul_swiglu_quant_weight_nz(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor,
    group_list: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    swiglu_limit: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``npu_grouped_matmul_swiglu_quant``; ``swiglu_limit`` must be 0, no limit."""
    require_absent(swiglu_limit=swiglu_limit or None)
    return npu_grouped_matmul_swiglu_quant(x, weight, group_list, weight_scale, x_scale, bias=bias, offset=offset)


@_operator(
    "npu_dequant_swiglu_quant(Tensor x, *, Tensor? weight_scale=None, Tensor? activation_scale=None, "
    "Tensor? bias=None, Tensor? quant_scale=None, Tensor? quant_offset=None, Tensor? group_index=None, "
    "bool activate_left=False, int quant_mode=0, int swiglu_mode=0, float clamp_limit=0.0) -> (Tensor, Tensor)"
)
def dequant_swiglu_quant(
    x: torch.Tensor, *, swiglu_mode: int = 0, clamp_limit: float = 0.0, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """``npu_dequant_swiglu_quant``, where ``swiglu_mode`` 1 clamps what is activated, at most ``clamp_limit``, and the
    other half, at most that much either way; 0 is no limit.
    """
    if swiglu_mode not in (0, 1):
        raise NotImplementedError(f"npu_dequant_swiglu_quant: swiglu_mode must be 0 or 1, got {swiglu_mode}")
    if swiglu_mode == 0 or clamp_limit == 0:
        return npu_dequant_swiglu_quant(x, **options)
    return npu_dequant_swiglu_quant(x, swiglu_mode=2, clamp_limit=clamp_limit, glu_alpha=1.0, glu_bias=0.0, **options)


def _like(name: str, operator: str, body: Callable[..., Any]) -> None:
    """``body``, an operator of torch_npu, under a name of the extension."""
    _operator(f"{name}{str(getattr(torch.ops.npu, operator).default._schema).removeprefix(f'npu::{operator}')}")(body)


_like("npu_lightning_indexer", "npu_lightning_indexer", npu_lightning_indexer)
_like("npu_lightning_indexer_quant", "npu_quant_lightning_indexer", npu_quant_lightning_indexer)
_like("npu_sparse_flash_attention", "npu_sparse_flash_attention", npu_sparse_flash_attention)
