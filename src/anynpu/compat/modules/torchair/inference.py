# SPDX-License-Identifier: Apache-2.0
"""``torchair.inference``: functions compiled ahead, and hints about shapes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from anynpu.compat.errors import module_getattr, not_implemented
from torchair._backend import get_npu_backend
from torchair.configs.compiler_config import CompilerConfig

readable_cache = not_implemented("torchair.inference.readable_cache")


def cache_compile(
    func: Callable[..., Any],
    *,
    config: CompilerConfig | None = None,
    dynamic: bool = True,
    cache_dir: str | None = None,
    global_rank: int | None = None,
    tp_rank: int | None = None,
    pp_rank: int | None = None,
    custom_decompositions: dict[Any, Callable[..., Any]] | None = None,
    **kwargs: Any,
) -> Callable[..., Any]:
    """``func``, a function or a method of a module, compiled as one graph with ``torchair.get_npu_backend``.

    No cache is written: ``cache_dir`` and the ranks, which name it, have no effect, nor have other options.

    Raises:
        ValueError: ``func`` is not a function or a method of a module.
    """
    owner = getattr(func, "__self__", None)
    if not inspect.isroutine(func) or not (owner is None or isinstance(owner, torch.nn.Module)):
        raise ValueError(f"cache_compile: func must be a function or a method of a module, got {type(func).__name__}")
    backend = get_npu_backend(compiler_config=config, custom_decompositions=custom_decompositions)
    return torch.compile(func, backend=backend, dynamic=dynamic, fullgraph=True)


def set_dim_gears(t: torch.Tensor, dim_gears: Mapping[int, Sequence[int]]) -> None:
    """Checks the sizes that axes of ``t`` will have. They have no effect: graphs take other sizes too.

    Raises:
        TypeError, ValueError: a sentence names the axis.
    """
    if not isinstance(t, torch.Tensor) or not isinstance(dim_gears, Mapping):
        got = type(t).__name__, type(dim_gears).__name__
        raise TypeError(f"set_dim_gears: t must be a tensor and dim_gears a dict, got {got[0]} and {got[1]}")
    for axis, sizes in dim_gears.items():
        if not isinstance(axis, int) or not -t.dim() <= axis < t.dim():
            raise ValueError(f"set_dim_gears: dim_gears must name axes of t, which has {t.dim()}, got {axis!r}")
        if not isinstance(sizes, list | tuple) or not all(isinstance(size, int) for size in sizes):
            raise TypeError(f"set_dim_gears: the gears of axis {axis} must be a list of ints, got {sizes!r}")


__getattr__ = module_getattr(__name__, globals())
