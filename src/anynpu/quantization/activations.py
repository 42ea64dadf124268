# SPDX-License-Identifier: Apache-2.0
"""Static scales of the activations of linear layers, from a calibration pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from anynpu._check import path_of, require, require_module, require_type
from anynpu._read import read_tensors

SCALES_FILE = "activation_scales.safetensors"


@dataclass(frozen=True)
class ActivationScales:
    """One scale for the input of each linear layer, by the layer's name: ``x`` is about ``int8 * scale``."""

    scales: Mapping[str, float]

    def save(self, folder: str | Path) -> Path:
        """Writes them as a file beside the model in ``folder``; returns its path."""
        path = path_of("ActivationScales.save", "folder", folder) / SCALES_FILE
        scales = {name: torch.tensor([scale], dtype=torch.float32) for name, scale in self.scales.items()}
        safetensors.torch.save_file(scales, path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> ActivationScales:
        """Reads what :meth:`save` wrote."""
        op = "ActivationScales.load"
        tensors = read_tensors(op, path_of(op, "folder", folder) / SCALES_FILE)
        for name, scale in tensors.items():
            positive = scale.numel() == 1 and 0 < float(scale) < math.inf
            require(op, positive, f"the scale of {name!r} must be one finite number above 0, got {scale}")
        return cls({name: float(scale) for name, scale in tensors.items()})

    def __repr__(self) -> str:
        return f"ActivationScales({len(self.scales)} layers)"


class _Recorder:
    """A forward pre-hook that notes the largest magnitude of a layer's inputs."""

    def __init__(self) -> None:
        self.largest: torch.Tensor | None = None

    def __call__(self, layer: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        x = args[0] if args else kwargs["input"]
        if x.numel():
            seen = x.detach().abs().amax().float()
            self.largest = seen if self.largest is None else torch.maximum(self.largest, seen)


def _scale(name: str, largest: float) -> float:
    if not math.isfinite(largest):
        raise ValueError(f"calibrate_activations: the inputs of {name!r} must be finite, got {largest}")
    return (largest or 1.0) / 127


@torch.inference_mode()
def calibrate_activations(model: torch.nn.Module, batches: Iterable[Any]) -> ActivationScales:
    """Runs a model over sample batches and derives a scale for the input of every ``torch.nn.Linear``.

    Each scale is the largest magnitude that reached the layer, over 127: within the sample nothing saturates. Layers
    that no batch reached get none.

    Args:
        model: in the mode that it is to run in, normally ``eval()``.
        batches: what the model is called with: tensors, tuples of positional or mappings of keyword arguments.

    Raises:
        ValueError: no batch at all, or activations that are not finite.

    >>> import torch, anynpu
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> scales = anynpu.calibrate_activations(model, [torch.tensor([[1.27, -2.54]])])
    >>> round(scales.scales["0"], 6)
    0.02
    >>> anynpu.quantize_(model, anynpu.W8A8(activations=scales))[0]
    QuantLinear(in_features=2, out_features=8, bias=True, static=True)
    """
    op = "calibrate_activations"
    require_module(op, model)
    require_type(op, "batches", batches, Iterable, "an iterable of batches")
    modules = model.named_modules(remove_duplicate=False)
    linears = {name: module for name, module in modules if type(module) is torch.nn.Linear}
    recorders = {linear: _Recorder() for linear in linears.values()}
    hooks = [linear.register_forward_pre_hook(note, with_kwargs=True) for linear, note in recorders.items()]
    count = 0
    try:
        for batch in batches:
            _call(model, batch)
            count += 1
    finally:
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise ValueError(f"{op}: batches must hold at least one batch, got none")
    seen = {name: recorders[linear].largest for name, linear in linears.items()}
    return ActivationScales({name: _scale(name, float(most)) for name, most in seen.items() if most is not None})


def _call(model: torch.nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple):
        model(*batch)
    else:
        model(batch)
