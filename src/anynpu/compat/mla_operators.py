# SPDX-License-Identifier: Apache-2.0
"""The published operators before the attention of a layer with latent keys and values: projections, norms, rotation."""

from __future__ import annotations

import functools
from typing import Any

import torch

import anynpu
from anynpu._check import require, require_dtype
from anynpu.compat.cache_operators import npu_kv_rmsnorm_rope_cache
from anynpu.compat.float_operators import interleaved_rope, rms_norm
from anynpu.compat.published import published

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_PARAMETERS = (
    "Tensor token_x, Tensor weight_dq, Tensor weight_uq_qr, Tensor weight_uk, Tensor weight_dkv_kr, "
    "Tensor rmsnorm_gamma_cq, Tensor rmsnorm_gamma_ckv, Tensor rope_sin, Tensor rope_cos, Tensor cache_index, "
    "Tensor(a!) kv_cache, Tensor(b!) kr_cache, *, Tensor? dequant_scale_x=None, Tensor? dequant_scale_w_dq=None, "
    "Tensor? dequant_scale_w_uq_qr=None, Tensor? dequant_scale_w_dkv_kr=None, Tensor? quant_scale_ckv=None, "
    "Tensor? quant_scale_ckr=None, Tensor? smooth_scales_cq=None, float rmsnorm_epsilon_cq=1e-05, "
    "float rmsnorm_epsilon_ckv=1e-05, str cache_mode='PA_BSND'"
)
_CACHE_MODES = {"PA_BSND": "PA", "PA_NZ": "PA_NZ"}  # in npu_kv_rmsnorm_rope_cache


