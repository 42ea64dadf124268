# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu import _native
from anynpu.ops.weight_quant_matmul import reference, spec

HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def assert_within_bound(y, args):
    """The bound is derived in the docstring of reference.error_bound; int8 results are equal except at near ties."""
    expected = anynpu.reference.weight_quant_matmul(**args)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    distance = (y.double() - expected.double()).abs()
    close = (distance <= reference.error_bound(**args)) | (y == expected)
    assert close.all(), f"largest distance {distance.max()}, bound there {reference.error_bound(**args)[~close]}"


def tensors_of(args):
    return [value for value in args.values() if isinstance(value, torch.Tensor)]


@case_table.valid_calls("weight_quant_matmul")
def test_agrees_with_reference(case, isa, each_thread_count):
    before = [tensor.clone() for tensor in tensors_of(case.args)]
    results = each_thread_count(lambda: anynpu.weight_quant_matmul(**case.args))
    assert_within_bound(results[0], case.args)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    for tensor, copy in zip(tensors_of(case.args), before, strict=True):
        assert torch.equal(tensor, copy)


def is_prepackable(case):
    return case.args["weight"].dim() == 2 and case.args["x"].shape[0] > 0


@case_table.valid_calls("weight_quant_matmul", is_prepackable)
def test_prepacked_weight_gives_the_same(case, isa):
    weight = case.args["weight"]
    k, n = spec.matrix_shape("", weight)
    if k != case.args["x"].shape[-1]:
        pytest.skip("a single word: only the K of x says that it is transposed, and prepacking does not know it")
    blob = anynpu.weight_quant_prepack(weight)
    assert torch.equal(blob, anynpu.reference.weight_quant_prepack(weight))
    assert torch.equal(anynpu.weight_quant_unprepack(blob).double(), reference.integers(weight, k))
    result = anynpu.weight_quant_matmul(**{**case.args, "weight": blob, "n": n})
    assert torch.equal(result, anynpu.weight_quant_matmul(**case.args))


