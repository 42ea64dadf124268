# SPDX-License-Identifier: Apache-2.0
"""Reads files that somebody else may have written: whatever they hold, damage is a ValueError that names the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from anynpu._check import require


def parse_object(op: str, what: str, text: str | bytes) -> dict:
    """The JSON object in ``text``; ``what`` names it in errors."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{op}: {what} is not JSON: {error}") from error
    require(op, isinstance(value, dict), f"{what} must hold an object, got {type(value).__name__}")
    return value


def read_object(op: str, path: Path) -> dict:
    """The JSON object in a file."""
    if not path.exists():
        raise FileNotFoundError(f"{op}: {path} is missing")
    return parse_object(op, str(path), path.read_bytes())


def shard_names(op: str, index: Path) -> set[str]:
    """The files that the index of a sharded checkpoint names, all of them in its own folder."""
    weight_map = read_object(op, index).get("weight_map")
    require(op, isinstance(weight_map, dict), f"weight_map of {index} must be an object, got {weight_map!r:.80}")
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file == os.path.basename(file) and file.endswith(".safetensors")
        require(op, plain, f"{index} must name a .safetensors file of its folder for {name!r:.80}, got {file!r:.80}")
    return set(weight_map.values())


def open_tensors(op: str, path: Path) -> safe_open:
    """A safetensors file, open."""
    if not path.exists():
        raise FileNotFoundError(f"{op}: {path} is missing")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{op}: {path} is no safetensors file or damaged: {error}") from error


def read_tensor(op: str, file: safe_open, name: str) -> torch.Tensor:
    """One tensor of a safetensors file, which may lack it or have it in a dtype that torch lacks."""
    try:
        return file.get_tensor(name)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{op}: {name} cannot be read: {error}") from error


def read_tensors(op: str, path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file."""
    with open_tensors(op, path) as file:
        return {name: read_tensor(op, file, name) for name in file.keys()}
