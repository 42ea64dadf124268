# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import case_table
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu.formats import compress_weight
from anynpu.ops.compressed_matmul.reference import error_bound


def as_words(scale):
    return scale.view(torch.int32).to(torch.int64) if scale.dtype == torch.float32 else scale


def arguments(case):
    args = dict(case.args)
    compressed = compress_weight(args.pop("weight"))
    scale = args["scale"] if case.spec.get("plain_scale") else as_words(args["scale"])
    args |= {"stream": compressed.stream, "index": compressed.index, "scale": scale}
    args.setdefault("bias", None)
    return args


ORACLES = {}


def expected_and_bound(case, args):
    """Of the oracle, which takes seconds, once for all tiers that compress the weight to the same bytes."""
    key = case.name, *(bytes(args[name].view(torch.uint8).numpy()) for name in ("stream", "index"))
    if key not in ORACLES:
        ORACLES[key] = anynpu.reference.compressed_matmul(**args), error_bound(**args)
    return ORACLES[key]


@case_table.valid_calls("compressed_matmul")
def test_equals_reference(case, isa, each_thread_count):
    """Equal bits, but for the float32 epilogue of a token's scale or a float bias; see the bound."""
    args = arguments(case)
    expected, bound = expected_and_bound(case, args)
    results = each_thread_count(lambda: anynpu.compressed_matmul(**args))
    for result in results:
        assert result.dtype == expected.dtype
        assert ((result == expected) | ((result.double() - expected.double()).abs() <= bound)).all()
        assert torch.equal(result, results[0])


@case_table.valid_calls("compressed_matmul", lambda case: "scale_19_bits" not in case.args)
def test_equals_quant_matmul(case, isa):
    args = arguments(case)
    bias = None if args["bias"] is None else args["bias"].reshape(-1)
    twin = anynpu.quant_matmul(
        args["x"],
        case.args["weight"].t(),
        args["scale"].reshape(-1),
        bias=bias,
        pertoken_scale=args.get("pertoken_scale"),
        output_dtype=args.get("output_dtype", torch.float16),
    )
    assert torch.equal(anynpu.compressed_matmul(**args), twin)


@pytest.mark.parametrize(
    "function", [anynpu.compressed_matmul, anynpu.reference.compressed_matmul], ids=["cpu", "reference"]
)
@case_table.invalid_calls("compressed_matmul")
def test_invalid_call_raises(case, function):
    match = case.error["match"] if function is anynpu.compressed_matmul else "compressed_matmul"
    with pytest.raises(getattr(builtins, case.error["python"]), match=match):
        function(**arguments(case))


BYTES = torch.zeros(256, dtype=torch.int8)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"stream": BYTES.int()}, TypeError, "stream must be int8 or uint8, got int32"),
        ({"index": BYTES[:8].half()}, TypeError, "index must be int8 or uint8, got float16"),
        ({"stream": BYTES[None]}, ValueError, r"stream must have one axis and be contiguous, got shape \(1, 256\)"),
        ({"index": BYTES[:16:2]}, ValueError, r"index must have one axis and be contiguous, got shape \(8,\)"),
        (
            {"stream": torch.zeros(4097, dtype=torch.int8)},
            ValueError,
            "stream must have at most 4096 bytes .* got 4097",
        ),
        ({"x": torch.zeros(2, 0, dtype=torch.int8)}, ValueError, r"K must be in \[1, 131071\] .*, got 0"),
        ({"x": torch.zeros(1, 131072, dtype=torch.int8)}, ValueError, r"K must be in \[1, 131071\] .*, got 131072"),
    ],
)
@pytest.mark.parametrize("module", [anynpu, anynpu.reference], ids=["cpu", "reference"])
def test_bytes_of_another_kind_are_refused(module, changed, error, match):
    args = {"x": torch.zeros(2, 64, dtype=torch.int8), "stream": BYTES, "index": BYTES[:8], "bias": None}
    with pytest.raises(error, match=f"compressed_matmul: {match}"):
        module.compressed_matmul(**args | {"scale": as_words(torch.ones(1, 8))} | changed)


