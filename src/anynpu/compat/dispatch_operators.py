# SPDX-License-Identifier: Apache-2.0
"""The published operators that take tokens to the ranks of their experts and bring the results back."""

from __future__ import annotations

import torch

import anynpu
from anynpu._check import require, require_dtype
from anynpu.compat.expert_ranks import Arrivals, Parcels, Ranks, is_readable, starts_of
from anynpu.compat.published import Dtype, published, require_absent

_FLOATS = (torch.float16, torch.bfloat16)
_ASSIST_INTEGERS = 128  # of each row, in what dispatch v2 tells combine v2


def _most_tokens(ranks: Ranks, tokens: int, global_bs: int) -> int:
    """Of any rank."""
    fits = global_bs >= 0 and global_bs % ranks.size == 0
    require(ranks.op, fits, f"global_bs must be a multiple of ep_world_size {ranks.size}, or 0, got {global_bs}")
    return global_bs // ranks.size or tokens


def _require_known_sizes(ranks: Ranks, tokens: list[int], global_bs: int) -> None:
    fits = max(tokens) * ranks.size <= global_bs if global_bs else all(count == tokens[0] for count in tokens)
    sentence = f"global_bs must be the most tokens of a rank times ep_world_size {ranks.size}"
    require(ranks.op, fits, f"{sentence}, or 0 where all have as many, got {global_bs} and {tokens} tokens")


def _require_matrix(op: str, name: str, tensor: torch.Tensor, dtypes: tuple, rows: int | None = None) -> None:
    require_dtype(op, name, tensor, dtypes)
    fits = tensor.dim() == 2 and rows in (None, tensor.shape[0])
    expected = "2 axes" if rows is None else f"2 axes and {rows} rows"
    require(op, fits, f"{name} must have {expected}, got shape {tuple(tensor.shape)}")


def _active(op: str, mask: torch.Tensor | None, expert_ids: torch.Tensor) -> torch.Tensor:
    """bool ``[N, K]``: the slots that take part."""
    if mask is None:
        return torch.ones_like(expert_ids, dtype=torch.bool)
    require_dtype(op, "x_active_mask", mask, (torch.bool,))
    shape = tuple(expert_ids.shape)
    got = tuple(mask.shape)
    require(op, got in (shape, shape[:1]), f"x_active_mask must have shape {shape[:1]} or {shape}, got {got}")
    return mask if mask.dim() == 2 else mask.unsqueeze(1).expand(shape)


def _received_counts(ranks: Ranks, counts: torch.Tensor, tokens: int, global_bs: int) -> torch.Tensor:
    """``[ranks, experts]``: the rows that each rank sends to each expert of this one. With them goes how many tokens
    it has, so that all ranks refuse what does not fit, not one while the others wait."""
    tokens_here = counts.new_full((1,), tokens)
    sent = torch.cat([part for own in counts.split(ranks.per_rank) for part in (own, tokens_here)])
    columns = ranks.per_rank[ranks.rank] + 1
    table = ranks.exchange(sent, [columns] * ranks.size, [experts + 1 for experts in ranks.per_rank])
    table = table.view(ranks.size, columns)
    _require_known_sizes(ranks, table[:, -1].tolist() if is_readable(table) else [tokens], global_bs)
    return table[:, :-1]


def _check_dispatch(
    op: str, x: torch.Tensor, expert_ids: torch.Tensor, scales: torch.Tensor | None, quant_mode: int, kind: int
) -> None:
    _require_matrix(op, "x", x, _FLOATS)
    _require_matrix(op, "expert_ids", expert_ids, (torch.int32,), x.shape[0])
    require(op, quant_mode in (0, 2), f"quant_mode must be 0 (none) or 2 (int8, a scale a token), got {quant_mode}")
    require(op, scales is None or quant_mode == 2, "scales are for quant_mode 2")
    require(op, kind in (0, 1), f"the expert_token_nums_type should be 0 or 1, got {kind}")


