# SPDX-License-Identifier: Apache-2.0
"""Operators that on CUDA are made of tensor operations."""

from __future__ import annotations

import gpu_cases
import pytest
import torch

from anynpu._register import operators

NAMES = ("anti_quant", "nd_to_nz", "nz_to_nd", "quantize", "trans_quant_param")
SAMPLES = [(name, sample) for name in NAMES for sample in operators[name].samples()]
IDS = [f"{name}: {sample.name}" for name, sample in SAMPLES]


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=IDS)
def test_is_within_bound_of_reference(name, sample, kernel, device):
    operator = operators[name]
    args = [value.to(device) if isinstance(value, torch.Tensor) else value for value in sample.args]
    bound = None if operator.error_bound is None else operator.error_bound(*sample.args)
    gpu_cases.assert_within(kernel(name)(*args), operator.reference(*sample.args), bound)


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=IDS)
def test_makes_no_tensor_on_another_device(name, sample):
    """A tensor made on the CPU would not go together with the others on the meta device."""
    args = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in sample.args]
    assert operators[name].cuda_kernel(*args).device.type == "meta"


def test_an_operator_without_a_kernel_says_so():
    with pytest.raises(NotImplementedError, match="cast: there is no CUDA kernel, expected tensors on the CPU"):
        _ = operators["cast"].cuda_kernel
