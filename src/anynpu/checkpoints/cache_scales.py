# SPDX-License-Identifier: Apache-2.0
"""Static scales of an INT8 KV cache beside a model: the file of KVScales, and the tensors of msModelSlim's type C8."""

from __future__ import annotations

from pathlib import Path

import torch

from anynpu._check import require
from anynpu.checkpoints.experts import name_in_files
from anynpu.checkpoints.folder import Tensors, open_folder
from anynpu.checkpoints.msmodelslim import CACHE_OFFSET, CACHE_SCALE, description_of
from anynpu.kv_scales import SCALES_FILE, KVScales

_OP = "convert_checkpoint"
_PROJECTIONS = ("k_proj", "v_proj")


def read_scales(folder: Path, model: torch.nn.Module) -> KVScales | None:
    """The scales in the folder that ``model`` was loaded from, if it has any.

    Raises:
        TypeError, ValueError: damaged scales, or some that :class:`KVScales` does not hold.
    """
    if (folder / SCALES_FILE).is_file():
        return KVScales.load(folder)
    if not folder.is_dir() or description_of(folder) is None:
        return None
    with open_folder(folder) as tensors:
        keys, values = (_read(model, tensors, part) for part in _PROJECTIONS)
    return KVScales(torch.stack(keys), torch.stack(values)) if keys and values else None


def _read(model: torch.nn.Module, tensors: Tensors, part: str) -> list[torch.Tensor]:
    heads = model.config.get_text_config(decoder=True).num_key_value_heads
    scales = []
    for name in _projections(model, part):
        if f"{name}.{CACHE_SCALE}" not in tensors.files:
            continue
        own = tensors.of_module(name, {key for key in (CACHE_SCALE, CACHE_OFFSET) if f"{name}.{key}" in tensors.files})
        symmetric = not bool(own.get(CACHE_OFFSET, torch.zeros(1)).any())
        require(_OP, symmetric, f"{name}.{CACHE_OFFSET} must be 0 everywhere, got other values")
        scale = own[CACHE_SCALE].float().flatten()
        by_channel = scale.numel() > heads and scale.numel() % heads == 0
        require(_OP, by_channel, f"{name}.{CACHE_SCALE} must have a scale for each channel, got {scale.numel()}")
        scales.append(scale.view(heads, -1))
    return scales


def cache_tensors(model: torch.nn.Module, scales: KVScales) -> dict[str, torch.Tensor]:
    """The tensors of the type C8 by their names in files.

    Raises:
        ValueError: the layers that cache keys and values are not those with projections of their own.
    """
    made = {}
    for part, own in zip(_PROJECTIONS, (scales.k, scales.v), strict=True):
        names = _projections(model, part)
        fits = len(names) == len(own)
        require(_OP, fits, f"scales of the KV cache must be those of {len(names)} layers with a {part}, got {len(own)}")
        for name, scale in zip(names, own, strict=True):
            made[f"{name}.{CACHE_SCALE}"] = scale.flatten()
            made[f"{name}.{CACHE_OFFSET}"] = torch.zeros(scale.numel())
    return made


def _projections(model: torch.nn.Module, part: str) -> list[str]:
    return [name_in_files(model, name) for name, _ in model.named_modules() if name.rpartition(".")[2] == part]
