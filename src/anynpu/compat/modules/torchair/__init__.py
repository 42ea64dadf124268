# SPDX-License-Identifier: Apache-2.0
"""``torchair``: graph mode of torch_npu, on PyTorch's own compilers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from anynpu.compat import formats
from anynpu.compat.errors import module_getattr, not_implemented
from torchair import configs, core, inference, scope
from torchair._backend import get_npu_backend
from torchair.configs.compiler_config import CompilerConfig
from torchair.core.utils import logger

dynamo_export = not_implemented("torchair.dynamo_export")
register_fx_node_ge_converter = not_implemented("torchair.register_fx_node_ge_converter")


def patch_for_hcom() -> None:
    """Nothing to patch: torch captures collectives itself."""


def register_replacement(
    search_fn: Callable[..., Any],
    replace_fn: Callable[..., Any],
    example_inputs: Iterable[Any],
    trace_fn: Callable[..., Any] | None = None,
    extra_check: Callable[..., bool] | None = None,
    search_fn_pattern: Any = None,
) -> None:
    """Takes note of nothing: a replacement computes what it replaces, so graphs may stay as they are."""
    for name, function in (("search_fn", search_fn), ("replace_fn", replace_fn)):
        if not callable(function):
            raise TypeError(f"register_replacement: {name} must be callable, got {type(function).__name__}")


def use_internal_format_weight(model: torch.nn.Module) -> None:
    """Notes FRACTAL_NZ for the weights of the linear layers in ``model``; results stay what they are."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            formats.set_format(module.weight, formats.Format.FRACTAL_NZ)


__all__ = [
    "CompilerConfig",
    "configs",
    "core",
    "dynamo_export",
    "get_npu_backend",
    "inference",
    "logger",
    "patch_for_hcom",
    "register_fx_node_ge_converter",
    "register_replacement",
    "scope",
    "use_internal_format_weight",
]

__getattr__ = module_getattr(__name__, globals())
