# SPDX-License-Identifier: Apache-2.0
"""The only module that talks to torch.library: schemas, kernels by device, fake kernels, and the list of operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from anynpu._repeat import PlannedKernel, RepeatedOperator

_library = torch.library.Library("anynpu", "DEF")


@dataclass(frozen=True)
class Sample:
    """One valid call: positional arguments of the operator."""

    name: str
    args: tuple


@dataclass(frozen=True)
class Operator:
    """Everything the project knows of one operator; tests, selftest and benchmarks walk ``operators``."""

    name: str
    schema: str
    fake: Callable
    cpu: Callable
    reference: Callable
    samples: Callable[[], Iterable[Sample]]
    # From the arguments of a call: how far each element of its results, and then of the arguments that it writes to,
    # may be from the reference. None: equal bits.
    error_bound: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] | None = None

    @property
    def overload(self) -> torch._ops.OpOverload:
        """``torch.ops.anynpu.<name>.default``."""
        return getattr(torch.ops.anynpu, self.name).default


operators: dict[str, Operator] = {}


def register(operator: Operator) -> RepeatedOperator | torch._ops.OpOverload:
    """Defines ``torch.ops.anynpu.<name>``; returns what its public function calls."""
    _library.define(f"{operator.name}{operator.schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(operator.name, operator.cpu, "CPU")
    torch.library.register_fake(f"anynpu::{operator.name}", operator.fake, lib=_library)
    operators[operator.name] = operator
    if isinstance(operator.cpu, PlannedKernel):
        return RepeatedOperator(operator.overload, operator.cpu)
    return operator.overload
