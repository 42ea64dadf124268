# SPDX-License-Identifier: Apache-2.0
"""Strict mode: the documented limits of one chip, enforced on request, with the rule quoted.

By default operators accept a superset of what any chip accepts. Strict mode narrows them to a chip, so that code can be
checked before it meets a card. Limits that only a chip imposes live here; rules without which a result would be
undefined live with the operators.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from types import TracebackType

import torch

from anynpu._check import require_type

# Atlas A2 is Ascend910B, Atlas A3 is Ascend910_93; a longer name (Ascend910B3) is a model of the series.
STRICT_SERIES = {"Ascend910B": "Atlas A2", "Ascend910_93": "Atlas A3"}

_soc: str | None = None


def _require_known(soc: str) -> str:
    require_type("strict", "soc", soc, str, "a string or None")
    if not soc.startswith(tuple(STRICT_SERIES)):
        known = ", ".join(f"{name} ({series})" for name, series in STRICT_SERIES.items())
        raise ValueError(f"strict: the chip must be one of the series {known}, or a model of one, got {soc!r}")
    return soc


@functools.cache
def _environment_soc() -> str | None:
    """Of the variable ``ANYNPU_STRICT``, which is read once: every call of an operator asks for it."""
    environment = os.environ.get("ANYNPU_STRICT", "")
    return _require_known(environment) if environment not in ("", "0") else None


def strict_soc() -> str | None:
    """The chip whose limits are enforced, or None: the one set last, else that of the environment."""
    return _environment_soc() if _soc is None else _soc or None


class strict:
    """Enforces the documented limits of ``soc`` from now on, or within a ``with`` block; None lifts them.

    The setting holds for the whole process, not for one thread.

    Raises:
        ValueError: ``soc`` is not a chip whose limits are known.

    >>> import torch, anynpu
    >>> with anynpu.strict("Ascend910B"):
    ...     anynpu.int4_pack(torch.zeros(1, 2, 8, dtype=torch.int32))
    Traceback (most recent call last):
    ValueError: int4_pack: Ascend910B (Atlas A2) wants a 2-D weight, got 3 axes
    """

    def __init__(self, soc: str | None) -> None:
        global _soc
        chosen = "" if soc is None else _require_known(soc)
        self._before = _soc
        _soc = chosen

    def __enter__(self) -> strict:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _soc
        _soc = self._before


def require_limit(op: str, condition: bool, sentence: str) -> None:
    """``condition`` holds, when strict mode is on; otherwise a ValueError that names the chip and quotes the rule."""
    soc = strict_soc()
    if soc is not None and not condition:
        raise ValueError(f"{op}: {soc} ({_series(soc)}) {sentence}")


def _series(soc: str) -> str:
    return next(series for name, series in STRICT_SERIES.items() if soc.startswith(name))


def require_series(op: str, series: str) -> None:
    """In strict mode, the chip is one of ``series``, to which alone the document gives the operator."""
    soc = strict_soc()
    sentence = f"lacks this operator, which the document gives to {series} alone"
    require_limit(op, soc is not None and _series(soc) == series, sentence)


def check_int4_pack_limits(weight: torch.Tensor) -> None:
    """Strict limits of int4_pack."""
    require_limit("int4_pack", weight.dim() == 2, f"wants a 2-D weight, got {weight.dim()} axes")


def check_weight_quant_matmul_limits(x: torch.Tensor, k: int, n: int, scale: torch.Tensor) -> None:
    """Strict limits of weight_quant_matmul that hold for every weight."""
    op = "weight_quant_matmul"
    if strict_soc() is None:
        return
    require_limit(op, x.dim() == 2, f"wants a 2-D x, got {x.dim()} axes")
    require_limit(op, x.dtype != torch.float32, "wants x in float16 or bfloat16, got float32")
    encoded = scale.dtype == torch.int64
    require_limit(op, encoded or scale.dtype == x.dtype, f"wants scale in the dtype of x, {x.dtype}, got {scale.dtype}")
    for name, size in (("K", k), ("N", n)):
        require_limit(op, size <= 65535, f"wants {name} <= 65535, got {size}")


def check_weight_quant_matmul_nz_limits(
    k: int, n: int, *, int4: bool, transposed: bool, per_channel: bool, group_size: int, quant_scale: bool
) -> None:
    """Strict limits of weight_quant_matmul for a weight in FRACTAL_NZ; ``transposed``: a view of a (N, K) matrix."""
    op = "weight_quant_matmul"
    require_limit(op, not quant_scale, "wants no quant_scale with a FRACTAL_NZ weight")
    if not int4:
        return
    if group_size:
        rule = "with an int4 FRACTAL_NZ weight and groups wants"
        require_limit(op, group_size in (64, 128), f"{rule} group_size in {{64, 128}}, got {group_size}")
        require_limit(op, k % group_size == 0, f"{rule} K % group_size == 0, got {k} % {group_size}")
        require_limit(op, n % 64 == 0, f"{rule} N % 64 == 0, got N = {n}")
    elif per_channel:
        require_limit(op, transposed, "with an int4 FRACTAL_NZ weight and per-channel scales wants a transposed weight")


def check_rope_kv_cache_limits(
    x: torch.Tensor,
    cos: torch.Tensor,
    k_cache: torch.Tensor,
    head_parameters: Sequence[torch.Tensor | None],
    activation_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    cache_mode: str,
) -> None:
    """Strict limits of rope_kv_cache."""
    op = "rope_kv_cache"
    if strict_soc() is None:
        return
    require_series(op, "Atlas A2")
    batch, width = x.shape[0], x.shape[-1]
    require_limit(op, width <= 4096, f"wants x.shape[-1] <= 4096, got {width}")
    require_limit(op, width % 64 == 0, f"wants x.shape[-1] to be a multiple of 64, got {width}")
    require_limit(op, cos.dtype != torch.float32, "wants cos and sin in float16 or bfloat16, got float32")
    if cache_mode == "contiguous":
        planes = k_cache.shape[0]
        require_limit(op, planes > batch, f"wants k_cache.shape[0] > B = {batch} in contiguous mode, got {planes}")
    for parameter in head_parameters:
        axes = 2 if parameter is None else parameter.dim()
        require_limit(op, axes == 2, f"wants 2-D scales and offsets, got {axes} axes")
    tokens = x.numel() // width
    for name, tensor, count in (("activation_scale", activation_scale, tokens), ("bias", bias, width)):
        if tensor is not None and x.dtype == torch.int32:
            require_limit(op, tensor.numel() == count, f"wants {count} elements of {name}, got {tensor.numel()}")


def check_rope_kv_cache_index_limits(indices: torch.Tensor, cache_mode: str) -> None:
    """Strict limits of the values of the indices of rope_kv_cache: no slot to skip, none written twice."""
    if strict_soc() is None or cache_mode != "page":
        return
    lowest = int(indices.min()) if indices.numel() else 0
    require_limit("rope_kv_cache", lowest >= 0, f"wants every index to be at least 0, got {lowest}")
    distinct = indices.unique().numel()
    sentence = f"wants indices that do not repeat, got {distinct} values in {indices.numel()}"
    require_limit("rope_kv_cache", distinct == indices.numel(), sentence)


def check_compressed_matmul_chip() -> None:
    """No chip of strict mode has compressed_matmul."""
    require_series("compressed_matmul", "Atlas inference products")


def check_grouped_matmul_combine_limits(
    x: torch.Tensor, int4: bool, experts: int, n: int, batch: int, shared_input: torch.Tensor | None
) -> None:
    """Strict limits of grouped_matmul_combine."""
    op = "grouped_matmul_combine"
    if strict_soc() is None:
        return
    m, k = x.shape
    require_limit(op, 1 <= m <= 131072, f"wants M in [1, 16 * 1024 * 8 = 131072], got {m}")
    require_limit(op, 1 <= experts <= 256, f"wants E in [1, 256], got {experts}")
    require_limit(op, batch <= 16384, f"wants at most 16 * 1024 = 16384 rows of y, got {batch}")
    if int4:
        require_limit(op, k == 2048, f"with int4 weights wants K = 2048, got {k}")
        require_limit(op, n == 7168, f"with int4 weights wants N = 7168, got {n}")
    if shared_input is not None:
        rows = shared_input.shape[0]
        require_limit(op, 1 <= rows <= 2048, f"wants 1 to 2 * 1024 = 2048 rows of shared_input, got {rows}")
