# SPDX-License-Identifier: Apache-2.0
"""Attention of torch_npu with a result in int8."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import HEADS, KV_HEADS, SCALE, D, laid_out, operands

FUNCTIONS = {
    "npu_fused_infer_attention_score": ("num_heads", "scale"),
    "npu_fused_infer_attention_score_v2": ("num_query_heads", "softmax_scale"),
    "npu_prompt_flash_attention": ("num_heads", "scale_value"),
    "npu_incre_flash_attention": ("num_heads", "scale_value"),
}


def call(name, tensors, layout, scale=None, offset=None):
    heads, softmax_scale = FUNCTIONS[name]
    factors = ("quant_scale_out", "quant_offset_out") if name.endswith("v2") else ("quant_scale2", "quant_offset2")
    result = getattr(torch_npu, name)(
        *[laid_out(x, layout) for x in tensors], input_layout=layout, num_key_value_heads=KV_HEADS,
        **{heads: HEADS, softmax_scale: SCALE}, **dict(zip(factors, (scale, offset), strict=True)),
    )  # fmt: skip
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("layout, axes", [("BSH", (1, 1, HEADS * D)), ("BSND", (HEADS, D)), ("BNSD", (1, HEADS, 1, D))])
@pytest.mark.parametrize("with_offset", [True, False])
def test_results_in_int8(name, layout, axes, with_offset):
    """Scales are powers of two: the product is exact."""
    tensors = operands(2, 1 if "incre" in name else 5, 9)
    floats = call(name, tensors, layout)
    for shape in ((1,), axes):
        scale = 2.0 ** torch.randint(4, 9, shape, generator=torch.Generator().manual_seed(1))
        offset = (
            torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(2)).float() if with_offset else None
        )
        placed = [
            x if x is None or layout != "BSND" or x.numel() == 1 else x.reshape(1, 1, HEADS, D) for x in (scale, offset)
        ]
        expected = (floats * placed[0] + (placed[1] if with_offset else 0)).round().clamp(-128, 127)
        for dtype in (torch.float32, torch.bfloat16):
            factors = [None if x is None else x.to(dtype).npu() for x in (scale, offset)]
            result = call(name, tensors, layout, *factors)
            assert result.dtype == torch.int8 and torch.equal(result.float(), expected)


def test_results_in_int8_are_captured_in_graphs():
    tensors, scale = operands(2, 5, 9), torch.full((1,), 64.0).npu()

    def step(*tensors):
        return call("npu_fused_infer_attention_score", tensors[:3], "BNSD", tensors[3])

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors, scale), step(*tensors, scale))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_refusals_of_factors(name):
    tensors = operands(2, 1, 9)
    scale, offset = (
        ("quant_scale_out", "quant_offset_out") if name.endswith("v2") else ("quant_scale2", "quant_offset2")
    )
    with pytest.raises(ValueError, match=f"{offset} needs {scale}"):
        call(name, tensors, "BNSD", None, torch.ones(1))
    with pytest.raises(ValueError, match=rf"{scale} must have 1 or {HEADS * D} elements, got shape \(5,\)"):
        call(name, tensors, "BNSD", torch.ones(5))
    with pytest.raises(TypeError, match=f"{scale} must be float32 or float16 or bfloat16, got int32"):
        call(name, tensors, "BNSD", torch.ones(1, dtype=torch.int32))
