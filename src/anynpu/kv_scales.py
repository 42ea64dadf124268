# SPDX-License-Identifier: Apache-2.0
"""Static scales of an INT8 KV cache, and their file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from anynpu._check import path_of, require, require_dtype
from anynpu._read import read_tensors

SCALES_FILE = "kv_cache_scales.safetensors"


@dataclass(frozen=True)
class KVScales:
    """Static scales of an INT8 KV cache: ``k`` and ``v`` are float32 ``[layers, Nkv, D]``, finite and above 0.

    Raises:
        TypeError, ValueError: others.
    """

    k: torch.Tensor
    v: torch.Tensor

    def __post_init__(self) -> None:
        op = "KVScales"
        for name, scale in (("k", self.k), ("v", self.v)):
            require_dtype(op, name, scale, (torch.float32,))
            sound = bool((scale.isfinite() & (scale > 0)).all())
            require(op, sound, f"every value of {name} must be finite and above 0, got others")
        shapes = f"{tuple(self.k.shape)} and {tuple(self.v.shape)}"
        same = self.k.dim() == 3 and self.k.shape == self.v.shape
        require(op, same, f"k and v must have the same shape [layers, Nkv, D], got {shapes}")

    def save(self, folder: str | Path) -> Path:
        """Writes them as a file beside the model in ``folder``; returns its path."""
        path = path_of("KVScales.save", "folder", folder) / SCALES_FILE
        safetensors.torch.save_file({"k": self.k, "v": self.v}, path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> KVScales:
        """Reads what :meth:`save` wrote."""
        op = "KVScales.load"
        tensors = read_tensors(op, path_of(op, "folder", folder) / SCALES_FILE)
        require(op, tensors.keys() == {"k", "v"}, f"the file must hold k and v, got {sorted(tensors)}")
        return cls(**tensors)
