# SPDX-License-Identifier: Apache-2.0
"""The float functions of torch_npu against their formulas in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch_npu
import torchair
from npu_tensors import reals

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
UNIT = 2.0**-24  # of float32 roundings


def assert_near(result, expected, error, dtype):
    """``error`` of the float32 arithmetic and one rounding to ``dtype``."""
    assert result.dtype == dtype and result.shape == expected.shape
    finfo = torch.finfo(dtype)
    rounding = finfo.eps / 2 * (expected.abs() + error) + finfo.smallest_normal * finfo.eps
    assert ((result.double() - expected).abs() <= error + rounding).all()


def assert_rms_norm(y, rstd, x, gamma, epsilon):
    """Squares, their sum and the rest have at most n + 6 roundings, which the root halves; y has two more."""
    axes = list(range(-gamma.dim(), 0))
    expected = (x.double().square().mean(axes, keepdim=True) + epsilon).rsqrt()
    error = (gamma.numel() / 2 + 5) * UNIT
    assert_near(rstd, expected, error * expected, torch.float32)
    expected = x.double() * expected * gamma.double()
    assert_near(y, expected, (error + 2 * UNIT) * expected.abs(), x.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, axes", [((3, 5, 64), 1), ((3, 5, 8), 2), ((17,), 1), ((0, 8), 1)])
def test_rms_norm(dtype, shape, axes):
    x, gamma = reals(*shape, dtype=dtype), reals(*shape[-axes:], seed=1)
    for weight in (gamma, gamma.to(dtype)):
        y, rstd = torch_npu.npu_rms_norm(x, weight, epsilon=1e-3)
        assert rstd.shape == (*shape[:-axes], *[1] * axes)
        assert_rms_norm(y, rstd, x, weight, 1e-3)
    assert torch.equal(torch_npu.npu_rms_norm(x, gamma)[0], torch.ops.npu.npu_rms_norm(x, gamma, 1e-6)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gemma_rms_norm(dtype):
    x = reals(3, 5, 64, dtype=dtype)
    gamma = torch.arange(-32, 32).div(32).to(dtype).npu()  # 1 + gamma is exact
    for weight in (gamma, gamma.float()):
        y, rstd = torch_npu.npu_gemma_rms_norm(x, weight, 1e-3)
        assert_rms_norm(y, rstd, x, 1 + gamma.float(), 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_rms_norm(dtype):
    x1, x2, gamma = (reals(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(4, 6, 96), (4, 6, 96), (96,)]))
    y, rstd, x = torch_npu.npu_add_rms_norm(x1, x2, gamma)
    assert torch.equal(x, (x1.double() + x2.double()).to(dtype))
    assert_rms_norm(y, rstd, x, gamma, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape, factors", [((2, 7, 3, 16), (1, 7, 1, 16)), ((2, 3, 7, 16), (2, 1, 7, 16)), ((7, 3, 16), (7, 1, 16))]
)
@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_mul(dtype, shape, factors, mode):
    x, r1, r2 = reals(*shape, dtype=dtype), reals(*factors, seed=1), reals(*factors, seed=2)
    rotated = torch.empty(shape, dtype=torch.float64)
    for i in range(8):
        first, second = (i, i + 8) if mode == "half" else (2 * i, 2 * i + 1)
        rotated[..., first], rotated[..., second] = -x[..., second].double(), x[..., first].double()
    terms = x.double() * r1.to(dtype).double(), rotated * r2.to(dtype).double()
    error = 3 * UNIT * (terms[0].abs() + terms[1].abs())
    assert_near(torch_npu.npu_rotary_mul(x, r1, r2, rotary_mode=mode), terms[0] + terms[1], error, dtype)
    eye = torch.eye(16)
    matrix = torch_npu.npu_rotary_mul(eye, torch.zeros(1, 16), torch.ones(1, 16), mode).to(dtype)
    assert_near(torch_npu.npu_rotary_mul(x, r1, r2, mode, matrix), terms[0] + terms[1], error, dtype)
    identity = torch_npu.npu_rotary_mul(x, r1, r2, mode, eye)
    terms = terms[0], x.double() * r2.to(dtype).double()
    assert_near(identity, terms[0] + terms[1], 3 * UNIT * (terms[0].abs() + terms[1].abs()), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations(dtype):
    """Errors are absolute where 1 + erf and 1 + tanh cancel; the sigmoid's grows with its argument."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 300.0, -300.0])]).to(dtype).npu()
    wide = x.double()
    normal = torch.distributions.Normal(0.0, 1.0).cdf(wide)
    assert_near(torch_npu.npu_gelu(x), wide * normal, 8 * UNIT * wide.abs(), dtype)
    tanh = 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    assert_near(torch_npu.npu_gelu(x, approximate="tanh"), tanh, 8 * UNIT * wide.abs(), dtype)
    documented = wide / (1 + torch.exp(-1.702 * wide.abs())) * torch.exp(0.851 * (wide - wide.abs()))
    for function in (torch_npu.npu_fast_gelu, torch_npu.fast_gelu):
        assert_near(function(x), documented, (4 + 4 * wide.abs()) * UNIT * documented.abs(), dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("leading, axes", [((5,), 1), ((2, 2), 2), ((3,), 3), ((0,), 1)])
def test_scatter_nd_update(dtype, index_dtype, leading, axes):
    x = reals(6, 4, 3).mul(10).to(dtype)
    places = list(itertools.product(*map(range, x.shape[:axes])))
    chosen = torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[: torch.Size(leading).numel()]
    indices = torch.tensor(places, dtype=index_dtype)[chosen].view(*leading, axes)
    updates = reals(*leading, *x.shape[axes:], seed=1).mul(10).to(dtype)
    expected = x.clone()
    for index in itertools.product(*map(range, leading)):
        expected[tuple(indices[index].tolist())] = updates[index]
    before = x.clone()
    assert torch.equal(torch_npu.npu_scatter_nd_update(x, indices, updates), expected) and torch.equal(x, before)
    assert torch_npu.npu_scatter_nd_update_(x, indices, updates) is x and torch.equal(x, expected)


X, GAMMA = torch.zeros(2, 3, 8).half(), torch.ones(8).half()
PLACES = torch.tensor([[0], [1]])


@pytest.mark.parametrize(
    "name, arguments, kind, text",
    [
        ("npu_rms_norm", (X, GAMMA[:4]), ValueError, r"last axes of self, \(2, 3, 8\), got \(4,\)"),
        ("npu_rms_norm", (X, GAMMA[0]), ValueError, r"gamma must have the shape of the last axes"),
        ("npu_rms_norm", (X, GAMMA.bfloat16()), TypeError, "gamma must be float16 or float32, got bfloat16"),
        ("npu_rms_norm", (X.float(), GAMMA), TypeError, "gamma must be float32, got float16"),
        ("npu_rms_norm", (X.double(), GAMMA.double()), TypeError, "self must be float32 or float16 or bfloat16"),
        ("npu_rms_norm", (X, GAMMA, "1"), TypeError, "epsilon must be a float, got str"),
        ("npu_add_rms_norm", (X, X.float(), GAMMA), TypeError, "x2 must be float16, got float32"),
        ("npu_add_rms_norm", (X, X, GAMMA.float()), TypeError, "gamma must be float16, got float32"),
        ("npu_add_rms_norm", (X, X[:1], GAMMA), ValueError, r"x2 must have the shape of x1, .*, got \(1, 3, 8\)"),
        ("npu_rotary_mul", (X, X, X, "quarter"), ValueError, "should be half or interleave, but got quarter"),
        ("npu_rotary_mul", (X, X[0], X), ValueError, r"r1 must have the last axis of input, .*, got \(3, 8\)"),
        ("npu_rotary_mul", (X, X, X[..., :1]), ValueError, r"r2 must have the last axis of input"),
        ("npu_rotary_mul", (X[..., :7], X, X), ValueError, r"must be even, got shape \(2, 3, 7\)"),
        ("npu_rotary_mul", (X, X, X, "half", X), ValueError, r"rotate must have shape \(8, 8\), got \(2, 3, 8\)"),
        ("npu_gelu", (X, "fast"), ValueError, "approximate must be 'none' or 'tanh', got 'fast'"),
        ("npu_fast_gelu", (X.int(),), TypeError, "self must be float32 or float16 or bfloat16, got int32"),
        ("fast_gelu", (X.int(),), TypeError, "self must be float32"),
        ("npu_scatter_nd_update_", (X, PLACES.float(), X), TypeError, "indices must be int32 or int64, got float32"),
        ("npu_scatter_nd_update_", (X, PLACES, X.float()), TypeError, "updates must be float16, got float32"),
        ("npu_scatter_nd_update_", (X, PLACES, X[0]), ValueError, r"updates must have shape \(2, 3, 8\), got \(3, 8\)"),
        ("npu_scatter_nd_update_", (X, PLACES.expand(2, 4), X), ValueError, "last axis of indices must be 1 to 3"),
    ],
)
def test_what_is_refused(name, arguments, kind, text):
    with pytest.raises(kind, match=f"^{name}: (?!{name})(.*){text}") as caught:
        getattr(torch_npu, name)(*arguments)
    assert isinstance(caught.value, RuntimeError | NotImplementedError) and "error code is 16100" in str(caught.value)


@pytest.mark.parametrize("place", [-1, 2])
def test_scatter_nd_update_outside_writes_nothing(place):
    x = X.clone()
    for function in (torch_npu.npu_scatter_nd_update, torch_npu.npu_scatter_nd_update_):
        with pytest.raises(
            RuntimeError, match="indices must be at least 0 and less than the sizes of the first 1 axes"
        ):
            function(x, torch.tensor([[0], [place]]), X + 1)
    assert torch.equal(x, X)


def test_rms_norm_has_gradients():
    x, gamma = reals(4, 8).requires_grad_(), reals(8, seed=1).requires_grad_()
    torch_npu.npu_rms_norm(x, gamma)[0].square().sum().backward()
    grads = x.grad, gamma.grad
    x.grad = gamma.grad = None
    torch.nn.functional.rms_norm(x, (8,), gamma, 1e-6).square().sum().backward()
    torch.testing.assert_close(grads, (x.grad, gamma.grad))


@pytest.mark.parametrize("backend", ["aot_eager", torchair.get_npu_backend()], ids=["aot_eager", "torchair"])
def test_functions_are_captured_in_graphs(backend):
    def layer(x, residual, gamma, cos, cache, places):
        y, rstd, x = torch_npu.npu_add_rms_norm(x, residual, gamma)
        z = torch_npu.npu_rms_norm(x, gamma)[0]
        turned = torch_npu.npu_rotary_mul(input=y, r1=cos, r2=cos, rotary_mode="interleave")
        active = torch_npu.npu_gelu(turned, approximate="tanh") + torch_npu.npu_fast_gelu(turned)
        other = torch_npu.npu_scatter_nd_update(cache, places, turned[0])
        torch_npu.npu_scatter_nd_update_(cache, places, y[0])
        return rstd, z, turned, active, other

    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (3, 4, 6):
        arguments = reals(2, tokens, 8), reals(2, tokens, 8, seed=1), reals(8, seed=2), reals(2, 1, 8, seed=3)
        ours, theirs = torch.zeros(tokens + 2, 8), torch.zeros(tokens + 2, 8)
        places = torch.arange(1, tokens + 1)[:, None]
        results = compiled(*arguments, theirs, places)
        # torch and Inductor may sum, and round products, in another order.
        torch.testing.assert_close(results, layer(*arguments, ours, places), rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(theirs, ours, rtol=2e-6, atol=2e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def rotated_pairs(x, cos, sin, first, second):
    """Of each pair of values its two results in float64, and a bound of their float32 errors."""
    a, b = x.double()[..., first], x.double()[..., second]
    half = len(first)
    c, s = cos.double(), sin.double()
    results = a * c[..., :half] - b * s[..., :half], b * c[..., half:] + a * s[..., half:]
    return torch.cat(results, -1), 3 * UNIT * (a.abs() + b.abs()).repeat(*[1] * (x.dim() - 1), 2) * (c.abs() + s.abs())


@pytest.mark.parametrize("dtype", DTYPES)
def test_interleave_rope(dtype):
    x, cos, sin = (
        reals(2, 3, 5, 64, dtype=dtype),
        reals(2, 1, 5, 64, dtype=dtype, seed=1),
        reals(2, 1, 5, 64, dtype=dtype, seed=2),
    )
    exact, error = rotated_pairs(x, cos, sin, range(0, 64, 2), range(1, 64, 2))
    assert_near(torch_npu.npu_interleave_rope(x, cos, sin), exact, error, dtype)
    with pytest.raises(ValueError, match=r"cos must have the last axis of x, \(2, 3, 5, 64\), and its others or 1"):
        torch_npu.npu_interleave_rope(x, cos[..., :32], sin)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout, heads", [("BSND", 2), ("SBND", 2), ("BNSD", 1), ("TND", 1)])
def test_apply_rotary_pos_emb_writes_in_place(dtype, layout, heads):
    shape = [2, 3, 4, 16] if len(layout) == 4 else [5, 4, 16]
    few, one = list(shape), list(shape)
    few[heads], one[heads] = 2, 1
    query, key = reals(*shape, dtype=dtype), reals(*few, dtype=dtype, seed=1)
    cos, sin = reals(*one, dtype=dtype, seed=2), reals(*one, dtype=dtype, seed=3)
    before = query.clone(), key.clone()
    results = torch_npu.npu_apply_rotary_pos_emb(query, key, cos, sin, layout=layout, rotary_mode="half")
    assert results[0] is query and results[1] is key
    for result, x in zip(results, before, strict=True):
        assert_near(result, *rotated_pairs(x, cos, sin, range(8), range(8, 16)), dtype)


def test_refusals_of_apply_rotary_pos_emb():
    query, cos = reals(2, 3, 4, 16), reals(2, 3, 1, 16)
    before = query.clone()
    for options, text in (
        ({"layout": "BSH"}, "layout must be one of BSND, SBND, BNSD, TND, got 'BSH'"),
        ({"layout": "TND"}, "query must have 3 axes in layout TND, got 4"),
        ({"layout": "BNSD"}, "the axis N of cos must be 1, got 3"),
        ({"rotary_mode": "quarter"}, "quarter is not implemented"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch_npu.npu_apply_rotary_pos_emb(query, query, cos, cos, **options)
    assert torch.equal(query, before)
