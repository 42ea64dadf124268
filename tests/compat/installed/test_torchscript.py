# SPDX-License-Identifier: Apache-2.0
"""TorchScript compiles calls of the functions that the npu device wraps."""

from __future__ import annotations

import torch


def test_factories_in_a_scripted_function():
    def made(x: torch.Tensor, n: int):
        return torch.zeros_like(x) + torch.ones(n) + x.new_full([n], 2.0) + torch.tensor(4.0), torch.arange(
            n, device="npu"
        )

    sums, numbers = torch.jit.script(made)(torch.zeros(3), 3)
    assert sums.tolist() == [7, 7, 7] and numbers.tolist() == [0, 1, 2]


def test_a_module_that_moves_its_input():
    class Moves(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.to("npu").to(torch.float16).cpu()

    moved = torch.jit.script(Moves())(torch.ones(2))
    assert moved.dtype == torch.float16 and moved.tolist() == [1, 1]