def matmul_args(m, k, n, dtype=FP32, group_size=0, bits=4, seed=0):
    """Random int4 (or int8) weights with large asymmetric offsets."""
    generator = torch.Generator().manual_seed(seed)
    limit = 2 ** (bits - 1)
    codes = torch.randint(-limit, limit, (k, n), dtype=torch.int32, generator=generator)
    groups = (-(-k // group_size), n) if group_size else (n,)
    scale = torch.rand(groups, generator=generator) * 0.1 + 0.01
    return {
        "x": torch.randn(m, k, generator=generator).to(dtype),
        "weight": anynpu.int4_pack(codes) if bits == 4 else codes.to(torch.int8),
        "scale": scale.to(dtype),
        "offset": (torch.randn(groups, generator=generator) * limit).to(dtype),
        "group_size": group_size,
    }


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [0, 32])
def test_offset_is_added_before_scaling(bits, group_size, isa):
    """The right formula is within the bound, and every wrong sign or order is outside it in most elements."""
    args = matmul_args(9, 200, 64, group_size=group_size, bits=bits)
    y = anynpu.weight_quant_matmul(**args).double()
    x, w = args["x"].double(), reference.integers(args["weight"], 200)
    s, o = (value.repeat_interleave(32, 0)[:200] if group_size else value for value in (args["scale"], args["offset"]))
    s, o = s.double(), o.double()
    bound = reference.error_bound(**args)
    assert ((y - x @ ((w + o) * s)).abs() <= bound).all()
    for wrong in (x @ ((w - o) * s), x @ (w * s + o), x @ (w * s - o), x @ (w * s)):
        assert ((y - wrong).abs() > bound).float().mean() > 0.9


@pytest.mark.parametrize("dtype", [HALF, BF16, FP32])
@pytest.mark.parametrize("m", [1, 5, 40])
def test_outliers_keep_the_other_columns_of_x(dtype, m, isa):
    """One activation 4096 times the others must not push them out of a fixed-point grid."""
    args = matmul_args(m, 512, 32, dtype, group_size=128)
    args["x"][:, ::128] = 4096
    y = anynpu.weight_quant_matmul(**args)
    assert_within_bound(y, args)


@pytest.mark.parametrize("layout", ["plain", "transposed", "prepacked"])
@pytest.mark.parametrize(("m", "dtype"), [(1, FP32), (2, FP32), (4, FP32), (7, FP32), (7, BF16)])
@pytest.mark.parametrize("small", [10, 40])
def test_small_values_beside_large_ones_are_exact(small, m, dtype, layout, isa):
    """Quarters, few or many in a group, beside 2**14: they lie below a 16-bit grid, and every sum fits float32."""
    generator = torch.Generator().manual_seed(small)
    codes = torch.randint(-8, 8, (200, 72), dtype=torch.int32, generator=generator)
    x = torch.zeros(m, 200)
    for row in range(m):
        x[row, torch.randperm(200, generator=generator)[:small]] = 0.25 * (row + 1)
        x[row, 5 + row] = x[row, 150 + row] = 2.0**14
    weight = anynpu.int4_pack(codes.t().contiguous()).t() if layout == "transposed" else anynpu.int4_pack(codes)
    if layout == "prepacked":
        weight = anynpu.weight_quant_prepack(weight)
    offset = torch.randint(-8, 8, (2, 72), generator=generator).float()
    scale, offset_of_x = torch.ones(2, 72, dtype=dtype), offset.to(dtype)
    n = 72 if layout == "prepacked" else None
    y = anynpu.weight_quant_matmul(x.to(dtype), weight, scale, offset_of_x, group_size=128, n=n)
    assert torch.equal(y, (x @ (codes + offset.repeat_interleave(128, 0)[:200])).to(dtype))


@pytest.mark.parametrize("m", [1, 7])
@pytest.mark.parametrize("dtype", [HALF, BF16, FP32])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_not_finite_x_stays_in_its_row(dtype, m, value, isa):
    args = matmul_args(m + 1, 130, 24, dtype)
    args["offset"] = None
    clean = anynpu.weight_quant_matmul(**args)
    args["x"] = args["x"].clone()
    args["x"][0, 77] = value
    y = anynpu.weight_quant_matmul(**args)
    weight = reference.integers(args["weight"], 130)[77]
    expected = torch.where(weight == 0, float("nan"), value * weight).to(dtype)
    torch.testing.assert_close(y[0], expected, rtol=0, atol=0, equal_nan=True)
    assert_within_bound(y[1:], {**args, "x": args["x"][1:]})
    if m == 1:
        assert torch.equal(y[1:], clean[1:]) or dtype == BF16


def test_float16_overflow_is_infinite(isa):
    x = torch.full((2, 64), 60000.0, dtype=HALF)
    weight = torch.ones(64, 3, dtype=torch.int8)
    weight[:, 1] = -1
    weight[32:, 2] = -1
    y = anynpu.weight_quant_matmul(x, weight, torch.ones(3, dtype=HALF))
    assert y.tolist() == [[float("inf"), -float("inf"), 0.0]] * 2


def test_int8_result_of_not_finite_sums(isa):
    x = torch.tensor([[float("nan")], [float("inf")], [-float("inf")]], dtype=HALF)
    weight = torch.ones(1, 2, dtype=torch.int8)
    y = anynpu.weight_quant_matmul(x, weight, torch.ones(1, dtype=HALF), quant_scale=torch.ones(1))
    assert y.tolist() == [[0, 0], [127, 127], [-128, -128]]


def test_int8_result_rounds_half_to_even(isa):
    x = torch.arange(-5, 6, dtype=FP32).unsqueeze(1)
    weight = torch.ones(1, 1, dtype=torch.int8)
    y = anynpu.weight_quant_matmul(x, weight, torch.ones(1), quant_scale=torch.tensor([0.5]))
    assert y.flatten().tolist() == [-2, -2, -2, -1, 0, 0, 0, 1, 2, 2, 2]


def test_int8_bound_is_zero_away_from_ties():
    """The bound that the int8 cases are held to allows a difference in few elements, and by one."""
    args = {**matmul_args(64, 128, 64, HALF), "quant_scale": torch.full((64,), 2.0)}
    bound = reference.error_bound(**args)
    assert (bound > 0).float().mean() < 0.02 and bound.max() <= 1
    assert anynpu.reference.weight_quant_matmul(**args).unique().numel() > 50


def test_quant_scale_is_encoded_first():
    """Bits below the 19 that trans_quant_param keeps have no effect, and both forms agree."""
    args = matmul_args(4, 64, 16)
    quant_scale = torch.full((16,), 1.0 + 2.0**-12)
    quant_offset = torch.full((16,), 300.0)
    plain = anynpu.weight_quant_matmul(**args, quant_scale=quant_scale, quant_offset=quant_offset)
    encoded = anynpu.weight_quant_matmul(**args, quant_scale=anynpu.trans_quant_param(quant_scale, quant_offset))
    cut = anynpu.weight_quant_matmul(**args, quant_scale=torch.ones(16), quant_offset=torch.full((16,), 255.0))
    assert torch.equal(plain, encoded) and torch.equal(plain, cut)


@pytest.mark.parametrize("m", [1, 3, 17])
def test_uninitialised_memory_does_not_leak(m, isa):
    """The memory around a view, and what a result is written over, are NaN (or noise for integers)."""
    clean = matmul_args(m, 97, 40, HALF, group_size=32)
    poisoned = {}
    for name, tensor in clean.items():
        if not isinstance(tensor, torch.Tensor):
            poisoned[name] = tensor
            continue
        fill = float("nan") if tensor.dtype.is_floating_point else 0x7F7F7F7F
        around = torch.full((tensor.shape[0] + 2, tensor.shape[1] + 2), fill, dtype=tensor.dtype)
        around[1:-1, 1:-1] = tensor
        poisoned[name] = around[1:-1, 1:-1]
    expected = anynpu.weight_quant_matmul(**clean)
    for _ in range(3):
        scratch = [torch.full((size,), float("nan")) for size in (64, 4096, 65536)]
        del scratch
        assert torch.equal(anynpu.weight_quant_matmul(**poisoned), expected)


def test_result_does_not_depend_on_the_rows_beside_it(isa):
    args = matmul_args(40, 160, 48, HALF, group_size=64)
    whole = anynpu.weight_quant_matmul(**args)
    for row in (0, 21, 39):
        assert_within_bound(whole[row : row + 1], {**args, "x": args["x"][row : row + 1]})


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [HALF, BF16])
def test_rows_in_another_order_have_the_same_bits(dtype, bits, isa):
    """Plain rows, rows of which many values lie below a 16-bit grid, and one that is not finite, in shared tiles."""
    args = matmul_args(15, 200, 72, dtype, group_size=64, bits=bits)
    args["x"][::4, ::64] = 2000
    args["x"][7, 3] = float("inf")
    order = torch.randperm(15, generator=torch.Generator().manual_seed(1))
    y = anynpu.weight_quant_matmul(**args)
    moved = anynpu.weight_quant_matmul(**{**args, "x": args["x"][order]})
    torch.testing.assert_close(moved, y[order], rtol=0, atol=0, equal_nan=True)
    assert_within_bound(y, args)


