# SPDX-License-Identifier: Apache-2.0
"""PyTorch's tensor operations and attention, for the operators of the INT8 KV cache and for those of prompts."""

from __future__ import annotations

import shutil

from kv_cache import attention_peers as kv_cache_attention
from kv_cache import rope_peers as rope_kv_cache
from prompt_attention import peers as fused_attention

__all__ = ["NAME", "fused_attention", "kv_cache_attention", "rope_kv_cache", "unavailable"]

NAME = "torch and torch.compile (attention)"


def unavailable() -> str | None:
    """Inductor needs a C++ compiler."""
    return None if shutil.which("c++") or shutil.which("g++") else "no C++ compiler for torch.compile"
