# SPDX-License-Identifier: Apache-2.0
"""The inputs that anynpu and its peers are compared on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class PackProblem:
    """int4 values, held in int32, to be packed eight to a word."""

    k: int
    n: int
    operations = 0  # it only moves data

    @property
    def name(self) -> str:
        """For tables and the command line."""
        return f"k{self.k}_n{self.n}"

    @cached_property
    def weight(self) -> torch.Tensor:
        """[K, N] in int32, values in [-8, 7]."""
        return torch.randint(-8, 8, (self.k, self.n), dtype=torch.int32, generator=torch.Generator().manual_seed(0))

    @property
    def bytes(self) -> int:
        """Four read and half a byte written for each value."""
        return self.k * self.n * 9 // 2


@dataclass(frozen=True)
class Product:
    """[M, K] times [K, N]."""

    m: int
    k: int
    n: int

    @property
    def name(self) -> str:
        """For tables and the command line."""
        return f"m{self.m}_k{self.k}_n{self.n}"

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.k * self.n


@dataclass(frozen=True)
class MatmulProblem(Product):
    """A weight-only matmul: x [M, K] times int4 or int8 weights [K, N] with a scale for each group of K and column."""

    group_size: int  # 0: a scale for each column
    bits: int

    @property
    def name(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "channel"
        return f"{super().name}_w{self.bits}_{group}"

    @cached_property
    def x(self) -> torch.Tensor:
        """[M, K] in float32; variants round it to their dtype."""
        return torch.randn(self.m, self.k, generator=torch.Generator().manual_seed(0))

    @cached_property
    def weight(self) -> torch.Tensor:
        """[K, N] integers in int32, the same for every M, as is `scale`."""
        high, generator = 1 << (self.bits - 1), torch.Generator().manual_seed(1)
        return torch.randint(-high, high, (self.k, self.n), dtype=torch.int32, generator=generator)

    @cached_property
    def scale(self) -> torch.Tensor:
        """[K / group_size or 1, N] in float32, with values that bfloat16 and float16 hold too."""
        groups = -(-self.k // self.group_size) if self.group_size else 1
        generator = torch.Generator().manual_seed(2)
        return (torch.randint(128, 256, (groups, self.n), generator=generator) * 2.0**-15).float()

    def dense(self) -> torch.Tensor:
        """[K, N] in float32: what the integers and scales stand for."""
        rows = self.scale.repeat_interleave(self.group_size, 0)[: self.k] if self.group_size else self.scale
        return self.weight * rows

    def expected(self, dtype: torch.dtype) -> torch.Tensor:
        """The product with x rounded to ``dtype``, in float32."""
        return self.x.to(dtype).float() @ self.dense()
