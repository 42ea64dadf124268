# SPDX-License-Identifier: Apache-2.0
"""What serving programs import of torch_npu beside its operators, and the operators of vllm-ascend's extension."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch_npu
from npu_tensors import reals


def test_a_group_with_options(tmp_path):
    from torch_npu._C._distributed_c10d import ProcessGroupHCCL

    options = ProcessGroupHCCL.Options()
    options._timeout = timedelta(seconds=5)
    options.hccl_config = {"group_name": "mine"}
    options.global_ranks_in_group, options.group_id = [0], "id"
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    group = ProcessGroupHCCL(store, 0, 1, options)
    x = torch.ones(2).npu()
    group.allreduce([x]).wait()
    assert x.tolist() == [1, 1] and group.size() == 1 and isinstance(group, torch.distributed.ProcessGroupGloo)


def test_names_that_are_there_and_names_that_are_not():
    import torch_npu._inductor
    from torch_npu.op_plugin.atb._atb_ops import _register_atb_extensions
    from torch_npu.profiler import dynamic_profile

    _register_atb_extensions()
    dynamic_profile.step()
    assert torch_npu._C._NPUTaskGroupHandle
    with pytest.raises(NotImplementedError, match=r"torch.npu.memory.NPUPluggableAllocator is not implemented"):
        torch.npu.memory.NPUPluggableAllocator("lib.so", "malloc", "free")
    with pytest.raises(ImportError, match="torch_npu._C._distributed_c10d.Store is not implemented"):
        from torch_npu._C._distributed_c10d import Store  # noqa: F401


def test_a_weak_reference_shares_memory():
    x = torch.zeros(2).npu()
    torch_npu._C._weak_ref_tensor(x).add_(1)
    assert x.tolist() == [1, 1]


def test_free_memory_is_what_the_process_has_not_taken():
    free, total = torch.npu.mem_get_info()
    taken = torch.ones(64 << 20, dtype=torch.uint8)
    less, same = torch.npu.mem_get_info()
    assert 0 < less <= free - (48 << 20) and same == total >= free and taken[-1] == 1


def test_gating_of_vllm_ascend():
    logits, bias = reals(5, 8), reals(8, seed=1)
    named = dict(k=2, k_group=1, group_count=1, group_select_mode=1, out_flag=False, eps=1e-20)
    gate = torch.ops._C_ascend.moe_gating_top_k
    weights, experts, _ = gate(logits, **named, renorm=1, norm_type=0, routed_scaling_factor=2.0, bias_opt=None)
    best = logits.double().softmax(-1).topk(2)
    torch.testing.assert_close(weights.double(), 2 * best.values / best.values.sum(-1, keepdim=True), rtol=1e-6, atol=0)
    assert torch.equal(experts.long(), best.indices)
    for options in ({"renorm": 0, "norm_type": 0}, {"renorm": 1, "norm_type": 1}, {"renorm": 0, "norm_type": 1}):
        got = gate(logits, **named, **options, routed_scaling_factor=2.5, bias_opt=bias)
        published = torch_npu.npu_moe_gating_top_k(
            logits, 2, bias=bias, group_select_mode=1, norm_type=options["norm_type"], routed_scaling_factor=2.5
        )
        assert all(map(torch.equal, got, published))
    with pytest.raises(NotImplementedError, match="renorm 2 is not documented"):
        gate(logits, **named, renorm=2, norm_type=0, routed_scaling_factor=1.0)


def test_routing_and_experts_of_vllm_ascend():
    x, experts = reals(3, 64, dtype=torch.bfloat16), torch.tensor([[1, 0], [3, 1], [0, 3]], dtype=torch.int32)
    options = dict(
        active_num=6, expert_num=4, expert_tokens_num_type=1, expert_tokens_num_flag=True, active_expert_range=[0, 4],
        quant_mode=1,
    )  # fmt: skip
    custom = torch.ops._C_ascend.npu_moe_init_routing_custom
    routed = custom(x, experts, scale=None, **options)
    published = torch_npu.npu_moe_init_routing_v2(x, experts, **options)
    assert all(map(torch.equal, routed, published))
    static = {**options, "quant_mode": 0, "scale": torch.tensor([10.0]), "offset": torch.tensor([1.0])}
    assert all(map(torch.equal, custom(x, experts, **static), torch_npu.npu_moe_init_routing_v2(x, experts, **static)))

    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-128, 128, (4, 64, 128), dtype=torch.int8, generator=generator)
    scale = torch.rand(4, 128, generator=generator) / 1000
    rows, _, counts, row_scale = routed
    named = dict(x=rows, weight=weight, weight_scale=scale, x_scale=row_scale, group_list=counts.cumsum(0), bias=None)
    fused = torch.ops._C_ascend.grouped_matmul_swiglu_quant_weight_nz
    assert all(map(torch.equal, fused(**named, swiglu_limit=0.0), torch_npu.npu_grouped_matmul_swiglu_quant(**named)))
    with pytest.raises(NotImplementedError, match="swiglu_limit is for modes that anynpu does not implement, got 7"):
        fused(**named, swiglu_limit=7.0)


def test_shared_experts_of_vllm_ascend():
    sums = torch.randint(-3000, 3000, (5, 64), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    scales = {"weight_scale": reals(64).abs() / 100, "activation_scale": reals(5, seed=1).abs()}
    named = {**scales, "bias": None, "quant_scale": None, "quant_offset": None, "activate_left": True, "quant_mode": 1}
    fused, published = torch.ops._C_ascend.npu_dequant_swiglu_quant, torch_npu.npu_dequant_swiglu_quant
    plain = published(sums, **named)
    assert all(map(torch.equal, fused(x=sums, **named), plain))
    one_group = {"group_index": torch.tensor([5]), "swiglu_mode": 1, "clamp_limit": 0.0}
    assert all(map(torch.equal, fused(x=sums, **named, **one_group), plain))

    codes, scale = fused(x=sums, **named, group_index=None, swiglu_mode=1, clamp_limit=2.0)
    gate, up = (sums * scales["weight_scale"] * scales["activation_scale"][:, None]).double().chunk(2, -1)
    assert (gate > 2).any() and (up.abs() > 2).any()
    y = torch.nn.functional.silu(gate.clamp(max=2)) * up.clamp(-2, 2)
    torch.testing.assert_close(scale.double(), y.abs().amax(-1) / 127, rtol=1e-5, atol=0)
    assert ((codes.double() * scale.double()[:, None] - y).abs() <= 0.501 * scale.double()[:, None]).all()
    with pytest.raises(NotImplementedError, match="swiglu_mode must be 0 or 1, got 2"):
        fused(x=sums, **named, swiglu_mode=2)


def test_int8_cache_of_vllm_ascend():
    """Its type C8: keys and values of channels with a scale each, in FRACTAL_NZ blocks with heads of their own."""
    heads, kv_heads, width, block, lengths = 4, 2, 64, 32, [5, 40]
    places = torch.cat([3 * block + torch.arange(5), block + torch.arange(32), 5 * block + torch.arange(8)]).int()
    rows, caches = {}, {}
    for seed, name in enumerate(("key", "value")):
        floats = reals(45, kv_heads, width, seed=seed)
        scale = (floats.abs().amax(0) / 127).bfloat16()
        rows[name] = (floats / scale.float()).round().clamp(-128, 127).to(torch.int8), scale
        caches[name] = torch.zeros(6, block, kv_heads, width, dtype=torch.int8, device="npu").view(
            6, kv_heads, 2, block, 32
        )
    torch_npu.npu_scatter_pa_kv_cache(
        key=rows["key"][0], value=rows["value"][0], key_cache=caches["key"], value_cache=caches["value"],
        slot_mapping=places,
    )  # fmt: skip
    query = reals(2, heads, width, seed=2).bfloat16()
    scales = {f"{name}_antiquant_scale": scale.view(kv_heads, 1, width) for name, (_, scale) in rows.items()}
    got, _ = torch_npu.npu_fused_infer_attention_score(
        query.unsqueeze(2), caches["key"], caches["value"], **scales, input_layout="BNSD", num_heads=heads,
        block_table=torch.tensor([[3, 0], [1, 5]], dtype=torch.int32).npu(), actual_seq_lengths_kv=lengths,
        num_key_value_heads=kv_heads, scale=width**-0.5, block_size=block, antiquant_mode=0, key_antiquant_mode=0,
        value_antiquant_mode=0, inner_precise=1, sparse_mode=0,
    )  # fmt: skip
    parts = [
        (codes.double() * scale.double()).repeat_interleave(heads // kv_heads, 1).split(lengths)
        for codes, scale in rows.values()
    ]
    for row, key, value, result in zip(query.double(), *parts, got, strict=True):
        share = (torch.einsum("nd,snd->ns", row, key) * width**-0.5).softmax(-1)
        expected = torch.einsum("ns,snd->nd", share, value)
        # Rounded to bfloat16 once; scores of 64 float32 products that sum up to some 10 are off by 4e-5 at most.
        torch.testing.assert_close(result[:, 0].double(), expected, rtol=2.0**-8, atol=1e-4 * float(value.abs().max()))
