# SPDX-License-Identifier: Apache-2.0
"""The functions of torch_npu around the products of a mixture of experts: names and errors over the operators."""

from __future__ import annotations

import builtins

import case_table
import pytest
import torch
import torch_npu

import anynpu

# torch_npu function of each operator, and the names of its arguments where they differ from the operator's.
FUNCTIONS = {
    "moe_gating_topk_softmax": ("npu_moe_gating_top_k_softmax_v2", {}),
    "moe_gating_topk": ("npu_moe_gating_top_k", {}),
    "moe_init_routing": ("npu_moe_init_routing_v2", {}),
    "dequant_swiglu_quant": ("npu_dequant_swiglu_quant", {}),
    "swiglu": ("npu_swiglu", {"x": "self"}),
    "moe_finalize_routing": (
        "npu_moe_finalize_routing",
        {
            "expanded_rows": "expanded_permuted_rows",
            "row_idx": "expanded_src_to_dst_row",
            "expert_idx": "export_for_source_row",
        },
    ),
}


def rows(valid):
    return [
        pytest.param(operator, case, id=f"{operator}: {case.name}")
        for operator in FUNCTIONS
        for case in case_table.load(operator)
        if (case.error is None) == valid
    ]


def call(operator, case):
    function, renamed = FUNCTIONS[operator]
    arguments = {renamed.get(name, name): value for name, value in case.args.items()}
    if operator == "moe_finalize_routing":
        arguments.setdefault("export_for_source_row", None)
    return getattr(torch_npu, function)(**arguments)


@pytest.mark.parametrize("operator, case", rows(valid=True))
def test_equals_the_operator(operator, case):
    expected = getattr(anynpu, operator)(**case.args)
    if operator == "moe_gating_topk_softmax":
        expected = expected[0], expected[1], expected[3]
        if case.args.get("renorm", 0) == 0:
            options = {name: value for name, value in case.args.items() if name in ("x", "finished", "k")}
            y, experts, row_idx = torch_npu.npu_moe_gating_top_k_softmax(**options)
            torch.testing.assert_close((y, experts), expected[:2], rtol=0, atol=0, equal_nan=True)
            assert row_idx.flatten().sort().values.tolist() == list(range(row_idx.numel()))
    torch.testing.assert_close(call(operator, case), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("operator, case", rows(valid=False))
def test_errors_keep_both_shapes(operator, case):
    with pytest.raises(RuntimeError, match=case.error["match"]) as caught:  # what users of torch_npu catch
        call(operator, case)
    assert isinstance(caught.value, getattr(builtins, case.error["python"]))
    assert f"[ERROR] {FUNCTIONS[operator][0]}: call aclnn" in str(caught.value)


def test_arguments_that_only_other_chips_honour():
    x = torch.randn(2, 8).half()
    plain = torch_npu.npu_dequant_swiglu_quant(x, quant_mode=1)
    told = torch_npu.npu_dequant_swiglu_quant(x, quant_mode=1, dst_type=torch.int8, round_mode=0, activate_dim=1)
    torch.testing.assert_close(told, plain, rtol=0, atol=0)
    for arguments, text in (
        ({"dst_type": 292}, "dst_type 292 is a dtype that anynpu does not implement"),
        ({"dst_type": 3}, "dst_type must be int8, got 3"),
        ({"round_mode": 2}, "round_mode is for modes that anynpu does not implement, got 2"),
        ({"activate_dim": 0}, "activate_dim is for modes that anynpu does not implement, got 0"),
    ):
        with pytest.raises(NotImplementedError, match=text):
            torch_npu.npu_dequant_swiglu_quant(x, quant_mode=1, **arguments)
    with pytest.raises(RuntimeError, match=r"round_mode only support \[0, 1, 2, 3, 4\], but got 7"):
        torch_npu.npu_dequant_swiglu_quant(x, quant_mode=1, round_mode=7)


def test_x_dtype_of_init_routing():
    x, experts = torch.ones(2, 4, dtype=torch.int8), torch.zeros(2, 1, dtype=torch.int32)
    rows, _, _, _ = torch_npu.npu_moe_init_routing_v2(x, experts, expert_num=1, x_dtype=torch.int8)
    assert torch.equal(rows, x)
    with pytest.raises(NotImplementedError, match="x_dtype must be that of x, int8, got 5"):
        torch_npu.npu_moe_init_routing_v2(x, experts, expert_num=1, x_dtype=5)


def test_token_unpermute():
    rows = torch.tensor([[1.0], [2.0], [4.0]])
    index = torch.tensor([2, 0, 1, 7], dtype=torch.int32)
    probs = torch.tensor([[1.0, 0.5], [0.25, 9.0]])
    assert torch_npu.npu_moe_token_unpermute(rows, index, probs).flatten().tolist() == [4.5, 0.5]
    assert torch_npu.npu_moe_token_unpermute(rows, index[:3]).flatten().tolist() == [4.0, 1.0, 2.0]
    for arguments, text in (
        ((rows.flatten(), index), "The dims of input permuted_tokens should be 2 dimensional, but got 1-dimensional."),
        ((rows, index[None]), "The dims of input sorted_indices should be 1 dimensional, but got 2-dimensional."),
        ((rows, index, probs[0]), "The dims of input probs should be 2 dimensional, but got 1-dimensional."),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch_npu.npu_moe_token_unpermute(*arguments)
    with pytest.raises(NotImplementedError, match="padded_mode"):
        torch_npu.npu_moe_token_unpermute(rows, index, padded_mode=True)


def test_functions_are_captured_in_graphs():
    def layer(x, experts):
        rows, index, tokens, scale = torch_npu.npu_moe_init_routing_v2(
            x, experts, expert_num=4, active_expert_range=[0, 4], quant_mode=1, expert_tokens_num_type=1
        )
        return torch_npu.npu_dequant_swiglu_quant(rows.half(), quant_mode=1)[0], index, tokens, scale

    x, experts = torch.randn(5, 16), torch.randint(0, 4, (5, 2), dtype=torch.int32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, experts), layer(x, experts), rtol=0, atol=0)
