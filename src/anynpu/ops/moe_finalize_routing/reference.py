# SPDX-License-Identifier: Apache-2.0
"""Oracle of moe_finalize_routing: float64, token by token, one rounding."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.moe_finalize_routing.spec import Arguments, check_values, sizes

_U = 2.0**-24  # half a unit in the last place of float32


def _terms(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 [N, K + 2, H]: what each token's result is the sum of; and the magnitudes that went into each term."""
    made = sizes(a)
    check_values(a, made.rows)
    rows = a.expanded_rows.double().reshape(made.rows, made.width)
    terms = torch.zeros(made.tokens, made.chosen + 2, made.width, dtype=torch.float64)
    magnitudes = torch.zeros_like(terms)
    for place, skip in ((-2, a.skip1), (-1, a.skip2)):
        if skip is not None:
            terms[:, place] = skip.double()
    magnitudes.copy_(terms.abs())
    for n in range(made.tokens):
        for j in range(made.chosen):
            at = int(a.row_idx[j * made.tokens + n if a.drop_pad_mode < 2 else n * made.chosen + j])
            row = rows[at] if at >= 0 else torch.zeros(made.width, dtype=torch.float64)
            shift = torch.zeros_like(row) if a.bias is None else a.bias[int(a.expert_idx[n, j])].double()
            scale = 1.0 if a.scales is None else float(a.scales[n, j])
            terms[n, j] = scale * (row + shift)
            magnitudes[n, j] = abs(scale) * (row.abs() + shift.abs())
    return terms, magnitudes


@takes(Arguments)
def moe_finalize_routing(a: Arguments) -> torch.Tensor:
    """out[n] = skip1[n] + skip2[n] + sum over j of scales[n, j] * (row of (n, j) + bias[expert of (n, j)])."""
    terms, _ = _terms(a)
    return terms.sum(1).to(a.expanded_rows.dtype)


@takes(Arguments)
def error_bound(a: Arguments) -> torch.Tensor:
    """Of every term K + 2 additions, a bias and a product at most are rounded; at the end one spacing of the dtype."""
    terms, magnitudes = _terms(a)
    limits = torch.finfo(a.expanded_rows.dtype)
    rounded = magnitudes.sum(1) * (terms.shape[1] + 2) * _U
    return rounded + terms.sum(1).abs() * limits.eps + limits.smallest_normal * limits.eps
