# SPDX-License-Identifier: Apache-2.0
"""Replaces layers of a model by quantised ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch

from anynpu._check import require_module
from anynpu.nn import QuantizedLinear, QuantMoE
from anynpu.quantization.config import QuantConfig
from anynpu.quantization.read_by_parent import is_read_by_parent

Filter = Callable[[torch.nn.Module, str], bool]


def quantize_(
    model: torch.nn.Module,
    config: QuantConfig,
    filter_fn: Filter | None = None,
    skip: Sequence[str] = (),
) -> torch.nn.Module:
    """Replaces every layer of ``model`` that ``config`` takes by a quantised one, in place.

    Those are modules whose class is exactly ``torch.nn.Linear`` (subclasses have a meaning of their own), and with
    :class:`anynpu.W8A8` and :class:`anynpu.W4A8` the blocks of experts of transformers, as a whole. All
    layers are quantised before the first is replaced, so that an error leaves the model as it was. A layer that is
    used in several places stays one layer. A weight that is tied to another parameter (an embedding) is copied: the
    other one keeps its float weight, and a warning says so; ``skip=("lm_head",)`` leaves such a layer alone. Another
    warning says when there was nothing to quantise. Layers of transformers whose weight their parent computes with,
    such as ``dt_proj`` of Mamba, stay as they are.

    Args:
        model: any module; a model that is itself a Linear is not changed, use the result.
        config: such as :class:`anynpu.W4A16`, :class:`anynpu.W8A16`, :class:`anynpu.W8A8`, :class:`anynpu.W4A8`
            or :class:`anynpu.W8A8Compressed`.
        filter_fn: called with a layer and its name; it is quantised when it returns True.
        skip: layers to leave alone: whole names, last parts of names, or patterns such as ``"*.mlp.*"``.

    Returns:
        The model.

    Raises:
        TypeError: model is no module, config is no configuration, or a layer is not float.
        ValueError: the weight of a layer is empty, not finite or on the device meta (the error names the layer), or a
            name in ``skip`` fits none.

    >>> import torch, anynpu
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> anynpu.quantize_(model, anynpu.W4A16(group_size=32), skip=("2",))[0]
    WeightQuantLinear(in_features=64, out_features=8, bits=4, group_size=32, symmetric=True, bias=True, reordered=False)
    """
    require_module("quantize_", model)
    if not isinstance(config, QuantConfig):
        raise TypeError(f"quantize_: config must be one such as W4A16(...), got {config!r}")
    chosen = _chosen(model, config, filter_fn, skip)
    if not chosen:
        warnings.warn("quantize_: no layer was chosen, the model is as it was", stacklevel=2)
    replacements: dict[torch.nn.Module, QuantizedLinear | QuantMoE] = {}
    for name, module in chosen.items():
        if module not in replacements:
            replacements[module] = _quantized(name, module, config)
    _warn_of_tied(model, chosen)
    if "" in chosen:
        return replacements[chosen[""]]
    for name, module in chosen.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacements[module])
    return model


def _chosen(
    model: torch.nn.Module, config: QuantConfig, filter_fn: Filter | None, skip: Sequence[str]
) -> dict[str, torch.nn.Module]:
    if isinstance(skip, str):
        raise TypeError(f"quantize_: skip must be a sequence of names, got the string {skip!r}")
    modules = model.named_modules(remove_duplicate=False)
    layers = {name: module for name, module in modules if config.takes(module)}
    for pattern in skip:
        if not any(_fits(name, pattern) for name in layers):
            raise ValueError(f"quantize_: {pattern!r} in skip fits no layer of the model that {config} takes")
    chosen = {
        name: module
        for name, module in layers.items()
        if not any(_fits(name, pattern) for pattern in skip) and (filter_fn is None or filter_fn(module, name))
    }
    return {
        name: module
        for name, module in chosen.items()
        if not _is_within(name, chosen) and not is_read_by_parent(model, name)
    }


def _is_within(name: str, chosen: dict[str, torch.nn.Module]) -> bool:
    """Whether a layer is part of another one: the shared expert of a block of experts has linear layers."""
    parts = name.split(".") if name else []
    return any(".".join(parts[:count]) in chosen for count in range(len(parts)))


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith("." + pattern) or fnmatchcase(name, pattern)


def _quantized(name: str, module: torch.nn.Module, config: QuantConfig) -> QuantizedLinear | QuantMoE:
    try:
        if any(parameter.is_meta for parameter in module.parameters()):
            raise ValueError("its parameters are on the device meta, without values; load the model first")
        layer = config.layer(module, name).train(module.training)
    except (TypeError, ValueError) as error:
        raise type(error)(f"quantize_: layer {name!r}: {error}") from error
    layer.prepack()
    return layer


def _warn_of_tied(model: torch.nn.Module, chosen: dict[str, torch.nn.Module]) -> None:
    replaced = {
        f"{name}.{own}" if name else own: (parameter, name)
        for name, module in chosen.items()
        for own, parameter in module.named_parameters(remove_duplicate=False)
    }
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied = [(other, layer) for other, (weight, layer) in replaced.items() if weight is parameter]
        if tied and name not in replaced:
            other, layer = tied[0]
            warnings.warn(
                f"quantize_: {other} was tied to {name}, which keeps its own float weight; "
                f"skip=({layer!r},) leaves it alone",
                stacklevel=3,
            )
