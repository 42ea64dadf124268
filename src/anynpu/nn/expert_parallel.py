# SPDX-License-Identifier: Apache-2.0
"""One mixture of experts across the processes of a ``torch.distributed`` group, each with its own tokens."""

from __future__ import annotations

import torch
import torch.distributed as dist

from anynpu._check import require, require_last_axis
from anynpu.nn.expert_gradients import without_gradient
from anynpu.nn.quant_moe import QuantMoE, routed_sum
from anynpu.ops.dynamic_quant import dynamic_quant
from anynpu.ops.moe_finalize_routing import moe_finalize_routing
from anynpu.ops.moe_init_routing import moe_init_routing

DISPATCHES = ("all_gather", "all_to_all")
if dist.is_available():  # some builds of torch lack it
    # The new names of the old functions, which warn.
    _all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    _reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class ExpertParallelMoE(torch.nn.Module):
    """A :class:`anynpu.nn.QuantMoE` of which each rank keeps a part of the experts, and the whole rest.

    Every rank calls it with its own tokens, as many as it has, also none.

    - ``"all_gather"``: ranks exchange all int8 tokens, scales and routing; each adds up what its experts give to all
      tokens, with the shared expert's results of its own tokens, and a reduce-scatter sums that over the ranks.
    - ``"all_to_all"``: each row goes to the rank of its expert and comes back.

    Args:
        moe: the whole layer; the same on every rank.
        group: the process group, None: the default one. Its timeout bounds how long a rank waits for one that died.
        dispatch: how tokens reach their experts.

    Raises:
        ValueError: another dispatch, or more ranks than experts.
        RuntimeError: a torch without ``torch.distributed``.
    """

    def __init__(self, moe: QuantMoE, group: dist.ProcessGroup | None = None, dispatch: str = "all_gather") -> None:
        super().__init__()
        op = "ExpertParallelMoE"
        require(op, dispatch in DISPATCHES, f"dispatch must be one of {', '.join(DISPATCHES)}, got {dispatch!r}")
        if not dist.is_available():
            raise RuntimeError(f"{op}: needs torch.distributed, which this build of torch lacks")
        self.group, self.dispatch = group, dispatch
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.expert_num = moe.routed.experts
        require(op, self.ranks <= self.expert_num, f"{self.ranks} ranks want as many experts, got {self.expert_num}")
        #: where the experts of each rank begin
        self.borders = [self.expert_num * rank // self.ranks for rank in range(self.ranks + 1)]
        self.first = self.borders[self.rank]
        self.local = moe.part(self.first, self.borders[self.rank + 1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., hidden]`` of this rank's tokens -> the same shape and dtype."""
        require_last_axis("ExpertParallelMoE", x, self.local.hidden)
        combine = self._gathered if self.dispatch == "all_gather" else self._exchanged
        with torch.no_grad():  # collectives write into their results, which autograd may refuse
            flat = x.reshape(-1, self.local.hidden)
            weights, experts = self.local.route(flat)
            codes, scale = dynamic_quant(flat)
            shared = self.local.shared_rows(flat, codes, scale)
            y = combine(codes, scale, weights, experts, shared)
        return without_gradient(y.to(x.dtype).reshape(x.shape), x)

    def _gathered(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        weights: torch.Tensor,
        experts: torch.Tensor,
        shared: torch.Tensor | None,
    ) -> torch.Tensor:
        sizes = self._sizes(codes)
        # One float tensor for scale, weights and experts (exact in float32), one int8 tensor for the tokens.
        floats = torch.cat([scale.unsqueeze(1), weights, experts.float()], dim=1)
        all_codes, all_floats = self._gather(codes, sizes), self._gather(floats, sizes)
        all_scale, all_weights, all_experts = all_floats.split([1, weights.shape[1], experts.shape[1]], dim=1)
        partial = routed_sum(
            self.local.routed,
            all_codes,
            all_scale.flatten(),
            all_weights,
            all_experts.int(),
            self.expert_num,
            self.first,
            shared,
            sum(sizes[: self.rank]),
        )
        return self._reduce_scatter(partial, sizes)

    def _sizes(self, rows: torch.Tensor) -> list[int]:
        own = torch.tensor([len(rows)], device=rows.device)
        sizes = own.new_empty(self.ranks)
        _all_gather(sizes, own, group=self.group)
        return sizes.tolist()

    def _gather(self, rows: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        """The rows of all ranks, in their order. What travels is padded to the largest size."""
        most = max(sizes)
        padded = torch.nn.functional.pad(rows, (0, 0, 0, most - len(rows)))
        gathered = rows.new_empty(self.ranks * most, rows.shape[1])
        _all_gather(gathered, padded, group=self.group)
        return torch.cat([part[:size] for part, size in zip(gathered.split(max(most, 1)), sizes, strict=False)])

    def _reduce_scatter(self, partial: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        most = max(sizes)
        padded = [torch.nn.functional.pad(part, (0, 0, 0, most - len(part))) for part in partial.split(sizes)]
        own = partial.new_empty(most, partial.shape[1])
        _reduce_scatter(own, torch.cat(padded), group=self.group)
        return own[: sizes[self.rank]]

    def _exchanged(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        weights: torch.Tensor,
        experts: torch.Tensor,
        shared: torch.Tensor | None,
    ) -> torch.Tensor:
        rows, index, counts, row_scale = moe_init_routing(
            codes, experts, scale=scale, expert_num=self.expert_num, expert_tokens_num_type=1
        )
        own_experts = self.local.routed.experts
        per_rank = [own - before for before, own in zip(self.borders, self.borders[1:], strict=False)]
        received = self._all_to_all(counts, per_rank, [own_experts] * self.ranks)
        send = [int(own.sum()) for own in counts.split(per_rank)]
        receive = [int(own.sum()) for own in received.split(own_experts)]
        results = self._own_rows(
            self._all_to_all(rows, send, receive), self._all_to_all(row_scale, send, receive), received
        )
        back = self._all_to_all(results, receive, send)
        skip = None if shared is None else shared.float()
        return moe_finalize_routing(back, skip, None, None, weights, index, drop_pad_mode=2)

    def _all_to_all(self, rows: torch.Tensor, send: list[int], receive: list[int]) -> torch.Tensor:
        received = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), receive, send, group=self.group)
        return received

    def _own_rows(self, rows: torch.Tensor, scale: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """float32 results of rows that came rank by rank, each rank's sorted by expert: ``counts`` says how many."""
        own = self.local.routed
        each = torch.arange(own.experts, dtype=torch.int32, device=rows.device)
        experts = each.repeat(self.ranks).repeat_interleave(counts)
        sorted_rows, order, own_counts, sorted_scale = moe_init_routing(
            rows,
            experts.unsqueeze(1),
            scale=scale,
            expert_num=own.experts,
            expert_tokens_num_type=1,
            row_idx_type=1,
        )
        return own(sorted_rows, sorted_scale, own_counts, order.long(), None, len(rows))

    def extra_repr(self) -> str:
        return f"experts [{self.first}, {self.first + self.local.routed.experts}) of {self.expert_num}, {self.dispatch}"
