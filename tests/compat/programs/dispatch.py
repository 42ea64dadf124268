# SPDX-License-Identifier: Apache-2.0
"""Dispatch and combine, beside loops over the tokens of all ranks, which every rank makes from their seeds."""

import itertools
import math

import torch
import torch.distributed as dist
import torch_npu

dist.init_process_group("hccl")
RANK, RANKS = dist.get_rank(), dist.get_world_size()
GROUP = dist.new_group(range(RANKS))._get_backend(torch.device("npu")).get_hccl_comm_name(RANK)
HIDDEN, CHOSEN, EXPERTS = 32, 3, 12  # a multiple of 1, 2 and 3 ranks


def batch(rank, tokens, experts, dtype=torch.bfloat16):
    """Tokens, their experts (none twice) and weights."""
    generator = torch.Generator().manual_seed(100 * rank + tokens)
    x = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    ids = torch.rand(tokens, experts, generator=generator).argsort(1)[:, :CHOSEN].int()
    return x, ids, torch.rand(tokens, CHOSEN, generator=generator)


def codes_of(row, smooth=None):
    row = row.float() if smooth is None else row.float() * smooth
    scale = row.abs().max() / 127
    return torch.round(row / scale).to(torch.int8), scale


def sent_to(rank, tokens, experts, masks, copies=0):
    """(expert of this rank, rank it came from, token, choice) of all rows of ``rank``, in the documented order."""
    share = experts // (RANKS - copies)
    rows = []
    for source, (count, mask) in enumerate(zip(tokens, masks, strict=True)):
        _, ids, _ = batch(source, count, experts)
        for token, choice in itertools.product(range(count), range(CHOSEN)):
            owner, expert = divmod(int(ids[token, choice]), share)
            if mask[token][choice] and owner + copies == rank:
                rows.append((expert, source, token, choice))
        if rank < copies and source % copies == rank:
            rows += [(0, source, token, CHOSEN) for token in range(count) if any(mask[token])]
    return sorted(rows, key=lambda row: row[:2])  # stable: in the order of tokens


