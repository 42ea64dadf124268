# SPDX-License-Identifier: Apache-2.0
"""``torchair.scope``: placement hints for a chip's streams and cores. They do not change results and have no effect."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from anynpu.compat.errors import module_getattr


def npu_stream_switch(stream_tag: str, stream_priority: int = 0, enable_inner_parallel: bool = True) -> nullcontext:
    """A block that a card may run beside others."""
    return nullcontext()


def npu_wait_tensor(self: torch.Tensor, dependency: torch.Tensor) -> torch.Tensor:
    """``self``, once ``dependency`` is there."""
    return self


def super_kernel(scope: str, options: str = "") -> nullcontext:
    """A block that a card may fuse."""
    return nullcontext()


def limit_core_num(op_aicore_num: int, op_vectorcore_num: int) -> nullcontext:
    """A block that leaves cores of a card to others."""
    return nullcontext()


def op_never_timeout(enable: bool = True) -> nullcontext:
    """A block whose operators may take any time, as all do here."""
    return nullcontext()


def data_dump() -> nullcontext:
    """A block whose tensors a card writes to files if a ``CompilerConfig`` says so."""
    return nullcontext()


__getattr__ = module_getattr(__name__, globals())
