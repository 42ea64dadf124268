# SPDX-License-Identifier: Apache-2.0
"""The float operators of the C front end against torch in float64."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import pytest
import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scalar(value: float, dtype: int = 0) -> int:
    base = c_front_end.base
    base.aclCreateScalar.restype = ctypes.c_void_p
    kind = {0: ctypes.c_float, 3: ctypes.c_int32, 11: ctypes.c_double}[dtype]
    return base.aclCreateScalar(ctypes.byref(kind(kind(value).value)), ctypes.c_int32(dtype))


def run(function: str, inputs, outputs, attributes=(), scalars=()):
    """The outcome, and the outputs, which are (shape, dtype) or tensors whose memory and strides they share."""
    with c_front_end.session() as make:
        given = [make.tensor(x) for x in inputs]
        made = [make.find(make.tensor(x)) if isinstance(x, torch.Tensor) else make.output(*x) for x in outputs]
        outcome = c_front_end.call(function, *given, *scalars, *(each.handle for each in made), *attributes)
        for each in scalars:
            if each is not None:
                c_front_end.require(c_front_end.base.aclDestroyScalar(ctypes.c_void_p(each)))
        if outcome.status != 0:
            assert all(each.is_untouched() for each in made)
            return outcome, None
        results = []
        for each, x in zip(made, outputs, strict=True):
            if not isinstance(x, torch.Tensor):
                results.append(each.tensor(*x))
                continue
            whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
            values = each.tensor(list(whole.shape), x.dtype)
            results.append(values.as_strided(x.shape, x.stride(), x.storage_offset()))
        return outcome, results


def assert_near(result, expected, dtype, error=0.0):
    """Rounded once to ``dtype``, after float32 arithmetic whose ``error`` is relative to the values it sums."""
    bound = expected.abs() * torch.finfo(dtype).eps / 2 * 1.01 + error + torch.finfo(dtype).smallest_normal * 2**-9
    assert ((result.double() - expected).abs() <= bound).all(), (result.double() - expected).abs().max()


BINARY = [((4, 5), (4, 5)), ((3, 1, 40), (7, 1)), ((), (2, 3)), ((2, 0, 3), (1, 3)), ((1,), (1,)), ((2100,), (2100,))]


@DTYPES
@pytest.mark.parametrize("shapes", BINARY, ids=str)
def test_add_and_mul(shapes, dtype):
    x, y = (random(*shape, seed=at).to(dtype) for at, shape in enumerate(shapes))
    shape = list(torch.broadcast_shapes(*shapes))
    sizes = x.double().abs() + 2.5 * y.double().abs()
    outcome, (result,) = run("aclnnAdd", [x, y], [(shape, dtype)], scalars=[scalar(-2.5)])
    assert outcome.status == 0, outcome
    assert_near(result, x.double() - 2.5 * y.double(), dtype, sizes * 2**-23)
    outcome, (difference,) = run("aclnnSub", [x, y], [(shape, dtype)], scalars=[scalar(2.5)])
    assert outcome.status == 0, outcome
    assert torch.equal(difference, result)
    outcome, (result,) = run("aclnnMul", [x, y], [(shape, dtype)])
    assert outcome.status == 0, outcome
    assert_near(result, x.double() * y.double(), dtype, sizes * sizes * 2**-23)
    outcome, (result,) = run("aclnnDiv", [x, y], [(shape, dtype)])
    assert outcome.status == 0, outcome
    assert_near(result, x.double() / y.double(), dtype, (x.double() / y.double()).abs() * 2**-23)


@DTYPES
def test_scalars(dtype, isa):
    x = random(7, 60).to(dtype)[:, ::2]
    for function, scalars, expected in (
        ("Adds", (3.0, -2.5), x.double() - 7.5),
        ("Subs", (3.0, 0.5), x.double() - 1.5),
        ("Muls", (0.3,), x.double() * 0.3),
        ("Divs", (-0.7,), x.double() / -0.7),
    ):
        error = (expected.abs() + 8) * 2**-23
        outcome, (result,) = run(
            f"aclnn{function}", [x], [([7, 30], dtype)], scalars=[scalar(each) for each in scalars]
        )
        assert outcome.status == 0, outcome
        assert_near(result, expected, dtype, error)
    x = torch.tensor([1.0, -1, 0]).to(dtype)
    outcome, (result,) = run("aclnnDivs", [x], [([3], dtype)], scalars=[scalar(0)])
    assert torch.equal(result.nan_to_num(nan=5.0, posinf=3.0, neginf=4.0), torch.tensor([3.0, 4, 5]).to(dtype))


@DTYPES
def test_in_place_with_scalars(dtype):
    x = random(5, 12).to(dtype)
    for function, scalars in (("Adds", (3.0, -2.5)), ("Subs", (3.0, 0.5)), ("Muls", (0.3,)), ("Divs", (-0.7,))):
        _, (expected,) = run(f"aclnn{function}", [x], [([5, 12], dtype)], scalars=[scalar(each) for each in scalars])
        assert torch.equal(in_place(f"aclnnInplace{function}", x, scalars=scalars), expected)
    y = random(12, seed=1).to(dtype)
    for function, alpha in (("Sub", (3.0,)), ("Div", ())):
        values = [scalar(each) for each in alpha]
        _, (expected,) = run(f"aclnn{function}", [x, y], [([5, 12], dtype)], scalars=values)
        assert torch.equal(in_place(f"aclnnInplace{function}", x, y, scalars=alpha), expected)


def in_place(function, x, *others, scalars=()):
    with c_front_end.session() as make:
        handle, values = make.tensor(x), [scalar(each) for each in scalars]
        outcome = c_front_end.call(function, handle, *(make.tensor(each) for each in others), *values)
        assert outcome.status == 0, outcome
        for each in values:
            c_front_end.require(c_front_end.base.aclDestroyScalar(ctypes.c_void_p(each)))
        return make.find(handle).tensor(list(x.shape), x.dtype)


@DTYPES
def test_in_place(dtype):
    whole = random(6, 10).to(dtype)
    x, y = whole[1::2, ::3], random(4, seed=1).to(dtype)
    sizes = x.double().abs() + 3 * y.double().abs()
    with c_front_end.session() as make:
        handle, factor = make.tensor(x), scalar(3, 3)
        outcome = c_front_end.call("aclnnInplaceAdd", handle, make.tensor(y), factor)
        assert outcome.status == 0, outcome
        result = make.find(handle).tensor([6, 10], dtype)
        assert_near(result[1::2, ::3], x.double() + 3 * y.double(), dtype, sizes * 2**-23)
        outcome = c_front_end.call("aclnnInplaceMul", handle, make.tensor(y))
        assert outcome.status == 0, outcome
        expected = result[1::2, ::3].double() * y.double()
        assert_near(make.find(handle).tensor([6, 10], dtype)[1::2, ::3], expected, dtype, expected.abs() * 2**-23)
        both = make.tensor(random(8))
        assert c_front_end.call("aclnnAdd", both, both, factor, both).status == 0
        assert torch.equal(make.find(both).tensor([8], torch.float32), random(8) * 4)
        c_front_end.require(c_front_end.base.aclDestroyScalar(ctypes.c_void_p(factor)))
        untouched = result.clone()
        untouched[1::2, ::3] = whole[1::2, ::3]
        assert torch.equal(untouched, whole)


@DTYPES
def test_silu(dtype, isa):
    x = torch.cat([random(37, 3) * 5, torch.tensor([[-200.0, 200, 0]])]).to(dtype)
    outcome, (result,) = run("aclnnSilu", [x.t()], [x.new_empty(3, 76)[:, ::2]])
    assert outcome.status == 0, outcome
    expected = torch.nn.functional.silu(x.double()).t()
    assert_near(result, expected, dtype, (x.double().abs() + 1).t() * 2**-20)


def rms_norm(x, gamma, epsilon, axes):
    rstd = (x.double().square().mean(axes, keepdim=True) + epsilon).rsqrt()
    return x.double() * rstd * gamma.double(), rstd


@DTYPES
@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 5), (1, 4100), (0, 8), (7,), (300, 64)], ids=str)
def test_rms_norm(shape, dtype, isa):
    for axes, gamma_dtype in ((1, dtype), (2 if len(shape) > 1 and 0 not in shape else 1, torch.float32)):
        x, gamma = random(*shape).to(dtype), random(*shape[-axes:], seed=1).to(gamma_dtype)
        rows = [*shape[:-axes], *[1] * axes]
        epsilon = ctypes.c_double(1e-3)
        with_attribute = [(list(shape), dtype), (rows, torch.float32)]
        outcome, results = norm("aclnnRmsNorm", [x, gamma], epsilon, with_attribute)
        assert outcome.status == 0, outcome
        y, rstd = rms_norm(x, gamma, 1e-3, list(range(-axes, 0)))
        error = (gamma.numel() / 16 + 16) * 2**-24  # 16 sums or more side by side
        assert_near(results[1], rstd, torch.float32, rstd * error)
        assert_near(results[0], y, dtype, y.abs() * error)


def norm(function, inputs, epsilon, outputs):
    with c_front_end.session() as make:
        given, made = [make.tensor(x) for x in inputs], [make.output(*x) for x in outputs]
        outcome = c_front_end.call(function, *given, epsilon, *(each.handle for each in made))
        if outcome.status != 0:
            assert all(each.is_untouched() for each in made)
            return outcome, None
        return outcome, [each.tensor(*x) for each, x in zip(made, outputs, strict=True)]


@DTYPES
def test_add_rms_norm(dtype):
    x1, x2, gamma = random(5, 70).to(dtype), random(70, 5, seed=1).to(dtype).t(), random(70, seed=2).to(dtype)
    outputs = [([5, 70], dtype), ([5, 1], torch.float32), ([5, 70], dtype)]
    outcome, (y, rstd, x) = norm("aclnnAddRmsNorm", [x1, x2, gamma], ctypes.c_double(1e-5), outputs)
    assert outcome.status == 0, outcome
    assert torch.equal(x, x1 + x2)
    expected, wanted = rms_norm(x, gamma, 1e-5, -1)
    assert_near(rstd, wanted, torch.float32, wanted * 2**-20)
    assert_near(y, expected, dtype, expected.abs() * 2**-20)


MATRICES = [
    ((3, 40), (40, 5)), ((70, 300), (300, 130)), ((1, 4100), (4100, 64)), ((2, 3, 8), (8, 4)),
    ((2, 1, 3, 8), (5, 8, 4)), ((8,), (8, 4)), ((3, 8), (8,)), ((8,), (8,)), ((2, 3, 8), (8,)),
    ((3, 0), (0, 4)), ((0, 3), (3, 4)),
]  # fmt: skip


@DTYPES
@pytest.mark.parametrize("shapes", MATRICES, ids=str)
def test_matmul(shapes, dtype, isa):
    x, y = (random(*shape, seed=at).to(dtype) for at, shape in enumerate(shapes))
    expected = x.double() @ y.double()
    sizes = x.double().abs() @ y.double().abs()
    views = [y, *([y.mT.contiguous().mT] if y.dim() > 1 else []), torch.stack([y, y], -1)[..., 0]]
    for view in views:
        outcome, (result,) = run("aclnnMatmul", [x, view], [(list(expected.shape), dtype)], [ctypes.c_int8(0)])
        assert outcome.status == 0, outcome
        assert_near(result, expected, dtype, sizes * (x.shape[-1] + 2) * 2**-24)
    outcome, (result,) = run("aclnnMatmul", [x, y], [(list(expected.shape), torch.float32)], [ctypes.c_int8(0)])
    assert outcome.status == 0, outcome
    assert_near(result, expected, torch.float32, sizes * (x.shape[-1] + 2) * 2**-24)
    if x.dim() == y.dim() == 2:
        out = x.new_empty(expected.shape[1], expected.shape[0]).t()
        outcome, (result,) = run("aclnnMm", [x.t().contiguous().t(), y], [out], [ctypes.c_int8(1)])
        assert outcome.status == 0, outcome
        assert_near(result, expected, dtype, sizes * (x.shape[-1] + 2) * 2**-24)


@DTYPES
@pytest.mark.parametrize("shapes", [each for each in MATRICES if min(map(len, each)) > 1], ids=str)
def test_matmul_reads_blocks(shapes, dtype, isa):
    x, y = (random(*shape, seed=at).to(dtype) for at, shape in enumerate(shapes))
    _, (expected,) = run("aclnnMatmul", [x, y], [([*(x.double() @ y.double()).shape], dtype)], [ctypes.c_int8(0)])
    for view in (y, y.mT.contiguous().mT):
        if view.numel() == 0:
            continue
        with c_front_end.session() as make:
            out = make.output(list(expected.shape), dtype)
            arguments = [make.tensor(x), make.tensor(view, nz=True), out.handle, ctypes.c_int8(0)]
            outcome = c_front_end.call("aclnnMatmul", *arguments)
            assert outcome.status == 0, outcome
            assert torch.equal(out.tensor(list(expected.shape), dtype), expected)


def test_results_do_not_depend_on_threads(each_thread_count):
    from anynpu import _native

    matmul, norm = _native.Call("float_matmul", 3), _native.Call("rms_norm", 6, "fi")
    x, y, gamma = random(130, 300), random(300, 200, seed=1), random(300, seed=2)

    def both():
        product, normed, rstd = torch.empty(130, 200), torch.empty(130, 300), torch.empty(130, 1)
        matmul(x, y, product)
        norm(x, None, gamma, normed, rstd, None, scalars=(1e-5, 0))
        return product, normed, rstd

    first, *others = each_thread_count(both)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


ONES = torch.ones
EPSILON, CUBE = ctypes.c_double(1e-5), ctypes.c_int8(0)
REFUSALS = {
    "no self": ("aclnnAdd", [None, ONES(2), "alpha", ONES(2)], 161001, "self is a null pointer"),
    "no other": ("aclnnMul", [ONES(2), None, ONES(2)], 161001, "other is a null pointer"),
    "no alpha": ("aclnnAdd", [ONES(2), ONES(2), None, ONES(2)], 161001, "alpha is a null pointer"),
    "no scalar": ("aclnnMuls", [ONES(2), None, ONES(2)], 161001, "other is a null pointer"),
    "no out": ("aclnnDivs", [ONES(2), "alpha", None], 161001, "out is a null pointer"),
    "divided integers": ("aclnnDiv", [ONES(2).int(), ONES(2), ONES(2)], 161002, "x1 must be float32 or float16"),
    "larger than selfRef": ("aclnnInplaceSub", [ONES(1), ONES(3), "alpha"], 161002, "x2 must broadcast to the shape"),
    "no selfRef": ("aclnnInplaceAdd", [None, ONES(2), "alpha"], 161001, "selfRef is a null pointer"),
    "integers": ("aclnnMul", [ONES(2).int(), ONES(2), ONES(2)], 161002, "x1 must be float32 or float16 or bfloat16"),
    "shapes": ("aclnnMul", [ONES(2, 3), ONES(2), ONES(2, 3)], 161002, r"x2 must broadcast to .* \(2, 3\), got \(2\,\)"),
    "large out": ("aclnnMul", [ONES(3), ONES(1), ONES(2, 3)], 161002, "the shape that x1 and x2 broadcast to"),
    "small out": ("aclnnSilu", [ONES(3), ONES(1)], 161002, r"x1 must broadcast to the shape of the result, \(1,\)"),
    "in place": ("aclnnInplaceMul", [ONES(1), ONES(3)], 161002, "x2 must broadcast to the shape of the result"),
    "gamma": ("aclnnRmsNorm", [ONES(2, 3), ONES(2), EPSILON, ONES(2, 3), ONES(2, 1)], 161002, "shape of the last axes"),
    "gamma of another dtype": (
        "aclnnRmsNorm",
        [ONES(2, 3), ONES(3).half(), EPSILON, ONES(2, 3), ONES(2, 1)],
        161002,
        "gamma must be float32 as x1 is, or float32, got float16",
    ),
    "rstd": ("aclnnRmsNorm", [ONES(2, 3), ONES(3), EPSILON, ONES(2, 3), ONES(2)], 161002, r"have shape \(2, 1"),
    "no rstd": ("aclnnRmsNorm", [ONES(2, 3), ONES(3), EPSILON, ONES(2, 3), None], 161001, "rstdOut is a null pointer"),
    "x2": (
        "aclnnAddRmsNorm",
        [ONES(2, 3), ONES(3), ONES(3), EPSILON, ONES(2, 3), ONES(2, 1), ONES(2, 3)],
        161002,
        "x2 must have the shape of x1",
    ),
    "matrices": ("aclnnMatmul", [ONES(2, 3), ONES(2, 3), ONES(2, 3), CUBE], 161002, "must fit together, got"),
    "product": ("aclnnMatmul", [ONES(2, 3), ONES(3, 2), ONES(1, 2, 2).half(), CUBE], 161002, "y must be float32 as x1"),
    "product of halves": (
        "aclnnMatmul",
        [ONES(2, 3).half(), ONES(3, 2).half(), ONES(2, 2).bfloat16(), CUBE],
        161002,
        "y must be float16 as x1 is, or float32, got bfloat16",
    ),
    "repeated product": ("aclnnMatmul", [ONES(2, 3), ONES(3, 2), ONES(4, 2, 2), CUBE], 161002, "must fit together"),
    "mm": ("aclnnMm", [ONES(1, 2, 3), ONES(3, 2), ONES(1, 2, 2), CUBE], 161002, "must have 2 axes, got 3 and 2"),
    "cube": ("aclnnMm", [ONES(2, 3), ONES(3, 2), ONES(2, 2), ctypes.c_int8(4)], 161002, "0, 1, 2 or 3, got 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    function, arguments, status, sentence = REFUSALS[name]
    with c_front_end.session() as make:
        alpha = scalar(1, 11)
        given = [make.tensor(x) if isinstance(x, torch.Tensor) else alpha if x == "alpha" else x for x in arguments]
        outcome = c_front_end.call(function, *given)
        assert outcome.status == status, outcome
        assert re.search(sentence, outcome.sentence), outcome
        for x, handle in zip(arguments, given, strict=True):
            assert not isinstance(x, torch.Tensor) or make.find(handle).is_untouched()
        c_front_end.require(c_front_end.base.aclDestroyScalar(ctypes.c_void_p(alpha)))
