# SPDX-License-Identifier: Apache-2.0
"""How rows travel to the ranks of their experts and back: who has which expert, and the order in which rows lie.

Rows travel by all-to-alls of ``torch.distributed``, as many as there are. Where values of tensors cannot be read, in a
graph, room for as many rows as there may be travels.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import is_fake

from anynpu._check import require


@dataclass(frozen=True)
class Ranks:
    """The ranks of a group and their experts, which are numbered from rank to rank.

    The first ``shared_ranks`` have one shared expert each (several ranks the same one), the others an equal share of
    the ``experts`` that tokens are routed to.
    """

    op: str
    group: str
    size: int
    rank: int
    experts: int
    shared_experts: int = 0
    shared_ranks: int = 0

    def __post_init__(self) -> None:
        size, own = self._of_group()
        require(self.op, size == self.size, f"ep_world_size must be that of group_ep, {size}, got {self.size}")
        require(self.op, own == self.rank, f"ep_rank_id must be that of group_ep, {own}, got {self.rank}")
        shared, ranks = self.shared_experts, self.shared_ranks
        fits = 0 <= ranks < size and (ranks == 0 or (shared > 0 and ranks % shared == 0))
        sentence = f"shared_expert_rank_num must be a multiple of shared_expert_num {shared} below {size}, got {ranks}"
        require(self.op, fits, sentence)
        others = size - ranks
        fits = self.experts > 0 and self.experts % others == 0
        require(self.op, fits, f"moe_expert_num must be a multiple of the {others} ranks, got {self.experts}")

    def _of_group(self) -> tuple[int, int]:
        known = [group for group in dist.distributed_c10d._world.pg_map if group.group_name == self.group]
        require(self.op, bool(known), f"group_ep must be what get_hccl_comm_name says of a group, got {self.group!r}")
        return dist.get_world_size(known[0]), dist.get_rank(known[0])

    @property
    def per_rank(self) -> list[int]:
        """How many experts each rank has."""
        others = self.size - self.shared_ranks
        return [1] * self.shared_ranks + [self.experts // others] * others

    def shared_numbers(self) -> list[int]:
        """The copies of the shared experts that this rank's tokens go to."""
        if not self.shared_ranks:
            return []
        copies = self.shared_ranks // self.shared_experts
        return [expert * copies + self.rank % copies for expert in range(self.shared_experts)]

    def numbers(self, expert_ids: torch.Tensor) -> torch.Tensor:
        """``[N, K + shared experts]``: the experts of each token."""
        shared = self.shared_numbers()
        copies = torch.tensor(shared, dtype=torch.int32, device=expert_ids.device).expand(len(expert_ids), len(shared))
        return torch.cat([expert_ids + self.shared_ranks, copies], dim=1)

    def of_numbers(self, values: torch.Tensor | None) -> torch.Tensor | None:
        """Rows of values, those of the shared experts first, once for each copy of these."""
        if values is None or not self.shared_ranks:
            return values
        copies = self.shared_ranks // self.shared_experts
        return torch.cat([values[: self.shared_experts].repeat_interleave(copies, 0), values[self.shared_experts :]])

    def owners(self, numbers: torch.Tensor) -> torch.Tensor:
        """The ranks of experts."""
        share = self.per_rank[-1]
        routed = (numbers - self.shared_ranks).div(share, rounding_mode="floor") + self.shared_ranks
        return numbers.where(numbers < self.shared_ranks, routed).long()

    def most_rows(self, tokens: int, chosen: int) -> list[int]:
        """How many rows at most each rank receives from one that has so many tokens."""
        return [tokens * min(experts, chosen) for experts in self.per_rank]

    def room(self, tokens: int, chosen: int) -> int:
        """The rows of this rank's results, ``A`` in the documents."""
        if self.rank >= self.shared_ranks:
            return self.size * self.most_rows(tokens, chosen)[-1]
        copies = self.shared_ranks // self.shared_experts
        return tokens * -(-self.size // copies)

    def exchange(self, rows: torch.Tensor, received: Sequence[int], sent: Sequence[int]) -> torch.Tensor:
        """An all-to-all: the rows that came, rank by rank."""
        collectives = torch.ops._c10d_functional
        return collectives.wait_tensor(
            collectives.all_to_all_single(rows.contiguous(), list(received), list(sent), self.group)
        )


def is_readable(tensor: torch.Tensor) -> bool:
    """Whether values may be read: not in a graph that is compiled or captured."""
    return not (torch.compiler.is_compiling() or is_fake(tensor) or torch.npu.is_current_stream_capturing())


def starts_of(sizes: torch.Tensor) -> torch.Tensor:
    return sizes.cumsum(0) - sizes


@dataclass(frozen=True)
class Parcels:
    """Rows that are exchanged, rank by rank, with space between the ranks where counts are not read."""

    counts: torch.Tensor
    sizes: list[int]

    @classmethod
    def of(cls, counts: torch.Tensor, most: Sequence[int]) -> Parcels:
        return cls(counts, counts.tolist() if is_readable(counts) else list(most))

    @property
    def starts(self) -> torch.Tensor:
        return starts_of(torch.tensor(self.sizes, device=self.counts.device))

    def packed(self, rows: torch.Tensor) -> torch.Tensor:
        """What to send of rows that lie rank by rank without space between them."""
        total = sum(self.sizes)
        if is_readable(self.counts):
            return rows[:total]
        if not len(rows):
            return rows.new_zeros(total, *rows.shape[1:])
        sizes = torch.tensor(self.sizes, device=rows.device)
        owner = torch.arange(len(self.sizes), device=rows.device).repeat_interleave(sizes, output_size=total)
        place = torch.arange(total, device=rows.device) + (starts_of(self.counts) - self.starts)[owner]
        return rows[place.clamp(max=len(rows) - 1)]


@dataclass(frozen=True)
class Arrivals:
    """Rows of one rank's experts: they came rank by rank, in a rank by expert, and lie expert by expert."""

    table: torch.Tensor  # [ranks, experts], counts
    parcels: Parcels
    room: int

    def ends(self) -> torch.Tensor:
        """Where the rows of the first expert from the first rank, from the second rank, ... end."""
        return self.table.t().flatten().cumsum(0)

    @functools.cached_property
    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each row where it came, and whether it is one."""
        ends = self.ends()
        total = int(ends[-1]) if is_readable(self.table) else self.room
        row = torch.arange(total, device=ends.device)
        within = self.table.cumsum(1) - self.table + self.parcels.starts.unsqueeze(1)
        shift = within.t().flatten() - (ends - self.table.t().flatten())
        run = torch.searchsorted(ends, row, right=True).clamp(max=len(ends) - 1)
        there = row < ends[-1]
        return torch.where(there, row + shift[run], sum(self.parcels.sizes)), there

    def by_expert(self, came: torch.Tensor) -> torch.Tensor:
        """The rows by expert, and zeros behind them."""
        places, there = self._places
        rows = came.new_zeros(self.room, *came.shape[1:])
        known = came[places.clamp(max=max(len(came) - 1, 0))]
        rows[: len(places)] = known.where(there.view(-1, *[1] * (came.dim() - 1)), 0)
        return rows

    def by_rank(self, rows: torch.Tensor) -> torch.Tensor:
        """The way back."""
        places, _ = self._places
        back = rows.new_zeros(sum(self.parcels.sizes) + 1, *rows.shape[1:])  # the last is for what is no row
        back[places] = rows[: len(places)]
        return back[:-1]
