# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import case_table
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu._register import operators
from anynpu._strict import strict
from anynpu.ops.rope_kv_cache.spec import sample_arguments

OPERATOR = operators["rope_kv_cache"]
RESULTS = ("q", "k", "v", "k_cache", "v_cache")


def copied(args):
    """Copies of the caches, which the call writes; the rest as it is, strides included."""
    return {**args, **{name: args[name].clone() for name in ("k_cache", "v_cache")}}


def call(args):
    return anynpu.rope_kv_cache(**copied(args))


def reference(args):
    args = copied(args)
    return *anynpu.reference.rope_kv_cache(**args), args["k_cache"], args["v_cache"]


def assert_within_bounds(results, args):
    for name, result, expected, bound in zip(
        RESULTS, results, reference(args), OPERATOR.error_bound(**copied(args)), strict=True
    ):
        assert result.dtype == expected.dtype and result.shape == expected.shape
        same = (result == expected) | (result.isnan() & expected.isnan())
        right = same | ((result.double() - expected.double()).abs() <= bound)
        assert right.all(), f"{name}: {int((~right).sum())} of {right.numel()} elements are wrong"


@case_table.valid_calls("rope_kv_cache")
def test_is_within_bounds_of_reference(case, isa, each_thread_count):
    before = {key: value.clone() for key, value in case.args.items() if isinstance(value, torch.Tensor)}
    first, *others = each_thread_count(lambda: call(case.args))
    assert_within_bounds(first, case.args)
    for other in others:
        for result, same in zip(first, other, strict=True):
            assert torch.equal(result, same)
    for key, value in before.items():
        assert torch.equal(case.args[key], value), key


@pytest.mark.parametrize("front_end", ["cpu", "reference", "operator"])
@case_table.invalid_calls("rope_kv_cache")
def test_invalid_call_raises_and_writes_nothing(case, front_end):
    function = {
        "cpu": anynpu.rope_kv_cache,
        "reference": anynpu.reference.rope_kv_cache,
        "operator": OPERATOR.overload,
    }[front_end]
    if front_end != "cpu" and {"quant_mode", "input_layout"} & case.args.keys():
        pytest.skip("only the public function has this argument")
    before = copied(case.args)
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]):
        function(**case.args)
    for name in ("k_cache", "v_cache"):
        assert torch.equal(case.args[name], before[name])


@st.composite
def calls(draw):
    dtype = draw(st.sampled_from([torch.int32, torch.float16, torch.bfloat16, torch.float32]))
    floats = [torch.float16, torch.bfloat16]
    cos_dtype = draw(st.sampled_from(floats)) if dtype == torch.int32 else dtype
    leading = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)) | st.tuples(st.integers(1, 4)))
    heads = draw(st.tuples(st.integers(0, 4), st.integers(1, 3)))
    head_size = 2 * draw(st.integers(1, 40))
    paged = draw(st.booleans())
    tokens = leading[0] * (leading[1] if len(leading) == 2 else 1)
    cache = (draw(st.integers(leading[0], 5)), draw(st.integers(3, 6)))
    low, high, count = (-2, cache[0] * cache[1] - 1, tokens) if paged else (0, cache[1] - 3, leading[0])
    indices = draw(st.lists(st.integers(low, high), min_size=count, max_size=count))
    seed = draw(st.integers(0, 2**31))
    args = sample_arguments(leading, heads, head_size, dtype, cos_dtype, cache, indices, seed)
    generator = torch.Generator().manual_seed(seed)
    if draw(st.booleans()):
        args["offset_k"] = torch.randn(heads[1], head_size, generator=generator) * 30
    if dtype == torch.int32:
        width = args["x"].shape[-1]
        args["weight_scale"] = torch.rand(width, generator=generator) * 1e-4
        bias = draw(st.sampled_from([None, torch.int32, torch.float32, torch.float16, torch.bfloat16]))
        if bias is not None:
            args["bias"] = torch.randint(-99, 100, (width,), generator=generator).to(bias)
    return {**args, "kv_output": draw(st.booleans()), "cache_mode": "page" if paged else "contiguous"}


@given(calls())
@settings(max_examples=60, deadline=None)
def test_any_valid_call_is_within_bounds_of_reference(args):
    assert_within_bounds(call(args), args)


def constructed(dtype, cos_dtype):
    """Small integers, cos and sin in {0, 1, -1}, scales that are powers of two: every step is exact, ties are met."""
    generator = torch.Generator().manual_seed(3)
    args = sample_arguments((7, 3), (4, 2), 64, torch.int32, cos_dtype, (7, 5), [0, 1, 2, 0, 1, 2, 0])
    args["x"] = torch.randint(-64, 65, args["x"].shape, generator=generator).to(dtype)
    for name in ("cos", "sin"):
        args[name] = torch.randint(-1, 2, args[name].shape, generator=generator).to(cos_dtype)
    for name in ("scale_k", "scale_v"):
        args[name] = torch.exp2(torch.randint(-1, 3, (2, 64), generator=generator).float())
    args["offset_k"] = torch.randint(-100, 101, (2, 64), generator=generator) / 2
    if dtype == torch.int32:
        args["weight_scale"] = torch.exp2(torch.randint(-2, 1, (512,), generator=generator).float())
    return {**args, "kv_output": True}


