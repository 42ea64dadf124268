# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.cast.spec import DTYPES

NAMES = [str(dtype).removeprefix("torch.") for dtype in DTYPES]


def assert_equals_reference(kernel, device, x, dtype):
    [moved] = gpu_cases.on(device, {"x": x}).values()
    gpu_cases.assert_within(kernel("cast")(moved, dtype), anynpu.reference.cast(x, dtype), None)


@gpu_cases.valid_calls("cast")
def test_equals_reference(case, kernel, device):
    assert_equals_reference(kernel, device, **case.args)


def values_of(dtype):
    """Random bits, and what is around powers of two, where ranges and significands end, and around ties."""
    bits = torch.randint(-(2**63), 2**63 - 1, (300,), generator=torch.Generator().manual_seed(1))
    if dtype == torch.bool:
        return bits % 2 == 0
    if not dtype.is_floating_point:
        limits = torch.iinfo(dtype)
        near = [sign * (2**power + shift) for power in range(65) for shift in (-1, 0, 1) for sign in (1, -1)]
        near += [2**power + 2 ** max(0, power - width) + shift for power in range(2, 64) for width in (9, 12)
                 for shift in (-1, 0, 1)]  # fmt: skip
        near = torch.tensor([value % 2**64 for value in near if limits.min <= value <= limits.max], dtype=torch.uint64)
        return torch.cat([bits.view(dtype), near.to(dtype)])
    near = torch.tensor([2.0**power for power in range(-150, 130)], dtype=torch.float64)
    steps = torch.tensor(
        [1.0, 1 + 2.0**-8, 1 + 2.0**-11, 1 + 3 * 2.0**-8, 1.5, -1.0, -1 - 2.0**-8], dtype=torch.float64
    )
    near = (near[:, None] * steps).flatten().to(dtype)
    beside = [near.nextafter(torch.full_like(near, end)) for end in (float("inf"), -float("inf"))] \
        if dtype in (torch.float32, torch.float64) else []  # fmt: skip
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0], dtype=dtype)
    return torch.cat([bits.view(dtype), near, *beside, special])


@pytest.mark.parametrize("source", DTYPES, ids=NAMES)
@pytest.mark.parametrize("target", DTYPES, ids=NAMES)
def test_every_pair(source, target, kernel, device):
    assert_equals_reference(kernel, device, values_of(source), target)


def test_the_result_is_not_the_argument(kernel, device):
    x = torch.ones(3, device=device)
    assert kernel("cast")(x, torch.float32).data_ptr() != x.data_ptr()