def gaussian(n, k, sigma, seed=0):
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * sigma
    return values.round().clamp(-128, 127).to(torch.int8)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 20), st.integers(1, 600), st.integers(1, 300), st.sampled_from([0.5, 3, 12, 33, 80]))
def test_any_shape_equals_quant_matmul(m, k, n, sigma):
    x, weight = gaussian(m, k, 40, seed=m), gaussian(n, k, sigma, seed=n)
    compressed = compress_weight(weight)
    scale = torch.rand(1, n, generator=torch.Generator().manual_seed(k))
    result = anynpu.compressed_matmul(x, compressed.stream, compressed.index, None, as_words(scale), n=n)
    assert torch.equal(result, anynpu.quant_matmul(x, weight.t(), scale.reshape(-1), output_dtype=torch.float16))


@pytest.mark.parametrize(("k", "n"), [(256, 128), (252, 128), (700, 300)])
@pytest.mark.parametrize("value", [-128, 127, None])
def test_one_row_times_nibbles(value, k, n, isa, each_thread_count):
    """A column of 127 makes the largest sums of nibbles that there are."""
    weight = gaussian(n, k, 33)
    weight[::128] = 127
    compressed = compress_weight(weight)
    payload = compressed.stream.view(torch.uint8)
    assert payload[1:3].tolist() == [0, 0]  # as they are, and one table
    assert payload[32:40].tolist() == 8 * [0x44]  # four extra bits in each class
    x = gaussian(1, k, 40) if value is None else torch.full((1, k), value, dtype=torch.int8)
    scale = torch.full((n,), 2.0**-12)
    expected = anynpu.quant_matmul(x, weight.t(), scale, output_dtype=torch.float16)
    for result in each_thread_count(
        lambda: anynpu.compressed_matmul(
            x, compressed.stream, compressed.index, None, as_words(scale.reshape(1, -1)), n=n
        )
    ):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("place", [0, 100, -1])
def test_damage_names_the_block(place, isa):
    compressed = compress_weight(gaussian(300, 700, 30))
    stream = compressed.stream.clone()
    stream[place] ^= 1
    block = 8 if place == -1 else 0
    with pytest.raises(ValueError, match=f"compressed_matmul: block {block} of the compressed weight .* is damaged"):
        anynpu.compressed_matmul(
            torch.ones(2, 700, dtype=torch.int8), stream, compressed.index, None, as_words(torch.ones(1, 300))
        )


def test_foreign_stream_is_refused():
    x, index = torch.ones(2, 64, dtype=torch.int8), torch.arange(8, dtype=torch.int8)
    with pytest.raises(ValueError, match="was not compressed by anynpu"):
        anynpu.compressed_matmul(x, torch.zeros(500, dtype=torch.int8), index, None, as_words(torch.ones(1, 8)))


@pytest.mark.parametrize("chip", ["Ascend910B", "Ascend910_93"])
def test_chips_of_strict_mode_lack_it(chip):
    compressed = compress_weight(torch.ones(8, 64, dtype=torch.int8))
    args = (torch.ones(2, 64, dtype=torch.int8), compressed.stream, compressed.index, None, as_words(torch.ones(1, 8)))
    anynpu.compressed_matmul(*args)
    with anynpu.strict(chip), pytest.raises(ValueError, match=rf"^compressed_matmul: {chip} \(Atlas A\d\) lacks"):
        anynpu.compressed_matmul(*args)


def test_negative_scale_is_sign_extended():
    """The document's recipe reads float32 as int32 and widens it: the high half of a negative scale is all ones."""
    compressed = compress_weight(torch.ones(2, 4, dtype=torch.int8))
    words = as_words(torch.tensor([[-0.5, 1.5]]))
    assert int(words[0, 0]) < 0
    result = anynpu.compressed_matmul(
        torch.ones(1, 4, dtype=torch.int8), compressed.stream, compressed.index, None, words.view(torch.uint64)
    )
    assert result.tolist() == [[-2.0, 6.0]]
