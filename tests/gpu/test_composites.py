# SPDX-License-Identifier: Apache-2.0
"""Operators that on CUDA are made of tensor operations."""

from __future__ import annotations

import gpu_cases
import pytest
import torch

from anynpu import _device_errors, check_device_errors
from anynpu._register import operators

NAMES = [name for name in sorted(operators) if not operators[name].cuda.endswith(".triton")]
SAMPLES = [(name, sample) for name in NAMES for sample in operators[name].samples()]
IDS = [f"{name}: {sample.name}" for name, sample in SAMPLES]


def as_tuple(results):
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=IDS)
def test_is_within_bound_of_reference(name, sample, kernel, device):
    operator = operators[name]
    args = [value.to(device) if isinstance(value, torch.Tensor) else value for value in sample.args]
    results, expected = as_tuple(kernel(name)(*args)), as_tuple(operator.reference(*sample.args))
    bounds = (None,) * len(expected) if operator.error_bound is None else as_tuple(operator.error_bound(*sample.args))
    for result, wanted, bound in zip(results, expected, bounds, strict=True):
        gpu_cases.assert_within(result, wanted, bound)


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=IDS)
def test_makes_no_tensor_on_another_device_and_looks_at_no_value(name, sample, monkeypatch):
    """A tensor made on the CPU would not go together with the others on the meta device, which have no values."""
    monkeypatch.setattr(_device_errors, "_words", {})  # no other test shall ask a meta tensor for errors
    args = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in sample.args]
    assert all(result.device.type == "meta" for result in as_tuple(operators[name].cuda_kernel(*args)))


def test_values_outside_are_cut_and_the_first_is_noted(device):
    rule = _device_errors.new_rule("an operator", "index", "must be a row")
    assert _device_errors.within(torch.empty(0, 2, device=device), 0, 0, rule).numel() == 0
    index = torch.tensor([[0, 3], [5, -2]], dtype=torch.int32, device=device)
    assert _device_errors.within(index, -1, 6, rule).tolist() == [[0, 3], [5, -1]]
    with pytest.raises(
        ValueError, match="an operator: every value of index must be a row, got another at flat position 3"
    ):
        check_device_errors()
