# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu.formats.compressed import (
    CompressedWeight,
    Int8Codec,
    _Room,
    compress_weight,
    decompress_weight,
    entropy_bits,
    index_bytes,
    most_bytes,
)
from anynpu.ops.compressed_matmul.reference import block_seed, checksum, decompress


def gaussian(n, k, sigma, seed=0):
    values = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * sigma
    return values.round().clamp(-128, 127).to(torch.int8)


def uniform(n, k, low, high, seed=0):
    return torch.randint(low, high + 1, (n, k), dtype=torch.int8, generator=torch.Generator().manual_seed(seed))


def student(n, k, scale, degrees=3):
    torch.manual_seed(0)
    samples = torch.distributions.StudentT(float(degrees)).sample((n, k))
    return (samples * scale).round().clamp(-128, 127).to(torch.int8)


def rows_of_different_spread(n, k):
    spread = torch.logspace(0, 1.7, n).unsqueeze(1)
    return (
        (torch.randn(n, k, generator=torch.Generator().manual_seed(3)) * spread).round().clamp(-128, 127).to(torch.int8)
    )


MATRICES = {
    "one value": uniform(1, 1, -128, 127),
    "zero": torch.zeros(130, 300, dtype=torch.int8),
    "constant": torch.full((64, 256), -128, dtype=torch.int8),
    "random": uniform(257, 511, -128, 127),
    "primes": gaussian(131, 257, 30),
    "row": gaussian(1, 1000, 20),
    "column": gaussian(1000, 1, 20),
    "gaussian 33": gaussian(256, 1024, 33),
    "gaussian 8": gaussian(256, 1024, 8),
    "gaussian 2": gaussian(256, 1024, 2),
    "gaussian 0.6": gaussian(256, 1024, 0.6),
    "mostly zero": gaussian(256, 1024, 0.25),
    "sparse quantised": torch.where(
        uniform(256, 1024, 0, 9) == 0, uniform(256, 1024, -128, 127, 1), uniform(256, 1024, -8, 7, 2)
    ),
    "heavy tails": student(256, 1024, 3),
    "not negative": gaussian(256, 1024, 30).abs().clamp(min=0),
    "seventeen values": uniform(256, 512, 0, 16) * 14 - 112,
    "different rows": rows_of_different_spread(256, 1024),
    "extremes": uniform(128, 256, 0, 1) * -1 + 127,
}


@pytest.mark.parametrize("name", MATRICES)
def test_round_trip(name, isa, each_thread_count):
    weight = MATRICES[name]
    compressed = compress_weight(weight)
    assert compressed.index.numel() == index_bytes(*weight.shape)
    assert compressed.stream.numel() <= most_bytes(*weight.shape)
    for result in each_thread_count(lambda: decompress_weight(compressed)):
        assert torch.equal(result, weight)


def test_large_weights_are_decompressed_to_huge_pages(monkeypatch):
    advised = []
    monkeypatch.setattr(anynpu._native, "_madvise", lambda *args: advised.append(args))
    for rows, calls in ((4095, 0), (4096, 1)):
        weight = torch.full((rows, 8192), 3, dtype=torch.int8)
        assert torch.equal(decompress_weight(compress_weight(weight)), weight)
        assert len(advised) == calls


@pytest.mark.parametrize("k", [4160, 4100])  # rows that begin on a cache line, and others
def test_round_trip_of_what_is_written_past_the_caches(k, isa, each_thread_count):
    weight = gaussian(2049, k, 8)
    compressed = compress_weight(weight)
    for result in each_thread_count(lambda: decompress_weight(compressed)):
        assert torch.equal(result, weight)


@pytest.mark.parametrize("name", MATRICES)
def test_reference_decoder_reads_it(name):
    weight = MATRICES[name]
    compressed = compress_weight(weight)
    assert torch.equal(decompress(compressed.stream, compressed.index, *weight.shape), weight)


