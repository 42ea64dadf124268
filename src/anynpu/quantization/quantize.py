# SPDX-License-Identifier: Apache-2.0
"""Replaces the linear layers of a model by quantised ones."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch

from anynpu.nn import QuantizedLinear
from anynpu.quantization.config import QuantConfig

Filter = Callable[[torch.nn.Module, str], bool]


def quantize_(
    model: torch.nn.Module,
    config: QuantConfig,
    filter_fn: Filter | None = None,
    skip: Sequence[str] = (),
) -> torch.nn.Module:
    """Replaces every ``torch.nn.Linear`` of ``model`` by the quantised layer of ``config``, in place.

    Only modules whose class is exactly ``torch.nn.Linear`` are replaced: subclasses have a meaning of their own. All
    layers are quantised before the first is replaced, so that an error leaves the model as it was. A layer that is
    used in several places stays one layer. A weight that is tied to another parameter (an embedding) is copied: the
    other one keeps its float weight, and a warning says so; ``skip=("lm_head",)`` leaves such a layer alone. Another
    warning says when there was nothing to quantise.

    Args:
        model: any module; a model that is itself a Linear is not changed, use the result.
        config: such as :class:`anynpu.W4A16`, :class:`anynpu.W8A16`, :class:`anynpu.W8A8` or
            :class:`anynpu.W8A8Compressed`.
        filter_fn: called with a Linear and its name; the layer is quantised when it returns True.
        skip: layers to leave alone: whole names, last parts of names, or patterns such as ``"*.mlp.*"``.

    Returns:
        The model.

    Raises:
        TypeError: config is no configuration, or a layer is not float.
        ValueError: the weight of a layer is empty or not finite (the error names the layer), or a name in ``skip``
            fits no Linear.

    >>> import torch, anynpu
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> anynpu.quantize_(model, anynpu.W4A16(group_size=32), skip=("2",))[0]
    WeightQuantLinear(in_features=64, out_features=8, bits=4, group_size=32, symmetric=True, bias=True, reordered=False)
    """
    if not isinstance(config, QuantConfig):
        raise TypeError(f"quantize_: config must be one such as W4A16(...), got {config!r}")
    chosen = _chosen(model, filter_fn, skip)
    if not chosen:
        warnings.warn("quantize_: no torch.nn.Linear was chosen, the model is as it was", stacklevel=2)
    replacements: dict[torch.nn.Linear, QuantizedLinear] = {}
    for name, linear in chosen.items():
        if linear not in replacements:
            replacements[linear] = _quantized(name, linear, config)
    _warn_of_tied(model, chosen)
    if "" in chosen:
        return replacements[chosen[""]]
    for name, linear in chosen.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, replacements[linear])
    return model


def _chosen(model: torch.nn.Module, filter_fn: Filter | None, skip: Sequence[str]) -> dict[str, torch.nn.Linear]:
    if isinstance(skip, str):
        raise TypeError(f"quantize_: skip must be a sequence of names, got the string {skip!r}")
    modules = model.named_modules(remove_duplicate=False)
    linears = {name: module for name, module in modules if type(module) is torch.nn.Linear}
    for pattern in skip:
        if not any(_fits(name, pattern) for name in linears):
            raise ValueError(f"quantize_: {pattern!r} in skip fits no torch.nn.Linear of the model")
    return {
        name: linear
        for name, linear in linears.items()
        if not any(_fits(name, pattern) for pattern in skip) and (filter_fn is None or filter_fn(linear, name))
    }


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or name.endswith("." + pattern) or fnmatchcase(name, pattern)


def _quantized(name: str, linear: torch.nn.Linear, config: QuantConfig) -> QuantizedLinear:
    try:
        layer = config.layer(linear, name).train(linear.training)
    except (TypeError, ValueError) as error:
        raise type(error)(f"quantize_: layer {name!r}: {error}") from error
    layer.prepack()
    return layer


def _warn_of_tied(model: torch.nn.Module, chosen: dict[str, torch.nn.Linear]) -> None:
    replaced = {f"{name}.weight" if name else "weight": linear.weight for name, linear in chosen.items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied = [other for other, weight in replaced.items() if weight is parameter]
        if tied and name not in replaced:
            warnings.warn(
                f"quantize_: {tied[0]} was tied to {name}, which keeps its own float weight; "
                f"skip=({tied[0].removesuffix('.weight')!r},) leaves it alone",
                stacklevel=3,
            )
