# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import struct

import case_table
import torch
from hypothesis import given
from hypothesis import strategies as st

import anynpu


@case_table.valid_calls("trans_quant_param")
def test_equals_reference(case, each_thread_count):
    expected = anynpu.reference.trans_quant_param(**case.args)
    before = case.args["scale"].clone()
    for param in each_thread_count(lambda: anynpu.trans_quant_param(**case.args)):
        assert torch.equal(param, expected)
    assert torch.equal(case.args["scale"], before)


def test_words_written_by_hand():
    scale = torch.tensor([1.0, 1.0, -2.5])
    offset = torch.tensor([0.0, -1.0, 255.0])
    expected = [0x4000_3F80_0000, 0x7FE0_3F80_0000, 0x5FE0_C020_0000]
    assert anynpu.trans_quant_param(scale, offset).tolist() == expected


@given(st.integers(0, 2**32 - 1), st.floats(width=32), st.sampled_from([0, 1]))
def test_decoder_reads_every_word(bits, offset, round_mode):
    (scale,) = struct.unpack("f", struct.pack("I", bits))
    tensors = torch.tensor([bits]).to(torch.uint32).view(torch.float32), torch.tensor([offset])
    word = anynpu.trans_quant_param(*tensors, round_mode)
    assert torch.equal(word, anynpu.reference.trans_quant_param(*tensors, round_mode))
    assert word.item() & ~0x7FE0_FFFF_E000 == 0
    decoded_scale, decoded_offset = (tensor.item() for tensor in anynpu.reference.decode_quant_param(word))
    if math.isnan(scale):
        assert math.isnan(decoded_scale)
    elif round_mode == 0:
        assert struct.pack("f", decoded_scale) == struct.pack("I", bits & 0xFFFFE000)
    elif math.isfinite(decoded_scale) and math.isfinite(scale):
        unit = max(2.0**-10 * 2.0 ** math.floor(math.log2(abs(scale))) if scale else 0.0, 2.0**-136)
        assert abs(decoded_scale - scale) <= unit / 2
    assert decoded_offset == (0 if math.isnan(offset) else round(min(max(offset, -256), 255)))