@pytest.mark.parametrize("layout", ["batches", "prepacked"])
@pytest.mark.parametrize("dtype", [HALF, BF16, FP32])
def test_threads_that_pack_x_for_themselves_agree(dtype, layout, isa, each_thread_count):
    """Few rows of many columns; one of them is too small for bfloat16 products or digits."""
    args = matmul_args(5, 256, 1000, dtype, group_size=64)
    args["x"][3, :64] = 1e-39
    packed = {"weight": anynpu.weight_quant_prepack(args["weight"]), "n": 1000}
    if layout == "batches":
        args["x"] = torch.stack([args["x"], args["x"].flip(0)])
        args["weight"] = torch.stack([args["weight"], args["weight"].flip(0)])
        packed = {}
    results = each_thread_count(lambda: anynpu.weight_quant_matmul(**args | packed))
    assert_within_bound(results[0], args)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("shape", "strides", "x_k", "transposed"),
    [
        ((9, 4), (4, 1), 9, False),
        ((9, 4), (1, 9), 72, True),
        ((9, 4), (1, 16), 72, True),  # a part of a wider one
        ((9, 4), (16, 1), 9, False),
        ((9, 1), (1, 1), 9, False),
        ((9, 1), (1, 9), 72, True),
        ((9, 1), (1, 1), 72, True),  # torch may rewrite the stride of an axis of size 1: K decides
        ((9, 1), (1, 9), 9, False),
        ((1, 4), (4, 1), 1, False),
        ((1, 4), (1, 1), 8, True),
        ((1, 4), (4, 1), 8, True),
        ((1, 4), (1, 1), 1, False),
        ((1, 1), (1, 1), 1, False),
        ((1, 1), (1, 1), 8, True),
    ],
)
def test_layout_of_packed_words(shape, strides, x_k, transposed):
    """One rule for eager, fake and native; the cases with an axis of size 1 are documented."""
    weight = torch.randint(-(2**31), 2**31, (256,)).to(torch.int32).as_strided(shape, strides)
    assert spec.is_transposed(weight, x_k) == transposed
    assert spec.is_transposed(weight.to("meta").as_strided(shape, strides), x_k) == transposed
    args = {"x": torch.randn(2, x_k), "weight": weight, "scale": torch.ones(1)}
    assert_within_bound(anynpu.weight_quant_matmul(**args), args)


