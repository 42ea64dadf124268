# SPDX-License-Identifier: Apache-2.0
"""Linear layers with int8 activations, which they quantise, and int4 weights (W4A8)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from measure import Variant, copies_for
from problems import MatmulProblem

import anynpu
from anynpu.formats.quantized_weight import QuantizedWeight

_SHAPES = [(4096, 4096), (4096, 14336)]  # (K, N)
_PER_ROW = 2.0**-6  # int8 activations: a row has one scale, half of 1/127 of its largest value


def problems(quick: bool) -> Iterator[MatmulProblem]:
    """Those of weight_quant_matmul."""
    for k, n in _SHAPES[:1] if quick else _SHAPES:
        for m in (1, 256) if quick else (1, 4, 16, 64, 256):
            yield MatmulProblem(m, k, n, group_size=128, bits=4)


def variants(problem: MatmulProblem) -> Iterator[Variant]:
    """The layer, and the same operators on weights that are not prepacked."""
    words, scale, x = anynpu.int4_pack(problem.weight), problem.scale, problem.x.bfloat16()

    def layer() -> anynpu.nn.Int4Linear:
        made = anynpu.nn.Int4Linear.from_quantized(QuantizedWeight(words.clone(), scale, None, problem.group_size))
        made.prepack()
        return made

    def plain(weight: torch.Tensor) -> torch.Tensor:
        codes, token = anynpu.dynamic_quant(x)
        options = {"pertoken_scale": token, "output_dtype": x.dtype, "group_size": problem.group_size}
        return anynpu.quant_matmul(codes, weight, scale, **options)

    copies = range(copies_for(words.nbytes))
    layers, weights = [layer() for _ in copies], [words.clone() for _ in copies]
    for name, calls in {
        "anynpu Int4Linear": [lambda layer=layer: layer(x) for layer in layers],
        "anynpu plain layout": [lambda weight=weight: plain(weight) for weight in weights],
    }.items():
        yield Variant(
            name=f"{name} bf16",
            arithmetic="W4A8",
            calls=calls,
            expected=lambda: problem.expected(torch.bfloat16),
            tolerance=_PER_ROW,
            bytes=words.nbytes + scale.nbytes + x.nbytes + 2 * problem.m * problem.n,
        )
