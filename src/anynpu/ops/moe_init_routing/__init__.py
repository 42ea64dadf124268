# SPDX-License-Identifier: Apache-2.0
"""Sorts the tokens of a mixture of experts by expert."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import require_type
from anynpu._register import Operator, register
from anynpu.ops.moe_init_routing import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


def moe_init_routing(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] | None = None,
    row_idx_type: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Copies, or quantises, the rows of x in the order of the experts that they were routed to.

    Slot ``f = n * K + j`` is choice j of token n. The slots are sorted, stably, by expert; those whose expert is
    outside ``active_expert_range`` come last (above the range by expert, then below it).

    Args:
        x: float32, float16 or bfloat16 ``[N, H]``; int8 too with quant_mode -1.
        expert_idx: int32 ``[N, K]``.
        scale: float32. quant_mode -1: ``[N]``, it travels with the rows; 0: ``[1]``; 1: ``[1, H]`` or, a row for each
            expert of the range, ``[E, H]``.
        offset: float32 ``[1]``, with quant_mode 0 only.
        active_num: at most so many rows are returned; 0 or less: all N * K.
        expert_capacity: rows of each expert with drop_pad_mode 1.
        expert_num: number of experts.
        drop_pad_mode: 0: rows follow each other. 1: each expert has ``expert_capacity`` rows, what is more is dropped,
            what is missing is zero.
        expert_tokens_num_type: 0: running sums of the counts, 1: counts, 2: pairs (expert, count) of the experts with
            tokens. Counts never depend on active_num or expert_capacity; with drop_pad_mode 1 they are always counts.
        quant_mode: -1: none; 0: ``rint(x * scale + offset)``; 1: as :func:`anynpu.dynamic_quant` of ``x * scale``.
        active_expert_range: first expert and the one after the last; None or empty: all.
        row_idx_type: 0: for each slot the row it went to, -1 for none; 1: for each row the slot it came from, for all
            N * K slots in their order.

    Returns:
        ``expanded_x`` ``[R, H]`` or ``[E, C, H]``, zero where there is no token; ``expanded_row_idx`` int32
        ``[N * K]``; ``expert_tokens`` int64 ``[E]`` or ``[expert_num, 2]``; ``expanded_scale`` float32, a value for
        each row of expanded_x, 0 where there is none.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes or modes.
        NotImplementedError: a quantisation to float8, hifloat8, float4 or int4.

    Source: torch_npu.npu_moe_init_routing_v2.

    >>> import torch, anynpu
    >>> x, experts = torch.tensor([[1.0], [2.0]]), torch.tensor([[2, 0], [0, 1]], dtype=torch.int32)
    >>> rows, index, tokens, _ = anynpu.moe_init_routing(x, experts, expert_num=3, expert_tokens_num_type=1)
    >>> rows.flatten().tolist(), index.tolist(), tokens.tolist()
    ([1.0, 2.0, 2.0, 1.0], [3, 0, 1, 2], [2, 1, 1])
    """
    experts = active_expert_range
    if experts is not None:
        require_type(spec.OP, "active_expert_range", experts, Sequence, "a sequence of ints")
        experts = list(experts)
    return _op(
        x, expert_idx, scale, offset, active_num, expert_capacity, expert_num, drop_pad_mode,
        expert_tokens_num_type, quant_mode, experts, row_idx_type,
    )  # fmt: skip