@pytest.mark.parametrize("name", ["gaussian 2", "different rows", "random", "primes"])
def test_output_depends_on_the_weight_alone(name, isa, each_thread_count):
    weight = MATRICES[name]
    first = compress_weight(weight)
    strided = torch.empty(weight.shape[1], weight.shape[0], dtype=torch.int8).copy_(weight.t()).t()
    for other in [*each_thread_count(lambda: compress_weight(weight)), compress_weight(strided)]:
        assert torch.equal(other.stream, first.stream)
        assert torch.equal(other.index, first.index)


@pytest.mark.parametrize("sigma", [0.6, 1, 2, 3, 4, 5.5, 8, 12, 20, 33, 45])
def test_within_four_percent_of_the_entropy(sigma):
    weight = gaussian(512, 2048, sigma)
    assert compress_weight(weight).bits_per_weight <= 1.04 * entropy_bits(weight)


@pytest.mark.parametrize("name", ["heavy tails", "sparse quantised", "not negative"])
def test_other_distributions_within_four_percent(name):
    assert compress_weight(MATRICES[name]).bits_per_weight <= 1.04 * entropy_bits(MATRICES[name])


def test_rows_of_different_spread_go_below_the_entropy():
    weight = MATRICES["different rows"]
    assert compress_weight(weight).bits_per_weight < entropy_bits(weight)


shapes = st.tuples(st.integers(1, 300), st.integers(1, 600))


@settings(deadline=None, max_examples=40)
@given(shapes, st.floats(0, 60), st.integers(-20, 20), st.integers(0, 2**32 - 1))
def test_any_gaussian_round_trips(shape, sigma, mean, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * sigma + mean
    weight = values.round().clamp(-128, 127).to(torch.int8)
    assert torch.equal(decompress_weight(compress_weight(weight)), weight)


@st.composite
def distributions(draw):
    """Values from any few codes with any counts: gaps, one-sided, heavy tails and single outliers."""
    alphabet = torch.tensor(draw(st.lists(st.integers(-128, 127), min_size=1, max_size=60)), dtype=torch.int8)
    steepness = draw(st.floats(0, 8))
    n, k = draw(shapes)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    places = (torch.rand(n, k, generator=generator) ** (1 + steepness) * alphabet.numel()).long()
    weight = alphabet[places]
    weight[draw(st.integers(0, n - 1)), draw(st.integers(0, k - 1))] = draw(st.integers(-128, 127))
    return weight


@settings(deadline=None, max_examples=60)
@given(distributions())
def test_any_distribution_round_trips(weight):
    assert torch.equal(decompress_weight(compress_weight(weight)), weight)


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=1, max_size=3000), st.integers(1, 40))
def test_any_bytes_round_trip(data, row_length):
    data = data * row_length
    codec = Int8Codec.from_config(Int8Codec(row_length).get_config())
    assert codec.decode(codec.encode(data)) == data


def mutated(compressed, place, xor):
    stream, index = compressed.stream.clone(), compressed.index.clone()
    data = torch.cat([index, stream])
    place %= data.numel()
    data[place] ^= xor
    return CompressedWeight(data[index.numel() :], data[: index.numel()], compressed.info)


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["gaussian 33", "gaussian 0.6", "random", "zero", "primes"]),
    st.integers(0, 2**40),
    st.integers(-128, 127),
)
def test_any_changed_byte_is_refused(name, place, xor):
    damaged = mutated(compress_weight(MATRICES[name]), place, xor)
    if xor == 0:
        assert torch.equal(decompress_weight(damaged), MATRICES[name])
        return
    with pytest.raises(ValueError, match="weight_decompress: (entry|block) [0-9]+ of the (index|compressed weight)"):
        decompress_weight(damaged)