@pytest.mark.parametrize("cos_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("integers", [True, False])
def test_equals_reference_on_exact_inputs(integers, cos_dtype, isa):
    args = constructed(torch.int32 if integers else cos_dtype, cos_dtype)
    for name, result, expected in zip(RESULTS, call(args), reference(args), strict=True):
        assert torch.equal(result, expected), name


def one_value(value, scale=1.0, offset=None):
    """The code that v = value gets, and its neighbour's, which is 1."""
    x = torch.tensor([[0, 0, value, 1]], dtype=torch.float32)
    angle = torch.ones(1, 2)
    k_cache, v_cache = torch.zeros(1, 1, 1, 2, dtype=torch.int8), torch.zeros(1, 1, 1, 2, dtype=torch.int8)
    scale = torch.tensor([[scale, 1.0]])
    offset = None if offset is None else torch.tensor([[offset, 0.0]])
    index = torch.zeros(1, dtype=torch.int32)
    anynpu.rope_kv_cache(x, angle, angle, k_cache, v_cache, index, scale, scale, [0, 2, 2], offset_v=offset)
    assert v_cache[0, 0, 0, 1] == 1
    return int(v_cache[0, 0, 0, 0])


@pytest.mark.parametrize(
    ("value", "scale", "offset", "code"),
    [
        (0.5, 1.0, None, 0),
        (1.5, 1.0, None, 2),
        (2.5, 1.0, None, 2),
        (-0.5, 1.0, None, 0),
        (-1.5, 1.0, None, -2),
        (126.5, 1.0, None, 126),
        (127.5, 1.0, None, 127),
        (-128.5, 1.0, None, -128),
        (1e30, 1.0, None, 127),
        (-1e30, 1.0, None, -128),
        (float("inf"), 1.0, None, 127),
        (float("-inf"), 1.0, None, -128),
        (float("nan"), 1.0, None, 0),
        (0.0, 0.0, None, 0),  # 0 / 0
        (1.0, 0.0, None, 127),
        (-1.0, 0.0, 5.0, -128),
        (300.0, 1.0, -290.0, 10),
        (10.0, 4.0, 0.5, 3),
        (1.0, float("nan"), None, 0),
    ],
)
def test_rounding_saturation_and_nan(value, scale, offset, code, isa):
    assert one_value(value, scale, offset) == code


def test_division_is_not_a_multiplication(isa):
    """45.5 * 3 / 3 is a tie for a division; for a product with float32(1 / 3) it need not be."""
    scales = torch.arange(3, 400, 2, dtype=torch.float32)
    codes = [one_value(float(scale) * 44.5, float(scale)) for scale in scales]
    assert codes == [44] * len(codes)


def test_special_values_of_x_stay_in_their_lanes(isa):
    args = sample_arguments((2, 1), (2, 1), 64, torch.float16, torch.float16, (2, 2), [0, 1])
    args["x"][0, 0, 70] = float("inf")
    args["x"][1, 0, 5] = float("nan")
    args = {**args, "kv_output": True}
    results = call(args)
    assert_within_bounds(results, args)
    q = results[0]
    assert q[1, 0, 0].isnan().nonzero().flatten().tolist() == [5, 37]
    assert (~q[0, 0, 1].isfinite()).nonzero().flatten().tolist() == [6, 38]
    assert q[0, 0, 0].isfinite().all() and q[1, 0, 1].isfinite().all()


def test_overflow_of_a_half_output_is_infinite(isa):
    args = sample_arguments((1, 1), (1, 1), 32, torch.int32, torch.float16, (1, 1), [0])
    args["x"].fill_(1 << 20)
    args["cos"].fill_(1), args["sin"].fill_(0)
    q, *_ = anynpu.rope_kv_cache(**args, weight_scale=torch.ones(96))
    assert (q == float("inf")).all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_last_token_of_a_slot_wins(threads, isa):
    tokens, slots = 512, 40
    indices = torch.randint(-2, slots, (tokens,), generator=torch.Generator().manual_seed(5)).tolist()
    args = sample_arguments((tokens, 1), (4, 1), 64, torch.float16, torch.float16, (4, 10), indices)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, _, _, k_cache, v_cache = call({**args, "cache_mode": "page"})
    finally:
        torch.set_num_threads(before)
    *_, expected_k, expected_v = reference({**args, "cache_mode": "page"})
    last = {slot: token for token, slot in enumerate(indices) if slot >= 0}
    assert len(last) == slots
    for slot, token in last.items():
        x = args["x"][token, 0, 5 * 64 :].double()
        code = (x / args["scale_v"][0].double()).clamp(-128, 127).round()
        assert (v_cache.view(slots, 64)[slot].double() - code).abs().max() <= 1
    assert (k_cache.double() - expected_k.double()).abs().max() <= 1
    assert (v_cache.double() - expected_v.double()).abs().max() <= 1


def test_only_the_indexed_rows_change(isa):
    args = sample_arguments((2, 2), (2, 2), 32, torch.float16, torch.float16, (3, 7), [1, 4])
    _, _, _, k_cache, v_cache = call(args)
    for name, cache in (("k_cache", k_cache), ("v_cache", v_cache)):
        changed = (cache != args[name]).flatten(2).any(-1).nonzero().tolist()
        assert changed == [[0, 1], [0, 2], [1, 4], [1, 5]]


def test_caches_that_share_memory_are_refused():
    args = sample_arguments((1, 1), (1, 1), 16, torch.float16, torch.float16, (1, 4), [0])
    args["v_cache"] = args["k_cache"]
    before = args["k_cache"].clone()
    with pytest.raises(ValueError, match="k_cache and v_cache must not share memory"):
        anynpu.rope_kv_cache(**args)
    assert torch.equal(args["k_cache"], before)


@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_compiled_graph_mutates_the_caches(backend):
    """A cache that is read before and after the call: functionalisation must keep the order."""

    def step(args):
        before = args["k_cache"].float().sum()
        q, _, _, k_cache, _ = anynpu.rope_kv_cache(**args)
        return q, before, k_cache.float().sum(), args["k_cache"].float().sum()

    args = sample_arguments((2, 3), (2, 2), 16, torch.float16, torch.float16, (2, 8), [0, 2])
    expected_args, compiled_args = copied(args), copied(args)
    expected = step(expected_args)
    results = torch.compile(step, fullgraph=True, backend=backend)(compiled_args)
    assert expected[1] != expected[2]
    for result, right in zip(results, expected, strict=True):
        assert torch.equal(result, right)
    assert torch.equal(compiled_args["k_cache"], expected_args["k_cache"])
    assert torch.equal(compiled_args["v_cache"], expected_args["v_cache"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({}, None),
        ({"head_size": 130}, r"wants x.shape\[-1\] to be a multiple of 64, got 520"),
        ({"heads": (64, 2), "head_size": 64}, r"wants x.shape\[-1\] <= 4096, got 4352"),
        ({"cache": (2, 8)}, r"wants k_cache.shape\[0\] > B = 2 in contiguous mode, got 2"),
        ({"dtype": torch.float32, "cos_dtype": torch.float32}, "wants cos and sin in float16 or bfloat16, got float32"),
    ],
)
def test_strict_mode(change, match):
    arguments = {
        "leading": (2, 1), "heads": (2, 1), "head_size": 64, "dtype": torch.float16, "cos_dtype": torch.float16,
        "cache": (3, 8), "indices": [0, 1],
    }  # fmt: skip
    args = sample_arguments(**{**arguments, **change})
    anynpu.rope_kv_cache(**copied(args))
    with strict("Ascend910B"):
        if match is None:
            anynpu.rope_kv_cache(**args)
            return
        with pytest.raises(ValueError, match=match):
            anynpu.rope_kv_cache(**args)


def test_atlas_a3_lacks_it_in_strict_mode():
    args = sample_arguments((2, 1), (2, 1), 64, torch.float16, torch.float16, (3, 8), [0, 1])
    rule = (
        r"^rope_kv_cache: Ascend910_9391 \(Atlas A3\) lacks this operator, which the document gives to Atlas A2 alone"
    )
    with strict("Ascend910_9391"), pytest.raises(ValueError, match=rule):
        anynpu.rope_kv_cache(**args)


@pytest.mark.parametrize(
    ("indices", "match"),
    [([1, 1], "wants indices that do not repeat"), ([0, -1], "wants every index to be at least 0")],
)
def test_strict_mode_of_slots(indices, match):
    args = sample_arguments((2, 1), (2, 1), 64, torch.float16, torch.float16, (3, 8), indices)
    args["cache_mode"] = "page"
    anynpu.rope_kv_cache(**copied(args))
    with strict("Ascend910B"), pytest.raises(ValueError, match=match):
        anynpu.rope_kv_cache(**args)


def test_repeated_calls_notice_what_changes():
    args = sample_arguments((2, 1), (2, 1), 64, torch.float16, torch.float16, (2, 8), [0, 1])
    for _ in range(2):
        assert_within_bounds(call(args), args)
    wide = torch.randn(2, 1, 512).half()
    changes = [
        {"x": wide[..., ::2]},
        {"cos": args["cos"][:1].expand(2, 1, 1, 64)},
        {"kv_output": True},
        {"cache_mode": "page"},
        {"offset_k": torch.ones(1, 64)},
        {"offset_v": torch.ones(1, 64)},
    ]
    for change in changes:
        changed = {**args, **change}
        assert_within_bounds(call(changed), changed)
    with pytest.raises(ValueError, match="got 8 at"):
        anynpu.rope_kv_cache(**{**args, "indices": torch.tensor([8, 0], dtype=torch.int32)})
    with pytest.raises(TypeError, match="indices must be int32"):
        anynpu.rope_kv_cache(**{**args, "indices": args["indices"].long()})
    with strict("Ascend910B"), pytest.raises(ValueError, match="wants k_cache.shape"):
        anynpu.rope_kv_cache(**args)
    with torch.device("meta"):
        assert all(result.device.type == "cpu" for result in anynpu.rope_kv_cache(**args))
