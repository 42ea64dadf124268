# SPDX-License-Identifier: Apache-2.0
"""Calls that repeat. Decoding calls an operator with the same layouts for every token and layer; torch's dispatcher and
Python's checks then take longer than the kernel, and their answer is the one they gave before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
from torch._C._dynamo.guards import TensorGuards

_KEPT = 8


@dataclass(frozen=True)
class _Entry:
    guards: TensorGuards
    options: tuple
    plan: Any


class Repeats:
    """What was worked out for the last few kinds of call of one operator on plain CPU tensors.

    torch's own guards compare type, device, dtype, shape, strides and the state of the dispatcher (transforms,
    inference mode) with those of the earlier call. Not for use where ``must_dispatch`` holds.
    """

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def find(self, tensors: Sequence[torch.Tensor], options: tuple) -> Any:
        """The plan of an earlier call like this one, or None."""
        for entry in self._entries:
            if entry.options == options and entry.guards.check(*tensors):
                return entry.plan
        return None

    def add(self, tensors: Sequence[torch.Tensor], options: tuple, plan: Callable[..., Any], *arguments: Any) -> None:
        """Remembers ``plan(*arguments)`` of a call that went well, if its tensors are plain ones of the CPU.

        ``options`` must tell calls with other numbers of tensors apart.
        """
        if not all(type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_cpu for tensor in tensors):
            return
        guards = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        self._entries = [_Entry(guards, options, plan(*arguments)), *self._entries[: _KEPT - 1]]


def must_dispatch() -> bool:
    """Whether a graph is being captured, or a mode wants to see every call."""
    return bool(torch.compiler.is_compiling() or _len_torch_dispatch_stack() or _len_torch_function_stack())
