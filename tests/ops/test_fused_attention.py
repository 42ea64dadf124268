# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import gpu_cases
import pytest
import torch
import torch.nn.functional as F

import anynpu
from anynpu.ops.fused_attention import composite
from anynpu.ops.fused_attention.reference import error_bound


def assert_within_bounds(results, args):
    for result, expected, bound in zip(
        results, anynpu.reference.fused_attention(**args), error_bound(**args), strict=True
    ):
        gpu_cases.assert_within(result, expected, bound)


@case_table.valid_calls("fused_attention")
def test_is_within_bounds_of_reference(case, isa, each_thread_count):
    first, *others = each_thread_count(lambda: anynpu.fused_attention(**case.args))
    assert_within_bounds(first, case.args)
    for other in others:
        assert all(map(torch.equal, first, other))


@case_table.valid_calls("fused_attention")
def test_torch_operators_are_within_bounds_of_reference(case):
    assert_within_bounds(composite.fused_attention(**case.args), case.args)


def reals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("causal", [False, True])
def test_reference_equals_sdpa(causal):
    """An independent definition: torch's float64 attention, with its own handling of heads and masks."""
    q, k, v = reals(2, 9, 6, 16), reals(2, 9, 2, 16, seed=1), reals(2, 9, 2, 24, seed=2)
    doubles = [x.double().transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*doubles, is_causal=causal, enable_gqa=True).transpose(1, 2)
    result, _ = anynpu.reference.fused_attention(q, k, v, after=0 if causal else 2147483647)
    torch.testing.assert_close(result.double(), expected, rtol=1e-6, atol=1e-6)


def test_what_lies_behind_a_sequence_is_not_read(isa):
    q, k, v = reals(2, 3, 4, 16), reals(2, 90, 2, 16, seed=1), reals(2, 90, 2, 16, seed=2)
    lengths = {"q_lengths": torch.tensor([3, 1]), "kv_lengths": torch.tensor([80, 7])}
    expected, _ = anynpu.fused_attention(q, k, v, **lengths)
    for x, ends in ((q, (3, 1)), (k, (80, 7)), (v, (80, 7))):
        for b, end in enumerate(ends):
            x[b, end:] = torch.nan
    for function in (anynpu.fused_attention, composite.fused_attention, anynpu.reference.fused_attention):
        torch.testing.assert_close(function(q, k, v, **lengths)[0], expected, rtol=1e-5, atol=1e-5)


def test_columns_that_a_mask_hides_count_for_nothing(isa):
    q, k, v = reals(1, 1, 4, 32), reals(1, 900, 2, 32, seed=1), reals(1, 900, 2, 32, seed=2)
    mask = torch.zeros(1, 1, 1, 900, dtype=torch.bool)
    mask[..., :400] = mask[..., 600:] = True
    k[:, :400] = 1e4
    result, lse = anynpu.fused_attention(q, k, v, mask=mask, with_lse=True)
    expected, expected_lse = anynpu.fused_attention(q, k[:, 400:600], v[:, 400:600], with_lse=True)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-6, atol=1e-6)
    result, lse = anynpu.fused_attention(q, k, v, mask=torch.ones_like(mask), with_lse=True)
    assert result.eq(0).all() and lse.eq(-torch.inf).all()


@pytest.mark.parametrize("sink", [-1e4, 1e4, torch.inf, -torch.inf])
def test_sinks_of_any_size(sink, isa):
    q, k, v = reals(1, 1, 2, 16), reals(1, 9, 2, 16, seed=1), reals(1, 9, 2, 16, seed=2)
    result, _ = anynpu.fused_attention(q, k, v, sink=torch.tensor([sink, -torch.inf]))
    alone, _ = anynpu.fused_attention(q, k, v)
    assert torch.equal(result[:, :, 1], alone[:, :, 1])
    assert torch.equal(result[:, :, 0], alone[:, :, 0] if sink < 0 else torch.zeros(1, 1, 16))


def test_int8_results_are_rounded_float32_results(isa):
    q, k, v = reals(2, 3, 4, 16).half(), reals(2, 90, 2, 16, seed=1).half(), reals(2, 90, 2, 40, seed=2).half()
    floats, _ = anynpu.fused_attention(*(x.float() for x in (q, k, v)))
    scale, offset = torch.tensor([[512.0, 64.0]]).repeat(4, 20), torch.tensor([[3.0], [0.0], [-2.0], [90.0]])
    expected = (floats * scale + offset).round().clamp(-128, 127)
    assert expected.unique().numel() > 200
    result, _ = anynpu.fused_attention(q, k, v, out_scale=scale, out_offset=offset)
    assert result.dtype == torch.int8 and (result - expected).abs().max() <= 1  # sums may be cut otherwise
    result, _ = anynpu.fused_attention(q.float(), k.float(), v.float(), out_scale=scale, out_offset=offset)
    assert torch.equal(result.float(), expected)


def test_reference_of_int8_products():
    """Their definition, spelled out for one head."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randint(-128, 128, (1, rows, 1, 8), generator=generator).to(torch.int8) for rows in (3, 20, 20))
    scale, p_scale, v_scale = torch.tensor(2.0**-9), torch.tensor([127.0]), torch.tensor(2.0**-4)
    result, _ = anynpu.reference.fused_attention(
        q, k, v, k_scale=scale.reshape(1, 1, 1, 1), v_scale=v_scale.reshape(1, 1, 1, 1), p_scale=p_scale,
        softmax_scale=0.5,
    )  # fmt: skip
    products = q[0, :, 0].long() @ k[0, :, 0].long().mT
    weights = (products.double() * scale * 0.5).softmax(-1)
    sums = (weights * 127).round().long() @ v[0, :, 0].long()
    assert torch.equal(result[0, :, 0], (sums.double() * v_scale).half())


def test_gradients_flow_through_torch_operators():
    q, k, v = (reals(1, 5, 2, 8, seed=seed).requires_grad_() for seed in range(3))
    composite.fused_attention(q, k, v, after=0)[0].sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))
