# SPDX-License-Identifier: Apache-2.0
"""PyTorch's int8 products."""

from __future__ import annotations

from quant_matmul import peers as quant_matmul

__all__ = ["NAME", "quant_matmul", "unavailable"]

NAME = "torch int8"


def unavailable() -> str | None:
    """Never: anynpu itself needs torch."""
    return None
