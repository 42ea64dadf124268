# SPDX-License-Identifier: Apache-2.0
"""The functions of torch_npu that torch has under other names."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import reals


def test_dtype_casts():
    x = reals(3)
    assert torch.equal(torch_npu.npu_dtype_cast(x, torch.float16), x.half())
    assert torch.equal(torch_npu.npu_dtype_cast(x, 3), x.int())
    assert torch.equal(torch_npu._npu_dtype_cast(x, torch.bfloat16), x.bfloat16())
    assert torch_npu.npu_dtype_cast(x, dtype=torch.int).dtype == torch.int32
    with pytest.raises(NotImplementedError, match="dtype 290 is a dtype that anynpu does not implement"):
        torch_npu.npu_dtype_cast(x, 290)


def test_transposes():
    x = reals(2, 3, 4, 6)
    y = torch_npu.npu_transpose(x, (2, 0, 3, 1), require_contiguous=False)
    assert torch.equal(y, x.permute(2, 0, 3, 1)) and y.is_contiguous()
    first = torch_npu.npu_confusion_transpose(x, (0, 2, 1, 3), (2, 4, 18), True)
    assert torch.equal(first, x.permute(0, 2, 1, 3).reshape(2, 4, 18))
    second = torch_npu.npu_confusion_transpose(x, (0, 2, 1), (2, 12, 6), False)
    assert torch.equal(second, x.reshape(2, 12, 6).permute(0, 2, 1)) and second.is_contiguous()


def test_linear():
    x, weight, bias = reals(3, 5), reals(4, 5, seed=1), reals(4, seed=2)
    exact = x.double() @ weight.double().t() + bias.double()
    torch.testing.assert_close(torch_npu.npu_linear(x, weight, bias).double(), exact, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="input must have 2 axes, got 3"):
        torch_npu.npu_linear(x[None], weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_transpose_batchmatmul(dtype):
    x, weight = reals(3, 2, 16, dtype=dtype), reals(2, 16, 5, dtype=dtype, seed=1)
    exact = torch.einsum("mbk,bkn->mbn", x.double(), weight.double())
    terms = torch.einsum("mbk,bkn->mbn", x.double().abs(), weight.double().abs())
    for y in (
        torch_npu.npu_transpose_batchmatmul(x, weight, perm_x1=[1, 0, 2], perm_y=[1, 0, 2]),
        torch_npu.npu_transpose_batchmatmul(x.transpose(0, 1), weight.transpose(1, 2), perm_x2=(0, 2, 1)),
    ):
        assert y.dtype == dtype and y.is_contiguous() and y.shape == (3, 2, 5)
        assert ((y.double() - exact).abs() <= 20 * 2.0**-24 * terms + torch.finfo(dtype).eps * exact.abs()).all()


def test_refusals_of_transpose_batchmatmul():
    x, weight = reals(3, 2, 16), reals(2, 16, 5)
    for options, text in (
        ({"perm_x1": [2, 1, 0]}, r"perm_x1 should be \[0, 1, 2\] or \[1, 0, 2\], got \[2, 1, 0\]"),
        ({"perm_y": [0, 1, 2]}, r"perm_y should be \[1, 0, 2\], got \[0, 1, 2\]"),
        ({}, r"the permuted shapes must be \(B, M, K\) and \(B, K, N\), got \(3, 2, 16\) and \(2, 16, 5\)"),
        ({"scale": x}, "scale is for modes that anynpu does not implement"),
        ({"batch_split_factor": 2}, "batch_split_factor is for modes that anynpu does not implement, got 2"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch_npu.npu_transpose_batchmatmul(x, weight, **options)


def test_prefetch_is_a_hint():
    weight, x = reals(4, 4), reals(2, 4)

    def layer(x):
        torch_npu.npu_prefetch(weight, x, 18 * 1024 * 1024)
        return x @ weight

    assert torch_npu.npu_prefetch(weight, None, 1000, offset=4) is None
    torch.testing.assert_close(torch.compile(layer, backend="npu", fullgraph=True)(x), x @ weight)
    for arguments, text in (
        ((0,), "max_size should be greater than zero, but got 0"),
        ((1, -1), "offset should be nonneg"),
    ):
        with pytest.raises(ValueError, match=text):
            torch_npu.npu_prefetch(weight, None, *arguments)


def test_matmul_add_fp32():
    x, weight, total = reals(3, 4, dtype=torch.float16), reals(3, 5, dtype=torch.float16, seed=1), reals(4, 5, seed=2)
    exact = total.double() + x.double().t() @ weight.double()
    torch_npu._npu_matmul_add_fp32(x, weight, total)
    torch.testing.assert_close(total.double(), exact, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(k, m\), \(k, n\), \(m, n\), got \(3, 4\), \(3, 5\), \(5, 4\)"):
        torch_npu._npu_matmul_add_fp32(x, weight, total.t())
    with pytest.raises(TypeError, match="C must be float32"):
        torch_npu._npu_matmul_add_fp32(x, weight, total.half())
