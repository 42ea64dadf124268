# SPDX-License-Identifier: Apache-2.0
"""What random calls are made of: sizes at which kernels change their ways, values, layouts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
EDGES = (8, 16, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256, 257, 320, 512, 513, 640)


class Draw:
    """Random choices that the seed decides; ``most`` bounds all sizes."""

    def __init__(self, seed: int, most: int = 700) -> None:
        self._random = random.Random(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self._most = most

    def one_of(self, *choices: Any) -> Any:
        return self._random.choice(choices)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def maybe(self, make: Callable[[], Any], probability: float = 0.5) -> Any:
        """What ``make`` returns, or None."""
        return make() if self.chance(probability) else None

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def real(self, high: float) -> float:
        return self._random.random() * high

    def size(self, most: int = 300) -> int:
        """Of an axis: small, at or beside a size of blocks, or any."""
        most = min(most, self._most)
        if self.chance(0.2):
            return self.number(1, min(most, 9))
        if self.chance(0.4):
            return min(most, self.one_of(*EDGES))
        return self.number(1, most)

    def rows(self, *sizes: int) -> int:
        return min(self._most, self.one_of(*sizes))

    def floats(self, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        """Normally distributed; some with outliers, some all zero, some integers."""
        values = torch.randn(tuple(shape), generator=self._torch)
        kind = self._random.random()
        if kind < 0.1:
            outliers = torch.rand(values.shape, generator=self._torch) < 0.02
            values = torch.where(outliers, values * self.one_of(1e2, 1e4, 1e-4), values)
        elif kind < 0.15:
            values = torch.zeros_like(values)
        elif kind < 0.2:
            values = values.round()
        return (values * scale).to(dtype)

    def positive(self, shape: Sequence[int], dtype: torch.dtype = torch.float32, size: float = 0.02) -> torch.Tensor:
        """Scales: uniform in size / 20 to size."""
        return ((torch.rand(tuple(shape), generator=self._torch) * 0.95 + 0.05) * size).to(dtype)

    def uniform(self, shape: Sequence[int], low: float, high: float) -> torch.Tensor:
        return torch.rand(tuple(shape), generator=self._torch) * (high - low) + low

    def integers(self, shape: Sequence[int], low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        """Both ends included."""
        return torch.randint(low, high + 1, tuple(shape), generator=self._torch).to(dtype)

    def codes(self, shape: Sequence[int]) -> torch.Tensor:
        """int8, some all at one end."""
        if self.chance(0.1):
            return torch.full(tuple(shape), self.one_of(-128, 127), dtype=torch.int8)
        return self.integers(shape, -128, 127, torch.int8)

    def nibbles(self, shape: Sequence[int]) -> torch.Tensor:
        """int32 in [-8, 7]."""
        return self.integers(shape, -8, 7, torch.int32)

    def permutation(self, count: int) -> torch.Tensor:
        return torch.randperm(count, generator=self._torch)

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same values, some transposed in memory, every second element of a wider tensor, or not at its start."""
        kind = self._random.random()
        if kind < 0.15 and tensor.dim() >= 2:
            return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
        if kind < 0.3:
            wide = tensor.new_zeros([*tensor.shape[:-1], 2 * tensor.shape[-1]])
            wide[..., ::2] = tensor
            return wide[..., ::2]
        if kind < 0.4:
            longer = tensor.new_zeros([tensor.shape[0] + 1, *tensor.shape[1:]])
            longer[1:] = tensor
            return longer[1:]
        return tensor

    def along_either(self, matrix: torch.Tensor) -> torch.Tensor:
        """The same values, the last two axes as they are or transposed in memory."""
        return matrix.transpose(-1, -2).contiguous().transpose(-1, -2) if self.chance(0.5) else matrix

    def group_list(self, groups: int, rows: int, kind: int) -> torch.Tensor:
        """Counts (kind 1) or running sums (0) of up to ``rows`` rows; some groups are empty."""
        left, counts = rows, []
        for _ in range(groups):
            counts.append(min(left, self.one_of(0, 0, 1, 2, 3, 4, 5, 8, 9, 20, left)))
            left -= counts[-1]
        self._random.shuffle(counts)
        result = torch.tensor(counts, dtype=torch.int64)
        return result if kind == 1 else result.cumsum(0)
