# SPDX-License-Identifier: Apache-2.0
"""The published operators that write an INT8 KV cache, under their published names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import anynpu
from anynpu.compat.errors import PARAM_INVALID, PARAM_NULLPTR, RUNTIME_ERROR
from anynpu.compat.published import published
from anynpu.ops.rope_kv_cache.spec import Arguments, check

_ACLNN = "aclnnDequantRopeQuantKvcache"
_LEADING = (
    "(Tensor x, Tensor cos, Tensor sin, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor indices, Tensor scale_k, "
    "Tensor scale_v, SymInt[3] size_splits, *, Tensor? offset_k=None, Tensor? offset_v=None, "
)
_DEQUANT = "Tensor? weight_scale=None, Tensor? activation_scale=None, Tensor? bias=None, "
_TRAILING = (
    "int quant_mode=0, str input_layout='BSND', bool kv_output=False, str cache_mode='contiguous') "
    "-> (Tensor, Tensor, Tensor, Tensor(a!), Tensor(b!))"
)

Results = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _code(quant_mode: int = 0, input_layout: str = "BSND", **arguments: Any) -> int:
    if arguments["x"].dtype == torch.int32 and arguments.get("weight_scale") is None:
        return PARAM_NULLPTR
    try:
        check(Arguments(**arguments))
    except (TypeError, ValueError):
        return PARAM_INVALID
    known = quant_mode == 0 and input_layout == "BSND"
    return RUNTIME_ERROR if known else PARAM_INVALID  # everything but the indices was fine


@published(f"npu_dequant_rope_quant_kvcache{_LEADING}{_DEQUANT}{_TRAILING}", _ACLNN, _code)
def npu_dequant_rope_quant_kvcache(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    indices: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    size_splits: Sequence[int],
    *,
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_mode: int = 0,
    input_layout: str = "BSND",
    kv_output: bool = False,
    cache_mode: str = "contiguous",
) -> Results:
    """Dequantises x, rotates q and k, and writes k and v into the caches; see :func:`anynpu.rope_kv_cache`."""
    return anynpu.rope_kv_cache(
        x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, size_splits, offset_k=offset_k, offset_v=offset_v,
        weight_scale=weight_scale, activation_scale=activation_scale, bias=bias, quant_mode=quant_mode,
        input_layout=input_layout, kv_output=kv_output, cache_mode=cache_mode,
    )  # fmt: skip


def _rope_code(**arguments: Any) -> int:
    return PARAM_INVALID if arguments["x"].dtype == torch.int32 else _code(**arguments)


@published(f"npu_rope_quant_kvcache{_LEADING}{_TRAILING}", _ACLNN, _rope_code)
def npu_rope_quant_kvcache(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    indices: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    size_splits: Sequence[int],
    *,
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    quant_mode: int = 0,
    input_layout: str = "BSND",
    kv_output: bool = False,
    cache_mode: str = "contiguous",
) -> Results:
    """The same for float x, without the arguments that dequantise."""
    if isinstance(x, torch.Tensor) and x.dtype == torch.int32:
        raise TypeError("rope_kv_cache: x must be float16 or bfloat16, got int32")
    return anynpu.rope_kv_cache(
        x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, size_splits, offset_k=offset_k, offset_v=offset_v,
        quant_mode=quant_mode, input_layout=input_layout, kv_output=kv_output, cache_mode=cache_mode,
    )  # fmt: skip