def resealed(compressed, block, change):
    """Changes one payload and makes its checksum right again: what a decoder meets when somebody means harm."""
    entries = compressed.index.view(torch.uint8).reshape(-1, 8).clone()
    lengths = 8 * (entries[:, 4].long() + (entries[:, 5].long() << 8))
    first = int(lengths[:block].sum())
    stream = compressed.stream.clone()
    payload = stream[first : first + int(lengths[block])].view(torch.uint8)
    change(payload)
    value = checksum(payload, block_seed(compressed.k, compressed.n, block, int(entries[block, 6])))
    entries[block, :4] = torch.tensor([value >> shift & 255 for shift in (0, 8, 16, 24)], dtype=torch.uint8)
    return CompressedWeight(stream, entries.flatten().view(torch.int8), compressed.info)


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (0, 0, "its header names no known coding"),
        (0, 7, "its header names no known coding"),
        (1, 2, "its header names no known coding"),
        (2, 6, "its header names no known coding"),
        (3, 2, "its header names no known coding"),
        (5, 1, "its parts do not add up to its length"),
        (32, 8, "a table holds a bit count above 7"),
    ],
)
def test_resealed_damage_is_refused(place, value, match, isa):
    def change(payload):
        assert payload[place] != value
        payload[place] = value

    damaged = resealed(compress_weight(gaussian(200, 600, 30)), 1, change)
    with pytest.raises(ValueError, match=match):
        decompress_weight(damaged)


def test_wide_values_are_nibbles_and_boxes(isa):
    weight = gaussian(128, 256, 33)
    compressed = compress_weight(weight)
    payload = compressed.stream.view(torch.uint8)
    assert payload[:4].tolist() == [2, 0, 0, 1]  # two levels, one table, the second level of boxes
    assert payload[32:40].tolist() == 8 * [0x44]  # four extra bits in each class
    assert torch.equal(decompress_weight(compressed), weight)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize("folded", [False, True])
def test_nibbles_of_other_encoders_decode(shift, folded, isa):
    weight = gaussian(128, 256, 33)

    def change(payload):
        payload[1] = folded
        payload[16:32] += shift  # the bases; of a folded code the low bit changes the sign

    damaged = resealed(compress_weight(weight), 0, change)
    codes = weight.short() + 128 + shift & 255
    expected = (codes >> 1 ^ -(codes & 1) if folded else codes - 128).to(torch.int8)
    assert torch.equal(decompress_weight(damaged), expected)
    x, scale = gaussian(1, 256, 40), torch.full((128,), 2.0**-12)
    words = scale.view(torch.int32).to(torch.int64).reshape(1, -1)
    result = anynpu.compressed_matmul(x, damaged.stream, damaged.index, None, words)
    assert torch.equal(result, anynpu.quant_matmul(x, expected.t(), scale, output_dtype=torch.float16))


def test_nibbles_that_run_out_are_refused(isa):
    def change(payload):
        extras = payload.numel() - 16 - 24 - 128 * 256 // 2
        payload[:6] = torch.tensor([1, 1, 0, 0, extras & 255, extras >> 8])  # the first level alone

    damaged = resealed(compress_weight(gaussian(128, 256, 33)), 0, change)
    with pytest.raises(ValueError, match="its bits run out"):
        decompress_weight(damaged)


@pytest.mark.parametrize("mask", [0x05, 0x50, 0xFF])
def test_a_mask_that_is_none_is_refused(mask, isa):
    def change(payload):
        assert payload[:4].tolist() == [2, 1, 0, 1]  # two levels, one table, the second level of boxes
        payload[16 + 24 + 16] = mask

    damaged = resealed(compress_weight(gaussian(64, 256, 3)), 0, change)
    with pytest.raises(ValueError, match="a table holds a mask that is none"):
        decompress_weight(damaged)
    with pytest.raises(ValueError, match="a table holds a mask that is none"):
        decompress(damaged.stream, damaged.index, 64, 256)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([33.0, 3.0, 0.6]),
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_any_resealed_payload_is_decoded_alike_or_refused(sigma, changes):
    def change(payload):
        for place, value in changes:
            payload[place % min(payload.numel(), 200)] = value

    damaged = resealed(compress_weight(gaussian(128, 256, sigma)), 0, change)
    try:
        weight = decompress_weight(damaged)
    except ValueError:
        return
    assert torch.equal(weight, decompress(damaged.stream, damaged.index, 128, 256))


