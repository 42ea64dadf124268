# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.grouped_matmul_combine.reference import error_bound


@gpu_cases.valid_calls("grouped_matmul_combine")
def test_is_within_bound_of_reference(case, kernel, device):
    result = kernel("grouped_matmul_combine")(**gpu_cases.on(device, case.args))
    expected = anynpu.reference.grouped_matmul_combine(**case.args)
    gpu_cases.assert_within(result, expected, error_bound(**case.args))


@pytest.mark.parametrize("rows, counts", [(20, [10, 0, 6]), (200, [90, 0, 66]), (300, [150, 0, 145])])
@pytest.mark.parametrize("bits, groups, k", [(8, 1, 72), (4, 1, 264), (4, 2, 256)])
def test_weights_along_k(rows, counts, bits, groups, k, kernel, device):
    """Few rows, and tiles that are full or have rows behind them."""
    generator = torch.Generator().manual_seed(0)
    experts, n = len(counts), 72
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (experts * n, k), generator=generator, dtype=torch.int32)
    weight = codes.to(torch.int8) if bits == 8 else anynpu.int4_pack(codes)
    scale = torch.rand(experts, groups, n, generator=generator)
    args = {
        "x": torch.randint(-128, 128, (rows, k), generator=generator, dtype=torch.int8),
        "weight": weight.reshape(experts, n, -1).transpose(1, 2),
        "scale": scale[:, 0] if bits == 8 else anynpu.pack_scale(scale),
        "group_list": torch.tensor(counts),
        "row_index": torch.arange(rows) // 2,
        "pertoken_scale": torch.rand(rows, generator=generator),
        "logit": torch.rand(rows, generator=generator),
        "output_bs": rows // 2 + 1,
    }
    if bits == 4:
        args["bias"] = torch.randn(experts, n, generator=generator)
    else:
        args["scale"] = args["scale"].contiguous()
    result = kernel("grouped_matmul_combine")(**gpu_cases.on(device, args))
    gpu_cases.assert_within(result, anynpu.reference.grouped_matmul_combine(**args), error_bound(**args))
