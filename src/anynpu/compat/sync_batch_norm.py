# SPDX-License-Identifier: Apache-2.0
"""``torch.nn.SyncBatchNorm`` where npu stands for the CPU: torch's own has kernels for accelerators alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOfRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group, total = group, part.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _SumOfRanks.apply(gradient, ctx.group), None


def _forward(self: torch.nn.SyncBatchNorm, input: torch.Tensor) -> torch.Tensor:
    group = self.process_group or dist.group.WORLD
    if not self.training or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return _BatchNorm.forward(self, input)
    self._check_input_dim(input)
    self._check_non_zero_input_channels(input)
    values = input.to(torch.promote_types(input.dtype, torch.float32)).movedim(1, -1)
    rows = values.flatten(0, -2)
    total = _SumOfRanks.apply(torch.cat((rows.sum(0), rows.new_tensor([rows.shape[0]]))), group)
    count = total[-1].detach()
    mean = total[:-1] / count
    variance = _SumOfRanks.apply((rows - mean).square().sum(0), group) / count
    if self.track_running_stats:
        _track(self, mean.detach(), variance.detach() * (count / (count - 1)))
    normalised = (values - mean) * (variance + self.eps).rsqrt()
    if self.affine:
        normalised = normalised * self.weight + self.bias
    return normalised.movedim(-1, 1).to(input.dtype)


def _track(layer: torch.nn.SyncBatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Moves the running statistics of ``layer`` towards those of the batch; without a momentum they are averages."""
    with torch.no_grad():
        layer.num_batches_tracked += 1
        momentum = 1 / layer.num_batches_tracked.item() if layer.momentum is None else layer.momentum
        layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), momentum)
        layer.running_var.lerp_(variance.to(layer.running_var.dtype), momentum)


def provide() -> None:
    """Replaces the layer's computation, and what refuses the layer on the CPU. It cannot be undone."""
    torch.nn.SyncBatchNorm.forward = _forward
    torch.nn.parallel.DistributedDataParallel._passing_sync_batchnorm_handle = lambda self, module: None
