# SPDX-License-Identifier: Apache-2.0
"""How far an expert with quantised weights and activations may be from the float one."""

from __future__ import annotations

import torch

from anynpu import reference

SILU_SLOPE = 1.1  # silu changes by at most this much times what its argument does
SUM = 2.0**-20  # relative error of float32 sums of a few hundred terms and what goes with them


def _dequantised(codes, scale):
    """float64 [N, K] of codes [N, K] and scales [N, G]."""
    return codes.double() * scale.double().repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)


def _product_error(x, x_error, codes, scale, weight):
    """|x @ W.T - x' @ W'.T| for every x' within x_error of x, where W' is what the codes of W stand for."""
    weight_error = (_dequantised(codes, scale) - weight.double()).abs()
    return x.abs() @ weight_error.T + x_error @ (weight.double().abs() + weight_error).T


def expert_and_bound(x, config, gate_up, down):
    """A float64 expert on rows x [T, H], and how far the quantised one may be from it.

    Every activation is rounded to half a step of its row. SUM covers the float32 arithmetic.
    """
    first, second = ([part[0] for part in config.quantize_experts(weight.unsqueeze(0))] for weight in (gate_up, down))
    half_step = x.abs().amax(1, keepdim=True) / 127 / 2
    error = _product_error(x, half_step.expand_as(x), *first, gate_up)
    (gate, up), (gate_error, up_error) = (x @ gate_up.double().T).chunk(2, 1), error.chunk(2, 1)
    silu = torch.nn.functional.silu(gate)
    active = silu * up
    active_error = SILU_SLOPE * gate_error * (up.abs() + up_error) + silu.abs() * up_error
    half_step = (active.abs() + active_error).amax(1, keepdim=True) / 127 / 2
    y = active @ down.double().T
    bound = _product_error(active, active_error + half_step, *second, down)
    return y, bound + SUM * (y.abs() + bound)


def quantised_expert_and_bound(x, config, gate_up, down):
    """float64 results of an expert with quantised weights on quantised rows, and how far float32 may be from them.

    The products are right to SUM of the magnitudes that are added, and a code between them may differ by 1 where its
    error reaches a tie.
    """
    first, second = (
        _dequantised(*[part[0] for part in config.quantize_experts(weight.unsqueeze(0))]) for weight in (gate_up, down)
    )
    codes, scale = reference.dynamic_quant(x)
    rows = codes.double() * scale.double().unsqueeze(1)
    (gate, up), (gate_error, up_error) = (rows @ first.T).chunk(2, 1), (SUM * (rows.abs() @ first.abs().T)).chunk(2, 1)
    silu = torch.nn.functional.silu(gate)
    active = silu * up
    error = SILU_SLOPE * gate_error * up.abs() + silu.abs() * up_error + SUM * active.abs()
    step = active.abs().amax(1, keepdim=True) / 127
    quotient = active / step
    relative = error.amax(1, keepdim=True) / (127 * step) + SUM
    flips = (quotient - quotient.floor() - 0.5).abs() <= error / step + quotient.abs() * relative
    active = quotient.round() * step
    bound = (flips * step) @ second.abs().T + (SUM + relative) * (active.abs() @ second.abs().T)
    return active @ second.T, bound