def test_single_word_without_x_is_plain():
    weight = torch.tensor([[0x76543210]], dtype=torch.int32)
    assert not spec.is_transposed(weight) and not spec.is_transposed(weight.t())
    assert reference.unprepacked(anynpu.weight_quant_prepack(weight)).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("weight", "error", "match"),
    [
        (torch.zeros(8, dtype=torch.int8), ValueError, r"weight must have two axes, got shape \(8,\)"),
        (torch.zeros(1, 8, 8, dtype=torch.int8), ValueError, r"weight must have two axes, got shape \(1, 8, 8\)"),
        (torch.zeros(8, 8), TypeError, r"weight must be int8, int4 or int32 \(eight packed int4\), got float32"),
        (torch.zeros(8, 8, dtype=torch.int8)[::2, ::2], ValueError, "weight must have stride 1 along one of its last"),
    ],
)
@pytest.mark.parametrize("module", [anynpu, anynpu.reference], ids=["cpu", "reference"])
def test_prepack_refuses(module, weight, error, match):
    with pytest.raises(error, match=f"weight_quant_prepack: {match}"):
        module.weight_quant_prepack(weight)


def test_unprepack_refuses_what_is_no_blob():
    blob = anynpu.weight_quant_prepack(torch.ones(4, 3, dtype=torch.int8))
    with pytest.raises(
        ValueError, match="weight_quant_unprepack: prepacked weight of K 4 and N 3 must have 192 bytes, got 191"
    ):
        anynpu.weight_quant_unprepack(blob[:-1])
    with pytest.raises(ValueError, match="weight_quant_unprepack: a uint8 weight must be a blob"):
        anynpu.weight_quant_unprepack(torch.zeros(100, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"weight_quant_unprepack: blob must have one axis, got shape \(2, 96\)"):
        anynpu.weight_quant_unprepack(blob.view(2, 96))
    with pytest.raises(TypeError, match="weight_quant_unprepack: blob must be uint8"):
        anynpu.weight_quant_unprepack(blob.view(torch.int8))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_blob_is_an_error_or_the_same_numbers(data):
    """No mutation of the header crashes; what is accepted is read as the reference reads it."""
    weight = torch.randint(-8, 8, (37, 40), dtype=torch.int32)
    blob = anynpu.weight_quant_prepack(anynpu.int4_pack(weight))
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, 63))] = data.draw(st.integers(0, 255))
    args = {"x": torch.randn(2, 37), "weight": blob, "scale": torch.ones(1), "n": 40}
    try:
        anynpu.reference.weight_quant_matmul(**args)
    except ValueError:
        with pytest.raises(ValueError):
            anynpu.weight_quant_matmul(**args)
        return
    assert_within_bound(anynpu.weight_quant_matmul(**args), args)


DTYPES = st.sampled_from([HALF, BF16, FP32, torch.float64, torch.int8, torch.int32, torch.int64, torch.uint8])
SIZES = st.sampled_from([0, 1, 2, 3, 8, 16, 33, 64, 65])


@st.composite
def any_tensor(draw, shapes, dtypes):
    tensor = torch.zeros(draw(shapes), dtype=draw(dtypes))
    return tensor.transpose(-1, -2) if tensor.dim() > 1 and draw(st.booleans()) else tensor


