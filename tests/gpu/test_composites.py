# SPDX-License-Identifier: Apache-2.0
"""Operators that on CUDA are made of tensor operations."""

from __future__ import annotations

import gpu_cases
import pytest
import torch

from anynpu import _device_errors, check_device_errors
from anynpu._register import operators

NAMES = [name for name in sorted(operators) if not operators[name].cuda.endswith(".triton")]
CALLS = [(name, call, args) for name in NAMES for call, args in gpu_cases.calls(name)]
IDS = [f"{name}: {call}" for name, call, _ in CALLS]


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize(("name", "call", "args"), CALLS, ids=IDS)
def test_is_within_bound_of_reference(name, call, args, kernel, device):
    operator = operators[name]
    results = as_tuple(kernel(name)(**gpu_cases.on(device, args)))
    expected = as_tuple(operator.reference(**args))
    bounds = (None,) * len(expected) if operator.error_bound is None else as_tuple(operator.error_bound(**args))
    for result, wanted, bound in zip(results, expected, bounds, strict=True):
        gpu_cases.assert_within(result, wanted, bound)


def test_values_outside_are_cut_and_the_first_is_noted(device):
    rule = _device_errors.new_rule("an operator", "index", "must be a row")
    assert _device_errors.within(torch.empty(0, 2, device=device), 0, 0, rule).numel() == 0
    index = torch.tensor([[0, 3], [5, -2]], dtype=torch.int32, device=device)
    assert _device_errors.within(index, -1, 6, rule).tolist() == [[0, 3], [5, -1]]
    with pytest.raises(
        ValueError, match="an operator: every value of index must be a row, got another at flat position 3"
    ):
        check_device_errors()


def test_an_empty_table_is_refused(kernel, device):
    """A GPU that looked for something there would not answer any more."""
    experts = torch.zeros(2, 1, dtype=torch.int32, device=device)
    args = {"expanded_rows": torch.ones(2, 4, device=device), "skip1": None, "skip2": None, "expert_idx": experts}
    args |= {"bias": torch.ones(0, 4, device=device), "scales": torch.ones(2, 1, device=device)}
    with pytest.raises(ValueError, match="moe_finalize_routing: every value of expert_idx .*, but there is none"):
        kernel("moe_finalize_routing")(**args, row_idx=torch.tensor([0, 1], dtype=torch.int32, device=device))


def test_rows_of_no_packed_sequence_are_zero(kernel, device):
    rows, none = torch.ones(1, 3, 2, 16, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    out, _ = kernel("fused_attention")(rows, rows, rows, q_lengths=none, kv_lengths=none, packed=True)
    assert out.shape == rows.shape and not out.any()