def check(
    version, tokens, experts=EXPERTS, quant_mode=0, mask=None, smooth=None, copies=0, run=None, dtype=torch.bfloat16
):
    everything = [[[True] * CHOSEN] * count for count in tokens]
    masks = everything if mask is None else [mask(rank, count).tolist() for rank, count in enumerate(tokens)]
    x, ids, weights = batch(RANK, tokens[RANK], experts, dtype)
    global_bs = 0 if len(set(tokens)) == 1 else max(tokens) * RANKS
    common = {
        "group_ep": GROUP, "ep_world_size": RANKS, "ep_rank_id": RANK, "moe_expert_num": experts,
        "global_bs": global_bs, "shared_expert_rank_num": copies, "group_tp": GROUP, "tp_world_size": 1,
    }  # fmt: skip
    own_mask = None if mask is None else mask(RANK, tokens[RANK]).npu()
    if own_mask is not None and own_mask.all(1).equal(own_mask.any(1)):
        own_mask = own_mask[:, 0].contiguous()
    arguments = [tensor.npu() for tensor in (x, ids, weights)]

    def both(x, ids, weights):
        dispatched = getattr(torch_npu, "npu_moe_distribute_dispatch" + version)(
            x, ids, scales=smooth, x_active_mask=own_mask, quant_mode=quant_mode, expert_scales=weights, **common
        )
        rows, scales, index, _, counts, tp_counts, _ = dispatched
        results = rows.to(dtype) * 2 if quant_mode == 0 else (rows * scales[:, None]).to(dtype)
        name = "assist_info_for_combine" if version else "expand_idx"
        y = getattr(torch_npu, "npu_moe_distribute_combine" + version)(
            results, ids, **{name: index}, ep_send_counts=counts, expert_scales=weights, tp_send_counts=tp_counts,
            x_active_mask=own_mask, **common,
        )  # fmt: skip
        return *dispatched, results, y

    rows, scales, index, nums, counts, tp_counts, row_weights, results, y = (run or (lambda f, *a: f(*a)))(
        both, *arguments
    )
    expected = sent_to(RANK, tokens, experts, masks, copies)
    share = 1 if RANK < copies else experts // (RANKS - copies)
    most = max(tokens)
    room = most * math.ceil(RANKS / copies) if RANK < copies else most * RANKS * min(share, CHOSEN)
    assert rows.shape == (room, HIDDEN) and scales.shape == row_weights.shape == (room,)
    assert rows.dtype == (torch.int8 if quant_mode else dtype) and scales.dtype == row_weights.dtype == torch.float32
    assert index.shape == (max(ids.numel(), 128 * room) if version else ids.numel(),) and index.dtype == torch.int32
    assert not rows[len(expected) :].any() and not scales[len(expected) :].any()
    for row, (_, source, token, choice) in enumerate(expected):
        there = batch(source, tokens[source], experts, dtype)
        if quant_mode:
            number = (
                len(smooth) - experts + int(there[1][token, choice]) if smooth is not None and choice < CHOSEN else 0
            )
            codes, scale = codes_of(there[0][token], None if smooth is None else smooth[number])
            assert rows[row].equal(codes) and scales[row] == scale
        else:
            assert rows[row].equal(there[0][token])
        assert row_weights[row] == (1 if choice == CHOSEN else there[2][token, choice])
    per_expert = [sum(row[0] == expert for row in expected) for expert in range(share)]
    assert nums.tolist() == per_expert and nums.dtype == torch.int64
    runs = [sum(row[:2] == (e, r) for row in expected) for e in range(share) for r in range(RANKS)]
    assert counts[: len(runs)].tolist() == list(itertools.accumulate(runs)) and counts.dtype == torch.int32
    assert tp_counts.tolist() == [len(expected)]

    # Each expert doubles (or passes on) its tokens, so the weights of a token add up.
    factors = (weights * torch.tensor(masks[RANK]).reshape(-1, CHOSEN)).double().sum(1, keepdim=True)
    factors += torch.tensor([float(any(row)) for row in masks[RANK]]).unsqueeze(1) if copies else 0
    if quant_mode == 0:
        exact = 2 * x.double() * factors
        # Rows are exact; the sum has 4 float32 roundings, then one of dtype.
        bound = exact.abs() * (torch.finfo(dtype).eps / 2 + 8 * torch.finfo(torch.float32).eps)
        assert y.dtype == dtype and ((y.double() - exact).abs() <= bound).all()
    elif smooth is None:
        codes, scale = torch_npu.npu_dynamic_quant(x)
        exact = (codes * scale[:, None]).to(dtype).double() * factors
        bound = exact.abs() * (torch.finfo(dtype).eps / 2 + 8 * torch.finfo(torch.float32).eps)
        assert ((y.double() - exact).abs() <= bound).all()


def prefix(rank, tokens):
    """The documented mask: the first tokens are active."""
    return (torch.arange(tokens) < tokens - rank - 1).unsqueeze(1).expand(tokens, CHOSEN)


def scattered(rank, tokens):
    return torch.rand(tokens, CHOSEN, generator=torch.Generator().manual_seed(rank)) < 0.5


def compiled(function, *arguments):
    return torch.compile(function, backend="npu", fullgraph=True)(*arguments)


def replayed(function, *arguments):
    """The graph is captured with other tokens and weights."""
    x, ids, weights = [tensor.clone() for tensor in arguments]
    x.zero_(), ids.copy_(ids.flip(0)), weights.zero_()
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        results = function(x, ids, weights)
    for place, value in zip((x, ids, weights), arguments, strict=True):
        place.copy_(value)
    graph.replay()
    graph.replay()
    return results


