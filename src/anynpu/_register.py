# SPDX-License-Identifier: Apache-2.0
"""What operators need of torch.library: schemas, kernels by device, fake kernels, and the list of operators."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any

import torch

from anynpu._repeat import PlannedKernel, RepeatedOperator

_library = torch.library.Library("anynpu", "DEF")

# What the dispatcher says of an argument that its schema does not take.
_WRONG_KIND = re.compile(
    r"anynpu::\w+\(\) Expected a value of type '(?P<kind>.+?)' for argument '(?P<name>\w+)' "
    r"but instead found type '(?P<got>.+?)'"
)
_KINDS = {"Tensor": "a tensor", "int": "an int", "List[Tensor]": "a list of tensors", "List[int]": "a list of ints"}
# What it takes though the schema says otherwise: None, and any object with a truth.
_SLIPS_THROUGH = {"Tensor": torch.Tensor, "bool": bool}


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
    # The module of the CUDA kernel, a function of the operator's name; imported by the first call, as it takes seconds.
    cuda: str = field(kw_only=True)

    @classmethod
    def of(cls, spec: ModuleType, cpu: ModuleType, reference: ModuleType, *, cuda: str) -> Operator:
        """The operator of a folder, out of the modules that have its parts under the same names everywhere."""
        kernel, oracle = getattr(cpu, spec.OP), getattr(reference, spec.OP)
        error_bound = getattr(reference, "error_bound", None)
        return cls(spec.OP, spec.SCHEMA, spec.fake, kernel, oracle, spec.samples, error_bound, cuda=cuda)

    @cached_property
    def cuda_kernel(self) -> Callable:
        """The kernel for CUDA tensors."""
        try:
            return getattr(importlib.import_module(self.cuda), self.name)
        except ModuleNotFoundError as error:
            if error.name != "triton":
                raise
            sentence = f"{self.name}: CUDA tensors need Triton, which is not installed: pip install triton"
            raise ImportError(sentence) from None

    @property
    def overload(self) -> torch._ops.OpOverload:
        """``torch.ops.anynpu.<name>.default``."""
        return getattr(torch.ops.anynpu, self.name).default


operators: dict[str, Operator] = {}


def register(operator: Operator) -> Callable:
    """Defines ``torch.ops.anynpu.<name>``; returns what its public function calls."""
    _library.define(f"{operator.name}{operator.schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(operator.name, operator.cpu, "CPU")
    _library.impl(operator.name, _on_cuda(operator), "CUDA")
    for key in ("AutocastCPU", "AutocastCUDA"):
        _library.impl(operator.name, _without_autocast(operator), key)
    torch.library.register_fake(f"anynpu::{operator.name}", operator.fake, lib=_library)
    operators[operator.name] = operator
    call = _dispatched(operator)
    if isinstance(operator.cpu, PlannedKernel):
        keywords = [argument.name for argument in operator.overload._schema.arguments if argument.kwarg_only]
        return RepeatedOperator(call, operator.cpu, keywords)
    return call


def _dispatched(operator: Operator) -> Callable:
    """The operator, with sentences of ours about arguments that the dispatcher refuses."""
    overload = operator.overload
    kinds = {argument.name: str(argument.type) for argument in overload._schema.arguments}

    def call(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return overload(*args, **kwargs)
        _require_kinds(operator.name, kinds, {**dict(zip(kinds, args, strict=False)), **kwargs})
        try:
            return overload(*args, **kwargs)
        except RuntimeError as error:
            refused = _WRONG_KIND.match(str(error))
            if refused is not None:
                raise _wrong_kind(operator.name, **refused.groupdict()) from None
            if "There were no tensor arguments" in str(error):
                operator.fake(*args, **kwargs)  # refuses the empty lists
            raise

    return call


def _require_kinds(op: str, kinds: Mapping[str, str], given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        expected = _SLIPS_THROUGH.get(kinds.get(name))
        if expected is not None and not isinstance(value, expected):
            raise _wrong_kind(op, kinds[name], name, type(value).__name__)


def _wrong_kind(op: str, kind: str, name: str, got: str) -> TypeError:
    if kind.startswith("Optional["):
        kind = kind.removeprefix("Optional[").removesuffix("]")
    if got == "list" and kind.startswith("List"):
        got = "a list of something else"
    return TypeError(f"{op}: {name} must be {_KINDS.get(kind, f'a {kind}')}, got {got}")


def _without_autocast(operator: Operator) -> Callable:
    """The operator for code under autocast, which would round what kernels hand to torch's operators."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableAutocast():
            return operator.overload(*args, **kwargs)

    return call


def _on_cuda(operator: Operator) -> Callable:
    names = [argument.name for argument in operator.overload._schema.arguments]

    def call(*args: Any, **kwargs: Any) -> Any:
        _require_one_device(operator.name, {**dict(zip(names, args, strict=False)), **kwargs})
        return operator.cuda_kernel(*args, **kwargs)

    return call


def _require_one_device(op: str, args: dict[str, Any]) -> None:
    """A kernel takes addresses, which mean nothing on another device."""
    tensors = [
        (name, tensor)
        for name, value in args.items()
        for tensor in (value if isinstance(value, list | tuple) else (value,))
        if isinstance(tensor, torch.Tensor)
    ]
    first, expected = tensors[0][0], tensors[0][1].device
    for name, tensor in tensors:
        if tensor.device != expected:
            raise ValueError(f"{op}: {name} must be on the device of {first}, {expected}, got {tensor.device}")
