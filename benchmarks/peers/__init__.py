# SPDX-License-Identifier: Apache-2.0
"""Other libraries, one module each.

A module has ``NAME``, ``unavailable() -> str | None`` (why it cannot run here) and, for each operator that it can be
compared with, a function named like the operator: problem -> variants.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from measure import Variant

from peers import (
    bitsandbytes_nf4,
    onnxruntime_nbits,
    openvino_matmul,
    torch_cpu,
    torch_int8,
    torch_kv_cache,
    torch_moe,
    vllm_cpu,
    zentorch_linear,
)

ALL = (
    torch_cpu,
    torch_int8,
    torch_kv_cache,
    torch_moe,
    bitsandbytes_nf4,
    onnxruntime_nbits,
    openvino_matmul,
    vllm_cpu,
    zentorch_linear,
)


def unavailable() -> dict[str, str]:
    """The peers that cannot run here, each with the reason."""
    reasons = {peer.NAME: peer.unavailable() for peer in ALL}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def variants(operator: str, problem: Any) -> Iterator[Variant]:
    """What the installed peers offer for ``problem``."""
    for peer in ALL:
        if peer.unavailable() is None and hasattr(peer, operator):
            yield from getattr(peer, operator)(problem)