def refused(text, error=RuntimeError, **changes):
    x, ids, _ = batch(0, 4, EXPERTS)
    arguments = {"x": x, "expert_ids": ids, "group_ep": GROUP, "ep_world_size": RANKS, "ep_rank_id": RANK}
    try:
        torch_npu.npu_moe_distribute_dispatch_v2(**arguments | {"moe_expert_num": EXPERTS} | changes)
    except error as caught:
        assert text in str(caught), caught
    else:
        raise AssertionError(text)


even, uneven = [5] * RANKS, [7, 2, 0][:RANKS]
for version in ("", "_v2"):
    check(version, even)
    check(version, uneven)
    check(version, uneven, quant_mode=2)
check("_v2", [1] * RANKS, experts=6, dtype=torch.float16)
check("_v2", [0] * RANKS)
check("", even, mask=prefix)
check("_v2", even, mask=scattered, quant_mode=2)
check("_v2", even, quant_mode=2, smooth=torch.rand(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(9)))
if RANKS > 1:
    check("_v2", uneven, copies=1)
    shared = torch.rand(EXPERTS + 1, HIDDEN, generator=torch.Generator().manual_seed(9))
    check("", even, mask=scattered, copies=1, quant_mode=2, smooth=shared)
for tokens in (even, uneven):
    check("_v2", tokens, quant_mode=2, run=replayed)
    check("", tokens, mask=scattered, run=replayed)
if RANKS == 2:  # it takes long
    check("_v2", uneven, quant_mode=2, mask=scattered, run=compiled)

x, ids, weights = batch(RANK, 4, EXPERTS)
rows, _, index, _, counts, _, _ = torch_npu.npu_moe_distribute_dispatch_v2(x, ids, GROUP, RANKS, RANK, EXPERTS)
added = torch.ones(4, 1, HIDDEN, dtype=torch.bfloat16)
y = torch_npu.npu_moe_distribute_combine_v2(
    rows, ids, index, counts, torch.zeros(4, CHOSEN), GROUP, RANKS, RANK, EXPERTS, shared_expert_x=added
)
assert y.equal(added[:, 0])
sums = torch_npu.npu_moe_distribute_dispatch(x, ids, GROUP, RANKS, RANK, EXPERTS, expert_token_nums_type=0)[3]
assert sums.equal(torch_npu.npu_moe_distribute_dispatch(x, ids, GROUP, RANKS, RANK, EXPERTS)[3].cumsum(0))

refused("quant_mode must be 0 (none) or 2 (int8, a scale a token), got 3", quant_mode=3)
refused("scales are for quant_mode 2", scales=torch.ones(4, HIDDEN))
refused("the expert_token_nums_type should be 0 or 1, got 2", expert_token_nums_type=2)
refused("group_ep must be what get_hccl_comm_name says of a group, got 'nobody'", group_ep="nobody")
refused(f"ep_world_size must be that of group_ep, {RANKS}, got 9", ep_world_size=9)
refused(f"ep_rank_id must be that of group_ep, {RANK}, got 8", ep_rank_id=8)
refused(f"moe_expert_num must be a multiple of the {RANKS} ranks, got 0", moe_expert_num=0)
refused("global_bs must be the most tokens of a rank", global_bs=RANKS)
refused("tp_world_size is for modes that anynpu does not implement, got 2", NotImplementedError, tp_world_size=2)
refused("zero_expert_num is for modes", NotImplementedError, zero_expert_num=1)
refused("x must be float16 or bfloat16, got float32", TypeError, x=torch.ones(4, HIDDEN))
refused("x_active_mask must have shape (4,) or (4, 3), got (3,)", x_active_mask=torch.ones(3, dtype=torch.bool))
refused("expert_ids must be in [0, moe_expert_num - 1] = [0, 11]", expert_ids=torch.full((4, 3), 12).int())
if RANKS > 1:
    own = torch.ones(2 + RANK, HIDDEN, dtype=torch.bfloat16), torch.zeros(2 + RANK, 1, dtype=torch.int32)
    refused(
        f"or 0 where all have as many, got 0 and {[2 + rank for rank in range(RANKS)]} tokens",
        x=own[0],
        expert_ids=own[1],
    )
dist.destroy_process_group()