@st.composite
def any_call(draw):
    """Mostly well-formed calls with one or two arguments that may not be."""
    m, k, words = draw(st.tuples(SIZES, SIZES, st.sampled_from([1, 2, 5])))
    n, dtype = 8 * words, draw(st.sampled_from([HALF, BF16, FP32]))
    group_size = draw(st.sampled_from([0, 0, 32, 64]))
    groups = st.sampled_from([(1,), (n,), (1, n), (-(-k // 32), n), (-(-k // 64), n)])
    args = {"x": torch.zeros(m, k, dtype=dtype), "weight": torch.zeros(k, words, dtype=torch.int32)}
    args["scale"] = torch.zeros((-(-k // group_size), n) if group_size else (n,), dtype=dtype)
    args["group_size"] = group_size
    broken = {
        "x": any_tensor(st.lists(SIZES, min_size=1, max_size=4).map(tuple), DTYPES),
        "weight": any_tensor(st.sampled_from([(k, n), (n, k), (k, words), (2, k, n), (n,)]), DTYPES),
        "scale": any_tensor(groups, DTYPES),
        "offset": any_tensor(groups, DTYPES),
        "bias": any_tensor(groups, DTYPES),
        "quant_scale": any_tensor(groups, DTYPES),
        "quant_offset": any_tensor(groups, DTYPES),
        "group_size": st.integers(-64, 96),
        "inner_precise": st.integers(-1, 2),
    }
    for name in draw(st.lists(st.sampled_from(sorted(broken)), max_size=2, unique=True)):
        args[name] = draw(broken[name])
    return args


_check = _native.Call("weight_quant_matmul", tensors=8, scalars="q2i")
ORDER = ("x", "weight", "scale", "offset", "bias", "quant_scale", "quant_offset")


@given(any_call())
@settings(max_examples=400, deadline=None)
def test_python_and_native_checks_agree(args):
    """Both refuse with the same kind of error, or both accept; what is accepted runs."""
    scalars = (args.get("group_size", 0), args.get("inner_precise", 0), 0)
    tensors = [args.get(name) for name in ORDER]
    try:
        shape, dtype = spec.matmul_result(spec.Arguments(**args))
    except (TypeError, ValueError) as error:
        y = torch.empty(*args["x"].shape[:-1], 8, dtype=args["x"].dtype)
        if not (args["weight"].dtype == torch.uint8 and args["weight"].dim() == 1):  # N comes from n, which C has not
            with pytest.raises((TypeError, ValueError)):
                _check.required_bytes(*tensors, y, scalars=scalars)
        with pytest.raises(type(error)):
            anynpu.weight_quant_matmul(**args)
        return
    _check.required_bytes(*tensors, torch.empty(shape, dtype=dtype), scalars=scalars)
    y = anynpu.weight_quant_matmul(**args)
    expected = anynpu.reference.weight_quant_matmul(**args)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    assert torch.equal(y, expected)  # every number is zero: the result is exact


def test_compiles_without_graph_breaks_for_any_shape():
    """Group size and shapes are symbolic; a weight transposed inside the graph is recognised."""
    compiled = torch.compile(
        lambda x, packed, scale, offset, group: anynpu.weight_quant_matmul(
            x, packed.t(), scale.t(), offset.t(), group_size=group
        ),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for m, k, n, group in ((3, 128, 24, 32), (5, 192, 17, 64), (2, 72, 9, 32), (1, 64, 1, 32)):
        groups = -(-k // group)
        args = (
            torch.randn(m, k),
            anynpu.int4_pack(torch.randint(-8, 8, (n, k), dtype=torch.int32)),
            torch.rand(n, groups),
            torch.randn(n, groups),
            group,
        )
        x, packed, scale, offset, _ = args
        expected = anynpu.weight_quant_matmul(x, packed.t(), scale.t(), offset.t(), group_size=group)
        assert torch.equal(compiled(*args), expected)


def test_compiles_with_a_prepacked_weight():
    weight = anynpu.int4_pack(torch.randint(-8, 8, (40, 24), dtype=torch.int32))
    blob, scale = anynpu.weight_quant_prepack(weight), torch.rand(24)
    compiled = torch.compile(
        lambda x, blob: anynpu.weight_quant_matmul(x, blob, scale, n=24),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for m in (1, 2, 9):
        x = torch.randn(m, 40)
        assert torch.equal(compiled(x, blob), anynpu.weight_quant_matmul(x, weight, scale))
