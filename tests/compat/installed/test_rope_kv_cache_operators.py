# SPDX-License-Identifier: Apache-2.0
"""The functions of torch_npu that write an INT8 KV cache: the case table under the published names."""

from __future__ import annotations

import builtins

import case_table
import pytest
import torch
import torch_npu

import anynpu

CASES = case_table.load("rope_kv_cache")
CACHES = ("k_cache", "v_cache")
DEQUANT = ("weight_scale", "activation_scale", "bias")


def rows(valid):
    return [pytest.param(case, id=case.name) for case in CASES if (case.error is None) == valid]


def function_for(case):
    integers = case.args["x"].dtype == torch.int32 or any(name in case.args for name in DEQUANT)
    return torch_npu.npu_dequant_rope_quant_kvcache if integers else torch_npu.npu_rope_quant_kvcache


@pytest.mark.parametrize("case", rows(valid=True))
def test_valid_call_is_that_of_anynpu(case):
    ours, theirs = [{**case.args, **{name: case.args[name].clone() for name in CACHES}} for _ in "ab"]
    expected = anynpu.rope_kv_cache(**ours)
    results = function_for(case)(**theirs)
    assert len(results) == 5 and results[3] is theirs["k_cache"] and results[4] is theirs["v_cache"]
    for result, right in zip(results, expected, strict=True):
        assert torch.equal(result, right)


@pytest.mark.parametrize("case", rows(valid=False))
def test_invalid_call_raises_and_writes_nothing(case):
    before = {name: case.args[name].clone() for name in CACHES}
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]) as caught:
        function_for(case)(**case.args)
    assert f"error code is {case.error.get('status', 161002)}" in str(caught.value)
    assert "call aclnnDequantRopeQuantKvcache failed" in str(caught.value)
    for name in CACHES:
        assert torch.equal(case.args[name], before[name])


def test_missing_tensor_is_a_null_pointer():
    case = next(case for case in CASES if case.name == "float16, contiguous")
    with pytest.raises(TypeError, match="cos must be a tensor, got NoneType(.|\n)*error code is 161001"):
        torch_npu.npu_rope_quant_kvcache(**{**case.args, "cos": None})


def test_rope_variant_refuses_int32():
    case = next(case for case in CASES if case.name == "int32, no bias")
    args = {name: value for name, value in case.args.items() if name != "weight_scale"}
    with pytest.raises(TypeError, match="x must be float16 or bfloat16, got int32(.|\n)*error code is 161002"):
        torch_npu.npu_rope_quant_kvcache(**args)


def test_captured_graph_mutates_the_caches():
    case = next(case for case in CASES if case.name == "int32, activation_scale")
    ours, theirs = [{**case.args, **{name: case.args[name].clone() for name in CACHES}} for _ in "ab"]
    expected = torch_npu.npu_dequant_rope_quant_kvcache(**ours)
    step = torch.compile(
        lambda args: torch_npu.npu_dequant_rope_quant_kvcache(**args)[0], fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(step(theirs), expected[0])
    for name in CACHES:
        assert torch.equal(theirs[name], ours[name])
