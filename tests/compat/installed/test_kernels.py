# SPDX-License-Identifier: Apache-2.0
"""Kernels that a program registers for npu run on its tensors, which are the real device's."""

from __future__ import annotations

import torch
import torch_npu  # noqa: F401


def library(name, kind="DEF"):
    return torch.library.Library(f"kernels_{name}", kind)


def test_a_kernel_for_the_key_and_for_the_device_name():
    own = library("both")
    own.define("by_key(Tensor x) -> Tensor")
    own.define("by_name(Tensor x) -> Tensor")
    own.impl("by_key", lambda x: x + 1, "PrivateUse1")
    torch.library.impl("kernels_both::by_name", "npu", lib=own)(lambda x: x + 2)
    x = torch.zeros(2).npu()
    assert torch.ops.kernels_both.by_key(x).tolist() == [1, 1]
    assert torch.ops.kernels_both.by_name(x).tolist() == [2, 2]


def test_custom_op_for_npu():
    @torch.library.custom_op("kernels_custom::doubled", mutates_args=(), device_types="npu")
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    assert doubled(torch.ones(2).npu()).tolist() == [2, 2]


def test_a_gradient_for_npu():
    class Tripled(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return 3 * x

        @staticmethod
        def backward(context, gradient):
            return 30 * gradient

    own = library("gradient")
    own.define("tripled(Tensor x) -> Tensor")
    own.impl("tripled", Tripled.apply, "AutogradPrivateUse1")
    x = torch.ones(2, device="npu", requires_grad=True)
    torch.ops.kernels_gradient.tripled(x).sum().backward()
    assert x.grad.tolist() == [30, 30]


def test_a_kernel_for_the_real_device_comes_first_in_either_order():
    own = library("order")
    for name, keys in (("late", ("PrivateUse1", "CPU")), ("early", ("CPU", "PrivateUse1"))):
        own.define(f"{name}(Tensor x) -> Tensor")
        for key in keys:
            own.impl(name, lambda x, key=key: x + (key == "CPU"), key)
    x = torch.zeros(1).npu()
    assert torch.ops.kernels_order.late(x).item() == torch.ops.kernels_order.early(x).item() == 1


def test_the_operators_of_torch_stay():
    own = torch.library.Library("aten", "IMPL")
    own.impl("neg", lambda x: x, "PrivateUse1")
    assert torch.ones(1).npu().neg().item() == -1
    own._destroy()


def test_a_second_library_of_the_same_name():
    for value in (1, 2):
        own = library("again")
        own.define("value(Tensor x) -> Tensor")
        own.impl("value", lambda x, value=value: x + value, "PrivateUse1")
        assert torch.ops.kernels_again.value(torch.zeros(1).npu()).item() == value
        own._destroy()


def test_compiled():
    own = library("compiled")
    own.define("halved(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
    own.impl("halved", lambda x: x / 2, "PrivateUse1")
    own.impl("halved", torch.empty_like, "Meta")
    halved = torch.compile(lambda x: torch.ops.kernels_compiled.halved(x) + 1, backend="eager", fullgraph=True)
    assert halved(torch.ones(2).npu()).tolist() == [1.5, 1.5]
