# SPDX-License-Identifier: Apache-2.0
"""What keeps the scales of quantised layers as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch


class Float32Buffers(torch.nn.Module):
    """A module whose float buffers stay float32 when it is cast (``half()``, ``bfloat16()``, ``to(dtype)``).

    They are valid with activations of every dtype.
    """

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Float32Buffers:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = getattr(self, name)
            if after.dtype != buffer.dtype:
                setattr(self, name, buffer.to(after.device))
        return self