def _prolog(
    token_x: torch.Tensor,
    weight_dq: torch.Tensor,
    weight_uq_qr: torch.Tensor,
    weight_uk: torch.Tensor,
    weight_dkv_kr: torch.Tensor,
    rmsnorm_gamma_cq: torch.Tensor,
    rmsnorm_gamma_ckv: torch.Tensor,
    rope_sin: torch.Tensor,
    rope_cos: torch.Tensor,
    cache_index: torch.Tensor,
    kv_cache: torch.Tensor,
    kr_cache: torch.Tensor,
    *,
    dequant_scale_x: torch.Tensor | None = None,
    dequant_scale_w_dq: torch.Tensor | None = None,
    dequant_scale_w_uq_qr: torch.Tensor | None = None,
    dequant_scale_w_dkv_kr: torch.Tensor | None = None,
    quant_scale_ckv: torch.Tensor | None = None,
    quant_scale_ckr: torch.Tensor | None = None,
    smooth_scales_cq: torch.Tensor | None = None,
    rmsnorm_epsilon_cq: float = 1e-5,
    rmsnorm_epsilon_ckv: float = 1e-5,
    cache_mode: str = "PA_BSND",
) -> tuple[torch.Tensor, ...]:
    """Queries of tokens and what their keys and values are made of, which is written to the caches.

    ``cq = rms_norm(token_x @ weight_dq)``, ``q = cq @ weight_uq_qr`` has ``D + Dr`` values a head: the first times
    ``weight_uk`` are the query, the others, rotated as by ``npu_interleave_rope``, query_rope. What
    ``token_x @ weight_dkv_kr`` holds goes through ``npu_kv_rmsnorm_rope_cache``. int8 weights multiply int8 rows:
    token_x, and cq quantised row by row. Returns query, query_rope and the caches.
    """
    op, dtype = "npu_mla_prolog", weight_uk.dtype
    require(op, token_x.dim() in (2, 3), f"token_x must have 2 or 3 axes, got {token_x.dim()}")
    require(op, weight_uk.dim() == 3, f"weight_uk must have shape (N, D, Hckv), got {tuple(weight_uk.shape)}")
    require_dtype(op, "weight_uk", weight_uk, _FLOATS)
    require(op, cache_mode in _CACHE_MODES, f"cache_mode must be PA_BSND or PA_NZ, got {cache_mode}")
    if token_x.dtype == torch.int8 and quant_scale_ckv is not None:
        raise NotImplementedError("quant_scale_ckv with int8 token_x (int8 queries) is not implemented by anynpu")
    tokens, (heads, size, _), turned = tuple(token_x.shape[:-1]), weight_uk.shape, rope_sin.shape[-1]
    for name, factor in (("rope_sin", rope_sin), ("rope_cos", rope_cos)):
        expected, got = (*tokens, turned), tuple(factor.shape)
        require(op, expected == got, f"{name} must have shape {expected}, got {got}")
    cos, sin = (factor.reshape(-1, 1, 1, turned) for factor in (rope_cos, rope_sin))
    rows = token_x.flatten(0, -2)
    latent = _product(op, "weight_dq", rows, weight_dq, dequant_scale_x, dequant_scale_w_dq, dtype)
    latent = rms_norm(op, "token_x @ weight_dq", latent, rmsnorm_gamma_cq, rmsnorm_epsilon_cq)[0]
    row_scale = None
    if weight_uq_qr.dtype == torch.int8:
        latent, row_scale = anynpu.dynamic_quant(latent if smooth_scales_cq is None else latent * smooth_scales_cq)
    else:
        latent = latent.to(dtype)
    q = _product(op, "weight_uq_qr", latent, weight_uq_qr, row_scale, dequant_scale_w_uq_qr, dtype)
    expected = heads * (size + turned)
    require(op, q.shape[1] == expected, f"weight_uq_qr must have N * (D + Dr) = {expected} columns, got {q.shape[1]}")
    plain, rope = q.unflatten(-1, (heads, -1)).split((size, turned), -1)
    query = (plain.transpose(0, 1) @ weight_uk).transpose(0, 1).reshape(*tokens, heads, -1)
    query_rope = interleaved_rope(op, "the rotated part of q", rope.unsqueeze(2), cos, sin).to(dtype)
    kv = _product(op, "weight_dkv_kr", rows, weight_dkv_kr, dequant_scale_x, dequant_scale_w_dkv_kr, dtype)
    npu_kv_rmsnorm_rope_cache(
        kv[:, None, None], rmsnorm_gamma_ckv, cos, sin, cache_index.flatten(), kr_cache, kv_cache,
        k_rope_scale=quant_scale_ckr, c_kv_scale=quant_scale_ckv, epsilon=rmsnorm_epsilon_ckv,
        cache_mode=_CACHE_MODES[cache_mode],
    )  # fmt: skip
    return query, query_rope.reshape(*tokens, heads, turned), kv_cache, kr_cache


def _product(
    op: str,
    name: str,
    x: torch.Tensor,
    weight: torch.Tensor,
    row_scale: torch.Tensor | None,
    scale: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    if weight.dtype != torch.int8:
        for each, tensor in (("token_x", x), (name, weight)):
            require_dtype(op, each, tensor, (dtype,))
        return x @ weight
    if scale is None or row_scale is None:
        raise TypeError(f"{op}: int8 {name} needs its dequant_scale, and int8 token_x dequant_scale_x")
    return anynpu.quant_matmul(x, weight, scale.flatten(), pertoken_scale=row_scale.flatten(), output_dtype=dtype)


@published(f"npu_mla_prolog({_PARAMETERS}) -> (Tensor, Tensor, Tensor(a!), Tensor(b!))", "aclnnMlaProlog")
@functools.wraps(_prolog)
def npu_mla_prolog(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    return _prolog(*args, **kwargs)


@published(
    f"npu_mla_prolog_v2({_PARAMETERS}) -> (Tensor, Tensor, Tensor(a!), Tensor(b!), Tensor)", "aclnnMlaPrologV2WeightNz"
)
@functools.wraps(_prolog)
def npu_mla_prolog_v2(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    results = _prolog(*args, **kwargs)
    return *results, results[0].new_zeros(1, dtype=torch.float32)  # the scale of int8 queries
