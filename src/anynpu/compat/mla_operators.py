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
from anynpu.compat.published import published, require_absent

_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_TENSORS = (
    "Tensor token_x, Tensor weight_dq, Tensor weight_uq_qr, Tensor weight_uk, Tensor weight_dkv_kr, "
    "Tensor rmsnorm_gamma_cq, Tensor rmsnorm_gamma_ckv, Tensor rope_sin, Tensor rope_cos"
)
_SCALES = (
    "Tensor? dequant_scale_x=None, Tensor? dequant_scale_w_dq=None, Tensor? dequant_scale_w_uq_qr=None, "
    "Tensor? dequant_scale_w_dkv_kr=None, Tensor? quant_scale_ckv=None, Tensor? quant_scale_ckr=None, "
    "Tensor? smooth_scales_cq=None"
)
_OPTIONS = "float rmsnorm_epsilon_cq=1e-05, float rmsnorm_epsilon_ckv=1e-05, str cache_mode='PA_BSND'"
_PARAMETERS = f"{_TENSORS}, Tensor cache_index, Tensor(a!) kv_cache, Tensor(b!) kr_cache, *, {_SCALES}, {_OPTIONS}"
_V3_DTYPES = ("token_x_dtype", "weight_dq_dtype", "weight_uq_qr_dtype", "weight_dkv_kr_dtype", "kv_cache_dtype")
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
    token_x, and cq quantised row by row. Returns query, query_rope, the caches, cq and its scales, None for floats.
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
    latent = latent.reshape(*tokens, -1)
    return query, query_rope.reshape(*tokens, heads, turned), kv_cache, kr_cache, latent, row_scale


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
    return _prolog(*args, **kwargs)[:4]


@published(
    f"npu_mla_prolog_v2({_PARAMETERS}) -> (Tensor, Tensor, Tensor(a!), Tensor(b!), Tensor)", "aclnnMlaPrologV2WeightNz"
)
@functools.wraps(_prolog)
def npu_mla_prolog_v2(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
    results = _prolog(*args, **kwargs)[:4]
    return *results, results[0].new_zeros(1, dtype=torch.float32)  # the scale of int8 queries


@published(
    f"npu_mla_prolog_v3({_TENSORS}, Tensor(a!) kv_cache, Tensor(b!) kr_cache, *, Tensor? cache_index=None, "
    f"{_SCALES}, Tensor? actual_seq_len=None, Tensor? k_nope_clip_alpha=None, {_OPTIONS}, "
    "bool query_norm_flag=False, int weight_quant_mode=0, int kv_cache_quant_mode=0, int query_quant_mode=0, "
    "int ckvkr_repo_mode=0, int quant_scale_repo_mode=0, int tile_size=128, float qc_qr_scale=1.0, "
    "float kc_scale=1.0, int? token_x_dtype=None, int? weight_dq_dtype=None, int? weight_uq_qr_dtype=None, "
    "int? weight_dkv_kr_dtype=None, int? kv_cache_dtype=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "aclnnMlaPrologV3WeightNz",
)
def npu_mla_prolog_v3(
    token_x: torch.Tensor,
    weight_dq: torch.Tensor,
    weight_uq_qr: torch.Tensor,
    weight_uk: torch.Tensor,
    weight_dkv_kr: torch.Tensor,
    rmsnorm_gamma_cq: torch.Tensor,
    rmsnorm_gamma_ckv: torch.Tensor,
    rope_sin: torch.Tensor,
    rope_cos: torch.Tensor,
    kv_cache: torch.Tensor,
    kr_cache: torch.Tensor,
    *,
    cache_index: torch.Tensor | None = None,
    actual_seq_len: torch.Tensor | None = None,
    k_nope_clip_alpha: torch.Tensor | None = None,
    query_norm_flag: bool = False,
    weight_quant_mode: int = 0,
    kv_cache_quant_mode: int = 0,
    query_quant_mode: int = 0,
    ckvkr_repo_mode: int = 0,
    quant_scale_repo_mode: int = 0,
    tile_size: int = 128,
    qc_qr_scale: float = 1.0,
    kc_scale: float = 1.0,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``npu_mla_prolog`` with the modes of quantisation named: query, query_rope, 0, and on request cq and its scales.

    ``weight_quant_mode`` 0: float weights, 1: int8 weight_uq_qr, 2: all int8 but weight_uk; ``kv_cache_quant_mode`` 2:
    int8 caches with scales of channels. cq is that which multiplies weight_uq_qr, int8 with a scale for each token.
    """
    op = "npu_mla_prolog_v3"
    require_absent(
        k_nope_clip_alpha=k_nope_clip_alpha, query_quant_mode=query_quant_mode or None,
        ckvkr_repo_mode=ckvkr_repo_mode or None, quant_scale_repo_mode=quant_scale_repo_mode or None,
        qc_qr_scale=None if qc_qr_scale == 1 else qc_qr_scale, kc_scale=None if kc_scale == 1 else kc_scale,
        kv_cache_quant_mode=None if kv_cache_quant_mode in (0, 2) else kv_cache_quant_mode,
        weight_quant_mode=None if weight_quant_mode in (0, 1, 2) else weight_quant_mode,
        **{name: options.pop(name, None) for name in _V3_DTYPES},
    )  # fmt: skip
    if cache_index is None:
        raise TypeError(f"{op}: cache_index must be a tensor, caches that lie otherwise are not implemented")
    dtypes = [torch.int8 if weight_quant_mode > 1 else weight_uk.dtype] * 3
    dtypes.append(torch.int8 if weight_quant_mode else weight_uk.dtype)
    names = ("token_x", "weight_dq", "weight_dkv_kr", "weight_uq_qr")
    for name, tensor, dtype in zip(names, (token_x, weight_dq, weight_dkv_kr, weight_uq_qr), dtypes, strict=True):
        require_dtype(op, name, tensor, (dtype,))
    require_dtype(op, "kv_cache", kv_cache, (torch.int8 if kv_cache_quant_mode else weight_uk.dtype,))
    query, query_rope, _, _, norm, scale = _prolog(
        token_x, weight_dq, weight_uq_qr, weight_uk, weight_dkv_kr, rmsnorm_gamma_cq, rmsnorm_gamma_ckv, rope_sin,
        rope_cos, cache_index, kv_cache, kr_cache, **options,
    )  # fmt: skip
    nothing = query.new_zeros(1, dtype=torch.float32)
    if not query_norm_flag:
        return query, query_rope, nothing, nothing.to(weight_uq_qr.dtype), nothing.clone()
    return query, query_rope, nothing, norm, nothing.clone() if scale is None else scale.reshape(-1, 1)
