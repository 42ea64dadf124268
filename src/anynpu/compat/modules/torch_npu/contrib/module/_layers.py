# SPDX-License-Identifier: Apache-2.0
"""Layers of ``torch_npu.contrib.module`` in torch's operators."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from torch_npu.contrib.function import dropout_with_byte_mask

Mish, SiLU, Swish = torch.nn.Mish, torch.nn.SiLU, torch.nn.SiLU


class Prefetcher:
    """Pairs of a loader on npu; ``next`` gives (None, None) behind the last."""

    def __init__(self, loader: Iterable, stream: Any = None) -> None:
        self.loader = iter(loader)

    def next(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        inputs, target = next(self.loader, (None, None))
        return (inputs, target) if target is None else (inputs.npu(), target.npu())


class ChannelShuffle(torch.nn.Module):
    """``channel_shuffle`` of two tensors joined along the channels, in halves again unless ``split_shuffle`` is off."""

    def __init__(self, in_channels: int, groups: int = 2, split_shuffle: bool = True) -> None:
        super().__init__()
        self.groups, self.split_shuffle, self.group_len = groups, split_shuffle, in_channels // groups

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        shuffled = torch.nn.functional.channel_shuffle(torch.cat([x1, x2], 1), self.groups)
        if not self.split_shuffle:
            return shuffled
        return shuffled[:, : self.group_len], shuffled[:, self.group_len :]


class LabelSmoothingCrossEntropy(torch.nn.Module):
    """The mean of cross entropies: ``1 - smooth_factor`` for the target, the rest for the other classes alike."""

    def __init__(self, num_classes: int = 1000, smooth_factor: float = 0.0) -> None:
        super().__init__()
        self.on_value, self.off_value = 1.0 - smooth_factor, smooth_factor / (num_classes - 1)

    def forward(self, pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        wanted = torch.full_like(pred, self.off_value).scatter(1, target.long()[:, None], self.on_value)
        return -(wanted * pred.log_softmax(1)).sum(1).mean(dtype=torch.float32)


class NpuDropPath(torch.nn.Module):
    """Drops samples with the probability ``drop_prob`` in training and scales the others, from the first call on."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x.new_ones(x.shape[:1] + (1,) * (x.dim() - 1))
        return x * torch.nn.functional.dropout(kept, self.drop_prob, self.training)

    @classmethod
    def enable_droppath_ensemble(cls, model: torch.nn.Module) -> None:
        """No effect: random numbers are drawn when they are needed."""


class _Conv(torch.nn.Module):
    def __init__(self, c1: int, c2: int, k: int, s: int, p: int | None, g: int, act: bool) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(c1, c2, k, s, k // 2 if p is None else p, groups=g, bias=False)
        self.bn = torch.nn.BatchNorm2d(c2)
        self.act = torch.nn.LeakyReLU(0.1) if act else torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class Focus(torch.nn.Module):
    """A convolution of the four images that every second pixel makes, as in YOLOv5."""

    def __init__(
        self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1, act: bool = True
    ) -> None:
        super().__init__()
        self.conv = _Conv(c1 * 4, c2, k, s, p, g, act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([x[..., row::2, column::2] for column in (0, 1) for row in (0, 1)], 1))


class BiLSTM(torch.nn.Module):
    """Two LSTMs, the second over the sequence (S, N, input_size) read backwards; results (S, N, 2 * hidden_size)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fw_rnn = torch.nn.LSTM(input_size, hidden_size)
        self.bw_rnn = torch.nn.LSTM(input_size, hidden_size)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat((self.fw_rnn(inputs)[0], self.bw_rnn(inputs.flip(0))[0].flip(0)), 2)


class DropoutWithByteMask(torch.nn.Module):
    """``dropout_with_byte_mask`` as a layer."""

    def __init__(self, p: float = 0.5, inplace: bool = False, max_seed: int = 1023) -> None:
        super().__init__()
        self.p, self.inplace = p, inplace

    def forward(self, input1: torch.Tensor) -> torch.Tensor:
        return dropout_with_byte_mask(input1, self.p, self.training, self.inplace)
