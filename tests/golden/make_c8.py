# SPDX-License-Identifier: Apache-2.0
"""Writes c8_now.safetensors: matrices, and what compress_weight makes of them. Only a new encoder may change it.

c8.safetensors and c8_2.safetensors hold the same matrices as the first encoders of versions 1 and 2 wrote them.

python tests/golden/make_c8.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from anynpu.formats import compress_weight


def matrices() -> dict[str, torch.Tensor]:
    """Small matrices that use every kind of block, both orders of codes, tables per column and several levels."""
    random = torch.Generator().manual_seed(0)

    def normal(n: int, k: int, sigma: float | torch.Tensor) -> torch.Tensor:
        values = torch.randn(n, k, generator=random) * sigma
        return values.round().clamp(-128, 127).to(torch.int8)

    return {
        "raw": torch.randint(-128, 128, (64, 64), dtype=torch.int8, generator=random),
        "constant": torch.full((64, 40), -128, dtype=torch.int8),
        "one_level": normal(64, 256, 20),
        "not_negative": normal(64, 256, 20).clamp(min=0),
        "two_levels": normal(64, 256, 3),
        "many_levels": normal(64, 256, 0.4),
        "zeros": normal(128, 256, 20) * (torch.rand(128, 256, generator=random) < 0.3),
        "rows_differ": normal(128, 256, torch.logspace(0, 1.7, 128).unsqueeze(1)),
        "two_by_two_blocks": normal(131, 259, 9),
    }


if __name__ == "__main__":
    tensors = {}
    for name, weight in matrices().items():
        compressed = compress_weight(weight)
        tensors |= {f"{name}.weight": weight, f"{name}.stream": compressed.stream, f"{name}.index": compressed.index}
    save_file(tensors, Path(__file__).with_name("c8_now.safetensors"), {"format": "c8, version 2"})
