# SPDX-License-Identifier: Apache-2.0
"""PyTorch's tensor operations and attention, for the operators of the INT8 KV cache."""

from __future__ import annotations

import shutil

from kv_cache import attention_peers as kv_cache_attention
from kv_cache import rope_peers as rope_kv_cache

__all__ = ["NAME", "kv_cache_attention", "rope_kv_cache", "unavailable"]

NAME = "torch and torch.compile (KV cache)"


def unavailable() -> str | None:
    """Inductor needs a C++ compiler."""
    return None if shutil.which("c++") or shutil.which("g++") else "no C++ compiler for torch.compile"