def _dispatch(
    ranks: Ranks,
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    *,
    scales: torch.Tensor | None,
    x_active_mask: torch.Tensor | None,
    expert_scales: torch.Tensor | None,
    quant_mode: int,
    global_bs: int,
    expert_token_nums_type: int,
    tp_world_size: int,
) -> tuple[torch.Tensor, ...]:
    """Results of ``npu_moe_distribute_dispatch``, by the names of its arguments."""
    op, tokens = ranks.op, x.shape[0]
    _check_dispatch(op, x, expert_ids, scales, quant_mode, expert_token_nums_type)
    most = _most_tokens(ranks, tokens, global_bs)

    active = _active(op, x_active_mask, expert_ids)
    known = ((expert_ids >= 0) & (expert_ids < ranks.experts) | ~active).all()
    torch._assert_async(known, f"{op}: expert_ids must be in [0, moe_expert_num - 1] = [0, {ranks.experts - 1}]")
    numbers, total = ranks.numbers(expert_ids), sum(ranks.per_rank)
    taking_part = torch.cat([active, active.any(1, keepdim=True).expand(-1, len(ranks.shared_numbers()))], dim=1)
    rows, index, counts, row_scales = anynpu.moe_init_routing(
        x, numbers.masked_fill(~taking_part, total), scale=ranks.of_numbers(scales), expert_num=total,
        expert_tokens_num_type=1, quant_mode=1 if quant_mode else -1,
    )  # fmt: skip

    table = _received_counts(ranks, counts, tokens, global_bs)
    chosen = expert_ids.shape[1]
    limits = ranks.most_rows(most, chosen)
    sent = Parcels.of(torch.stack([own.sum() for own in counts.split(ranks.per_rank)]), limits)
    came = Parcels.of(table.sum(1), [limits[ranks.rank]] * ranks.size)
    arrivals = Arrivals(table, came, ranks.room(most, chosen))

    def dispatched(rows: torch.Tensor) -> torch.Tensor:
        return arrivals.by_expert(ranks.exchange(sent.packed(rows), came.sizes, sent.sizes))

    expand_scales = x.new_empty(0, dtype=torch.float32)
    if expert_scales is not None:
        expand_scales = dispatched(_by_row(_weights(ranks, expert_scales, expert_ids), index))
    dynamic_scales = dispatched(row_scales) if quant_mode else x.new_zeros(arrivals.room, dtype=torch.float32)
    nums = table.sum(0)
    ends = arrivals.ends().int()
    if expert_scales is not None:  # as long as documented
        ends = torch.nn.functional.pad(ends, (0, 2 * most * ranks.size * chosen * (ranks.size // 8)))
    return (
        dispatched(rows),
        dynamic_scales,
        index.view_as(numbers)[:, :chosen].flatten(),
        nums if expert_token_nums_type else nums.cumsum(0),
        ends,
        table.sum().int().repeat(tp_world_size),
        expand_scales,
    )


def _weights(ranks: Ranks, expert_scales: torch.Tensor, expert_ids: torch.Tensor) -> torch.Tensor:
    """The weight of each slot; shared experts have 1."""
    require_dtype(ranks.op, "expert_scales", expert_scales, (torch.float32,))
    shapes = tuple(expert_scales.shape), tuple(expert_ids.shape)
    require(
        ranks.op,
        shapes[0] == shapes[1],
        f"expert_scales must have the shape {shapes[1]} of expert_ids, got {shapes[0]}",
    )
    return torch.nn.functional.pad(expert_scales, (0, len(ranks.shared_numbers())), value=1.0)


def _by_row(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Values of slots in the order of the rows that the slots went to."""
    rows = values.new_zeros(len(index) + 1)  # the last is for slots that went nowhere
    rows[torch.where(index >= 0, index, len(index)).long()] = values.flatten()
    return rows[:-1]


def _combine(
    ranks: Ranks,
    expand_x: torch.Tensor,
    expert_ids: torch.Tensor,
    index: torch.Tensor,
    ep_send_counts: torch.Tensor,
    expert_scales: torch.Tensor,
    shared_expert_x: torch.Tensor | None,
    global_bs: int,
) -> torch.Tensor:
    op = ranks.op
    _require_matrix(op, "expand_x", expand_x, _FLOATS)
    _require_matrix(op, "expert_ids", expert_ids, (torch.int32,))
    tokens, chosen = expert_ids.shape
    for name, tensor in (("expand_idx", index), ("ep_send_counts", ep_send_counts)):
        require_dtype(op, name, tensor, (torch.int32,))
    size = tuple(index.shape)
    require(op, size == (tokens * chosen,), f"expand_idx must have N * K = {tokens * chosen} elements, got {size}")
    most = _most_tokens(ranks, tokens, global_bs)
    own_experts = ranks.per_rank[ranks.rank]
    ends = ep_send_counts[: ranks.size * own_experts].long()
    table = (ends - torch.nn.functional.pad(ends, (1, -1))).view(own_experts, ranks.size).t()
    limits, room = ranks.most_rows(most, chosen), ranks.room(most, chosen)
    require(op, len(expand_x) == room, f"expand_x must have the {room} rows that dispatch gave, got {len(expand_x)}")
    back = Parcels.of(table.sum(1), [limits[ranks.rank]] * ranks.size)
    arrivals = Arrivals(table, back, room)

    slots = _with_shared(ranks, index.view(tokens, chosen))
    owners = ranks.owners(ranks.numbers(expert_ids))
    owners = owners.where(slots >= 0, 0)
    counts = table.new_zeros(ranks.size).index_add(0, owners.flatten(), (slots >= 0).flatten().to(table.dtype))
    own = Parcels.of(counts, limits)
    came = ranks.exchange(arrivals.by_rank(expand_x), own.sizes, back.sizes)
    rows = slots + (own.starts - starts_of(counts))[owners]
    rows = torch.where(slots >= 0, rows, -1).int().flatten()
    return anynpu.moe_finalize_routing(
        came, shared_expert_x, None, None, _weights(ranks, expert_scales, expert_ids), rows, drop_pad_mode=2
    )


def _with_shared(ranks: Ranks, index: torch.Tensor) -> torch.Tensor:
    """Where all slots of the tokens went: rows of shared experts come first, in the order of tokens."""
    there = (index >= 0).any(1)
    place = there.cumsum(0) - 1
    shared = [torch.where(there, place + n * there.sum(), -1) for n in range(len(ranks.shared_numbers()))]
    return torch.stack([*index.long().unbind(1), *shared], dim=1)


def _require_expert_parallel(tp_world_size: int, expert_shard_type: int) -> None:
    """Nothing but experts is spread over ranks."""
    require_absent(
        tp_world_size=tp_world_size if tp_world_size > 1 else None, expert_shard_type=expert_shard_type or None
    )


@published(
    "npu_moe_distribute_dispatch(Tensor x, Tensor expert_ids, str group_ep, int ep_world_size, int ep_rank_id, "
    "int moe_expert_num, *, Tensor? scales=None, Tensor? x_active_mask=None, Tensor? expert_scales=None, "
    "str group_tp='', int tp_world_size=0, int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, "
    "int shared_expert_rank_num=0, int quant_mode=0, int global_bs=0, int expert_token_nums_type=1) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "aclnnMoeDistributeDispatch",
)
def npu_moe_distribute_dispatch(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    expert_scales: torch.Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
) -> tuple[torch.Tensor, ...]:
    """Sends each token to the ranks of its experts.

    Returns:
        ``expand_x`` ``[A, H]``: the rows of this rank's experts, expert by expert, then zeros; their scales
        (quant_mode 2); ``expand_idx`` int32 ``[N * K]`` for combine; int64 counts of the experts, or running sums;
        ``ep_recv_counts`` int32, running sums over the experts and in each over the ranks; ``tp_recv_counts``; with
        ``expert_scales`` the weights of the rows.
    """
    _require_expert_parallel(tp_world_size, expert_shard_type)
    ranks = Ranks(
        "npu_moe_distribute_dispatch", group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    return _dispatch(
        ranks, x, expert_ids, scales=scales, x_active_mask=x_active_mask, expert_scales=expert_scales,
        quant_mode=quant_mode, global_bs=global_bs, expert_token_nums_type=expert_token_nums_type,
        tp_world_size=tp_world_size,
    )  # fmt: skip


@published(
    "npu_moe_distribute_dispatch_v2(Tensor x, Tensor expert_ids, str group_ep, int ep_world_size, int ep_rank_id, "
    "int moe_expert_num, *, Tensor? scales=None, Tensor? x_active_mask=None, Tensor? expert_scales=None, "
    "Tensor? elastic_info=None, Tensor? performance_info=None, str group_tp='', int tp_world_size=0, "
    "int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, int shared_expert_rank_num=0, "
    "int quant_mode=0, int global_bs=0, int expert_token_nums_type=1, str comm_alg='', int zero_expert_num=0, "
    "int copy_expert_num=0, int const_expert_num=0, int? y_dtype=None, int? x_dtype=None, int? scales_dtype=None) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "aclnnMoeDistributeDispatchV2",
)
def npu_moe_distribute_dispatch_v2(
    x: torch.Tensor,
    expert_ids: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    scales: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    expert_scales: torch.Tensor | None = None,
    elastic_info: torch.Tensor | None = None,
    performance_info: torch.Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    quant_mode: int = 0,
    global_bs: int = 0,
    expert_token_nums_type: int = 1,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
    y_dtype: Dtype | None = None,
    x_dtype: Dtype | None = None,
    scales_dtype: Dtype | None = None,
) -> tuple[torch.Tensor, ...]:
    """The same. The third result is longer, as documented. ``comm_alg`` has no effect."""
    require_absent(
        elastic_info=elastic_info, performance_info=performance_info, zero_expert_num=zero_expert_num or None,
        copy_expert_num=copy_expert_num or None, const_expert_num=const_expert_num or None, y_dtype=y_dtype,
        x_dtype=x_dtype, scales_dtype=scales_dtype,
    )  # fmt: skip
    _require_expert_parallel(tp_world_size, expert_shard_type)
    ranks = Ranks(
        "npu_moe_distribute_dispatch_v2", group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    rows, row_scales, index, *others = _dispatch(
        ranks, x, expert_ids, scales=scales, x_active_mask=x_active_mask, expert_scales=expert_scales,
        quant_mode=quant_mode, global_bs=global_bs, expert_token_nums_type=expert_token_nums_type,
        tp_world_size=tp_world_size,
    )  # fmt: skip
    more = max(len(rows) * _ASSIST_INTEGERS - len(index), 0)
    return rows, row_scales, torch.nn.functional.pad(index, (0, more)), *others


@published(
    "npu_moe_distribute_combine(Tensor expand_x, Tensor expert_ids, Tensor expand_idx, Tensor ep_send_counts, "
    "Tensor expert_scales, str group_ep, int ep_world_size, int ep_rank_id, int moe_expert_num, *, "
    "Tensor? tp_send_counts=None, Tensor? x_active_mask=None, Tensor? activation_scale=None, "
    "Tensor? weight_scale=None, Tensor? group_list=None, Tensor? expand_scales=None, str group_tp='', "
    "int tp_world_size=0, int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, "
    "int shared_expert_rank_num=0, int global_bs=0, int out_dtype=0, int comm_quant_mode=0, int group_list_type=0) "
    "-> Tensor",
    "aclnnMoeDistributeCombine",
)
def npu_moe_distribute_combine(
    expand_x: torch.Tensor,
    expert_ids: torch.Tensor,
    expand_idx: torch.Tensor,
    ep_send_counts: torch.Tensor,
    expert_scales: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    group_list: torch.Tensor | None = None,
    expand_scales: torch.Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    out_dtype: int = 0,
    comm_quant_mode: int = 0,
    group_list_type: int = 0,
) -> torch.Tensor:
    """``[N, H]``: brings the results of this rank's experts back and adds those of each token up by its weights.

    In float32, rounded once. What dispatch did not send adds nothing.
    """
    require_absent(
        activation_scale=activation_scale, weight_scale=weight_scale, group_list=group_list,
        out_dtype=out_dtype or None, comm_quant_mode=comm_quant_mode or None, group_list_type=group_list_type or None,
    )  # fmt: skip
    _require_expert_parallel(tp_world_size, expert_shard_type)
    ranks = Ranks(
        "npu_moe_distribute_combine", group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    return _combine(ranks, expand_x, expert_ids, expand_idx, ep_send_counts, expert_scales, None, global_bs)


@published(
    "npu_moe_distribute_combine_v2(Tensor expand_x, Tensor expert_ids, Tensor assist_info_for_combine, "
    "Tensor ep_send_counts, Tensor expert_scales, str group_ep, int ep_world_size, int ep_rank_id, "
    "int moe_expert_num, *, Tensor? tp_send_counts=None, Tensor? x_active_mask=None, Tensor? expand_scales=None, "
    "Tensor? shared_expert_x=None, Tensor? elastic_info=None, Tensor? ori_x=None, Tensor? const_expert_alpha_1=None, "
    "Tensor? const_expert_alpha_2=None, Tensor? const_expert_v=None, Tensor? performance_info=None, "
    "str group_tp='', int tp_world_size=0, int tp_rank_id=0, int expert_shard_type=0, int shared_expert_num=1, "
    "int shared_expert_rank_num=0, int global_bs=0, int comm_quant_mode=0, str comm_alg='', int zero_expert_num=0, "
    "int copy_expert_num=0, int const_expert_num=0) -> Tensor",
    "aclnnMoeDistributeCombineV2",
)
def npu_moe_distribute_combine_v2(
    expand_x: torch.Tensor,
    expert_ids: torch.Tensor,
    assist_info_for_combine: torch.Tensor,
    ep_send_counts: torch.Tensor,
    expert_scales: torch.Tensor,
    group_ep: str,
    ep_world_size: int,
    ep_rank_id: int,
    moe_expert_num: int,
    *,
    tp_send_counts: torch.Tensor | None = None,
    x_active_mask: torch.Tensor | None = None,
    expand_scales: torch.Tensor | None = None,
    shared_expert_x: torch.Tensor | None = None,
    elastic_info: torch.Tensor | None = None,
    ori_x: torch.Tensor | None = None,
    const_expert_alpha_1: torch.Tensor | None = None,
    const_expert_alpha_2: torch.Tensor | None = None,
    const_expert_v: torch.Tensor | None = None,
    performance_info: torch.Tensor | None = None,
    group_tp: str = "",
    tp_world_size: int = 0,
    tp_rank_id: int = 0,
    expert_shard_type: int = 0,
    shared_expert_num: int = 1,
    shared_expert_rank_num: int = 0,
    global_bs: int = 0,
    comm_quant_mode: int = 0,
    comm_alg: str = "",
    zero_expert_num: int = 0,
    copy_expert_num: int = 0,
    const_expert_num: int = 0,
) -> torch.Tensor:
    """The same, with ``shared_expert_x`` ``[N, H]``, the result of a shared expert on each rank, added."""
    require_absent(
        elastic_info=elastic_info, ori_x=ori_x, const_expert_alpha_1=const_expert_alpha_1,
        const_expert_alpha_2=const_expert_alpha_2, const_expert_v=const_expert_v, performance_info=performance_info,
        comm_quant_mode=comm_quant_mode or None, zero_expert_num=zero_expert_num or None,
        copy_expert_num=copy_expert_num or None, const_expert_num=const_expert_num or None,
    )  # fmt: skip
    _require_expert_parallel(tp_world_size, expert_shard_type)
    ranks = Ranks(
        "npu_moe_distribute_combine_v2", group_ep, ep_world_size, ep_rank_id, moe_expert_num, shared_expert_num,
        shared_expert_rank_num,
    )  # fmt: skip
    index = assist_info_for_combine[: expert_ids.numel()]
    if shared_expert_x is not None:
        shared_expert_x = shared_expert_x.reshape(-1, expand_x.shape[-1])
    return _combine(ranks, expand_x, expert_ids, index, ep_send_counts, expert_scales, shared_expert_x, global_bs)
