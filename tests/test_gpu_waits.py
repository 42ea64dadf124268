# SPDX-License-Identifier: Apache-2.0
"""No operator on CUDA waits for the GPU, and all can be captured in a graph: their calls on tensors without values.

On the meta device nothing can be read; what torch would copy to a GPU, or what it counts there, is refused beside.
"""

from __future__ import annotations

import gpu_cases
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anynpu._register import operators

pytest.importorskip("triton")
import gpu_compile  # noqa: E402

META = torch.device("meta")
FROM_THE_HOST = {torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor}
INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class OnTheGpuAlone(TorchDispatchMode):
    """Refuses tensors of the CPU, and results or copies whose size depends on values."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, results)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.device == META for tensor in tensors), f"{operator} has a tensor of the CPU"
        if operator in (torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default):
            masks = any(index is not None and index.dtype == torch.bool for index in args[1])
            assert not masks or args[2].numel() == 1, f"{operator} counts what a mask takes"
        return results


class NothingFromTheHost(TorchFunctionMode):
    """Refuses what copies Python's values, which the mode above does not see."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        listed = function in INDEXING and any(isinstance(index, list) for index in _indices(args[1]))
        assert function not in FROM_THE_HOST and not listed, f"{function} copies values to the GPU"
        return function(*args, **(kwargs or {}))


def _indices(index):
    return index if isinstance(index, tuple) else (index,)


def launch(kernel, programs, first, *args, **meta):
    """What launches have in common without Hopper's descriptors: one device, and an axis of so many programs."""
    assert isinstance(first, torch.Tensor) and 0 <= programs < 2**31
    assert all(each.device == META for each in (first, *args) if isinstance(each, torch.Tensor))


@pytest.mark.parametrize("name", sorted(operators))
def test_no_call_looks_at_values(name, monkeypatch):
    kernel, calls = operators[name].cuda_kernel, list(gpu_cases.calls(name))
    for gpu in (gpu_compile.HOPPER, gpu_compile.LEAST):
        gpu_compile.replace_launches(monkeypatch, launch, gpu)
        for call, args in calls:
            moved = gpu_cases.on(META, args)
            try:
                with NothingFromTheHost(), OnTheGpuAlone():
                    kernel(**moved)
            except (AssertionError, NotImplementedError, RuntimeError) as error:
                pytest.fail(f"{name}, {call}: {error}")


@pytest.mark.parametrize("far", ["x", "weight"])
@pytest.mark.parametrize("name", ["quant_matmul", "weight_quant_matmul", "grouped_matmul_combine", "grouped_matmul"])
def test_rows_far_apart_are_copied(name, far, monkeypatch):
    """Offsets within a tile have 32 bits."""
    dtype = torch.float16 if name == "weight_quant_matmul" else torch.int8
    x = torch.empty_strided((40, 64), (1 << 27 if far == "x" else 64, 1), dtype=dtype, device=META)
    strides = (1 << 27 if far == "weight" else 24, 1)
    weight, scale = (
        torch.empty_strided((64, 24), strides, dtype=torch.int8, device=META),
        torch.empty(1, 24, device=META),
    )
    group_list, index = (torch.empty(size, dtype=torch.int64, device=META) for size in (1, 40))
    args = {
        "quant_matmul": (x, weight, scale[0]),
        "weight_quant_matmul": (x, weight, scale),
        "grouped_matmul_combine": (x, weight[None], scale, group_list, index),
        "grouped_matmul": ([x], [weight[None]], group_list),
    }[name]
    kernel, matrices = operators[name].cuda_kernel, []

    def note_matrices(kernel, programs, first, *rest, **meta):
        matrices.extend(
            tuple(each.stride()[-2:]) for each in (first, *rest[:1]) if each.shape[-2:] in ((40, 64), (64, 24))
        )

    gpu_compile.replace_launches(monkeypatch, note_matrices, gpu_compile.LEAST)
    kernel(*args, **{"split_item": 2, "group_type": 0} if name == "grouped_matmul" else {})
    assert matrices == [(64, 1), (24, 1)]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.bincount(x.long()),
        lambda x: x.index_put_((x > 0,), x),
        lambda x: x[[0, 1]],
        lambda x: x + torch.zeros(4).to(x.device),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device),
        lambda x: x + x.new_tensor([1.0]),
    ],
)
def test_waits_are_noticed(wait):
    with pytest.raises((AssertionError, NotImplementedError, RuntimeError)), NothingFromTheHost(), OnTheGpuAlone():
        wait(torch.empty(4, device=META))