def test_blocks_cannot_change_places():
    compressed = compress_weight(gaussian(128, 512, 30))
    entries = compressed.index.reshape(2, 8)
    length = 8 * int(entries[0, 4:6].view(torch.int16))
    stream = torch.cat([compressed.stream[length:], compressed.stream[:length]])
    with pytest.raises(ValueError, match="block 0 .* is damaged: its checksum does not match"):
        decompress_weight(CompressedWeight(stream, entries.flip(0).flatten(), compressed.info))


def test_another_default_device_changes_nothing(monkeypatch):
    """The library takes addresses of the CPU."""
    weight, expected = gaussian(130, 300, 8), compress_weight(gaussian(130, 300, 8))
    data = weight.numpy().tobytes()
    for most_kept in (1 << 26, 0):
        monkeypatch.setattr(_Room, "_MOST_BYTES", most_kept)
        with torch.device("meta"):
            compressed, codec = compress_weight(weight), Int8Codec(300)
            assert torch.equal(decompress_weight(compressed), weight)
            assert codec.decode(codec.encode(data)) == data
        for got, want in zip(vars(compressed).values(), vars(expected).values(), strict=True):
            assert torch.equal(got, want)


def test_foreign_streams_are_refused():
    foreign = CompressedWeight(
        uniform(1, 900, -128, 127)[0], uniform(1, 16, -128, 127)[0], torch.tensor([8, 8, 500, 100, 1])
    )
    with pytest.raises(ValueError, match=r"was not compressed by anynpu for this N and K \(format c8\)"):
        decompress_weight(foreign)


@pytest.mark.parametrize(
    ("weight", "error", "match"),
    [
        (torch.zeros(2, 2), TypeError, "weight must be int8, got float32"),
        (torch.zeros(2, dtype=torch.int8), ValueError, r"weight must have shape \(n, k\), not empty, got \(2,\)"),
        (torch.zeros(0, 2, dtype=torch.int8), ValueError, r"weight must have shape \(n, k\), not empty, got \(0, 2\)"),
        ("weight", TypeError, "weight must be a tensor, got str"),
    ],
)
def test_invalid_weight(weight, error, match):
    with pytest.raises(error, match=f"weight_compress: {match}"):
        compress_weight(weight)


@pytest.mark.parametrize(
    ("stream", "index", "match"),
    [
        (8, 8, r"index must have ceil\(K / 256\) \* ceil\(N / 128\) \* 8 = 2 \* 1 \* 8 = 16 bytes, got 8"),
        (128 * 300 + 1, 16, r"stream must have at most 38400 bytes"),
    ],
)
def test_lengths_that_do_not_fit(stream, index, match):
    compressed = CompressedWeight(
        torch.zeros(stream, dtype=torch.int8), torch.zeros(index, dtype=torch.int8), torch.tensor([8, 8, 300, 100, 1])
    )
    with pytest.raises(ValueError, match=match):
        decompress_weight(compressed)


@pytest.mark.parametrize(
    ("info", "match"),
    [
        (torch.tensor([8, 8, 300, 100]), r"info must be int64 \[5\]"),
        (torch.tensor([8.0, 8, 300, 100, 1]), r"info must be int64 \[5\]"),
        (torch.tensor([8, 8, 300, 100, 2]), r"info must be \[8, 8, k, n, 1\]"),
        (torch.tensor([8, 8, -300, 100, 1]), r"info must be \[8, 8, k, n, 1\]"),
        (torch.tensor([8, 8, 1 << 40, 1 << 40, 1]), r"n \* k of info must be at most the index's 65536 values"),
    ],
)
def test_damaged_infos(info, match):
    whole = compress_weight(torch.ones(100, 300, dtype=torch.int8))
    with pytest.raises(ValueError, match=match):
        decompress_weight(CompressedWeight(whole.stream, whole.index, info))


@pytest.mark.parametrize("data", [b"", b"short", b"ANPUc8\x00\x01" + bytes(24), b"ANPUc8\x00\x02" + bytes(300)])
def test_codec_refuses_other_blobs(data):
    with pytest.raises(ValueError, match="anynpu.c8"):
        Int8Codec(8).decode(data)
