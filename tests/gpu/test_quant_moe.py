# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts with every operator on its CUDA kernel."""

from __future__ import annotations

import importlib

import gpu_cases
import pytest
import torch
from expert_bounds import quantised_expert_and_bound

import anynpu
from anynpu.nn import QuantMoE
from anynpu.nn.quant_experts import QuantExperts

OPERATORS = {"dequant_swiglu_quant", "dynamic_quant", "grouped_matmul_combine", "moe_init_routing"}
ROUTERS = {"softmax": "moe_gating_topk_softmax", "sigmoid": "moe_gating_topk"}
CONFIGS = {"W8A8": anynpu.W8A8(), "W4A8": anynpu.W4A8(group_size=32)}
EXPERTS, HIDDEN, INTERMEDIATE, CHOICES, TOKENS = 6, 64, 32, 3, 7
SHAPES = ((2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE))
BFLOAT16, ROUTER = 2.0**-8, 2.0**-20  # relative errors of the shared expert's result, and of a router's weights


@pytest.fixture
def called(monkeypatch, kernel):
    """The operators that CUDA kernels were called for.

    In the interpreter tensors are on the CPU: there the public functions get the kernels in place of the operators.
    """
    names = set()

    def noting(name, function):
        def call(*args):
            names.add(name)
            return function(*args)

        return call

    for name in OPERATORS | set(ROUTERS.values()):
        module = importlib.import_module(f"anynpu.ops.{name}")
        monkeypatch.setattr(module, "_op", noting(name, kernel(name) if gpu_cases.INTERPRETED else module._op))
    return names


def experts_of(config, weights):
    gate_up, down = (config.quantize_experts(weight) for weight in weights)
    return QuantExperts.from_codes(gate_up, down, config.bits, config.group_size)


@pytest.mark.parametrize("scoring", ROUTERS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_computes_what_its_codes_stand_for(config, scoring, called, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, HIDDEN, generator=generator)
    routed = [torch.randn(EXPERTS, *shape, generator=generator) / 8 for shape in SHAPES]
    shared = [torch.randn(1, *shape, generator=generator) / 8 for shape in SHAPES]
    router = torch.randn(EXPERTS, HIDDEN, generator=generator) / 8
    bias = torch.randn(EXPERTS, generator=generator) / 8 if scoring == "sigmoid" else None
    layer = QuantMoE.from_experts(
        experts_of(config, routed), router, CHOICES, experts_of(config, shared), bias, scoring=scoring
    )
    weights, chosen = layer.route(x)
    called.clear()
    y = layer.to(device)(x.to(device)).cpu()
    assert called == {*OPERATORS, ROUTERS[scoring]}
    expected, bound = quantised_expert_and_bound(x, config, shared[0][0], shared[1][0])
    bound += BFLOAT16 * (expected.abs() + bound)
    for token in range(TOKENS):
        for weight, expert in zip(weights[token], chosen[token].tolist(), strict=True):
            own = (x[token : token + 1], config, routed[0][expert], routed[1][expert])
            value, error = (part[0] for part in quantised_expert_and_bound(*own))
            expected[token] += weight * value
            bound[token] += weight.abs() * (error + ROUTER * value.abs())
    assert ((y - expected).abs() <= bound).all()
