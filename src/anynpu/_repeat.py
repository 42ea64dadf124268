# SPDX-License-Identifier: Apache-2.0
"""Calls that repeat. Decoding calls an operator with the same layouts for every token and layer; torch's dispatcher and
Python's checks then take longer than the kernel, and their answer is the one they gave before.

What was worked out for a call is its plan: a function of its tensors that reads nothing but their data. A plan answers
another call only if torch's own guards find every tensor alike in type, dtype, device, shape, strides, requires_grad
and dispatch keys, those of the thread included (transforms, tracing, autocast, inference mode), and all else is equal.
The guards are private to torch. Where they are missing, or do not tell apart what they must, nothing is remembered.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch

from anynpu._strict import strict_soc

try:
    from torch._C import _len_torch_dispatch_stack, _len_torch_function_stack
    from torch._C._dynamo.guards import TensorGuards as _TensorGuards
    from torch.autograd import _profiler_enabled
except ImportError:
    _TensorGuards = None

try:
    from torch._C import _increment_version as increment_version  # takes half the time, but is private
except ImportError:
    from torch.autograd.graph import increment_version as increment_version

_MOST_KEPT = 4096
_MOST_ALIKE = 16  # plans that differ in neither the sizes of the first two tensors nor options

_TENSORS = (torch.Tensor, torch.nn.Parameter)
_SEQUENCES = (list, tuple, torch.Size)
_OPTIONS = (type(None), bool, int, float, str, torch.dtype, *_SEQUENCES)

Plan = Callable[..., Any]


def _guard(*tensors: torch.Tensor) -> Callable[..., bool]:
    """Whether other tensors are like these, now, and the same object where these are."""
    first = {id(tensor): i for i, tensor in reversed(list(enumerate(tensors)))}
    places = sorted(first.values())
    alike = _TensorGuards(*[tensors[i] for i in places], dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    repeated = [(i, first[id(tensor)]) for i, tensor in enumerate(tensors) if first[id(tensor)] != i]
    if not repeated:
        return alike  # which refuses an object that comes twice
    return lambda *others: all(others[i] is others[j] for i, j in repeated) and alike(*[others[i] for i in places])


def _guards_work() -> bool:
    try:
        alike = _guard(torch.empty(2, 3))
        with torch.inference_mode():
            inference_seen = not alike(torch.empty(2, 3))
        different = (
            torch.empty(3, 2),
            torch.empty(3, 2).t(),
            torch.empty(2, 3, dtype=torch.float64),
            torch.empty(2, 3, device="meta"),
            torch.nn.Parameter(torch.empty(2, 3), requires_grad=False),
            torch.empty(2, 3, requires_grad=True),
        )
        told_apart = not any(map(alike, different))
        return bool(
            alike(torch.empty(2, 3)) and inference_seen and told_apart and torch._C._dispatch_keys(different[0])
        )
    except Exception:
        return False


class _PlainState:
    """A state of torch in which nothing but autograd stands between a plain tensor and the kernel."""

    def __init__(self) -> None:
        self._tensor = torch.empty(0)
        self._alike = _guard(self._tensor)
        self.keys = torch._C._dispatch_keys(self._tensor).raw_repr()

    def holds(self) -> bool:
        return self._alike(self._tensor)


def _plain_states() -> list[_PlainState]:
    if not _guards_work():
        return []
    with torch.inference_mode():
        inference = _PlainState()
    return [_PlainState(), inference]


_STATES = _plain_states()


def is_plain(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether the dispatcher hands a call on these tensors straight to the CPU kernel."""
    plain_keys = [state.keys for state in _STATES]
    if not any(state.holds() for state in _STATES):
        return False
    return all(
        torch._C._dispatch_keys(tensor).raw_repr() in plain_keys and not tensor.requires_grad for tensor in tensors
    )


def must_dispatch() -> bool:
    """Whether a graph is being captured, a mode or a profiler wants to see every call, or limits are to be enforced."""
    return bool(
        torch.compiler.is_compiling()
        or not _STATES
        or _len_torch_dispatch_stack()
        or _len_torch_function_stack()
        or _profiler_enabled()
        or strict_soc() is not None
    )


def _picker(places: list[int]) -> Callable[[tuple], tuple]:
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1) if places else slice(0))


def _frozen(option: Any) -> Any:
    """``option`` so that no other one is equal: 1 is not 1.0 and 0.0 not -0.0."""
    if type(option) in _SEQUENCES:
        return tuple(option), tuple(map(type, option))
    return (option, math.copysign(1.0, option)) if type(option) is float else option


class _Signature:
    """The plans of calls whose arguments have the same types."""

    def __init__(self, types: tuple[type, ...]) -> None:
        frozen = [i for i, kind in enumerate(types) if kind in (float, *_SEQUENCES)]
        self.tensors = _picker([i for i, kind in enumerate(types) if kind in _TENSORS])
        self.plans: dict[tuple, tuple[tuple[Callable[..., bool], Plan], ...]] = {}
        self._options = _picker([i for i, kind in enumerate(types) if kind not in _TENSORS and i not in frozen])
        self._second = min(1, sum(kind in _TENSORS for kind in types) - 1)
        self._to_freeze = _picker(frozen) if frozen else None
        self._kept = 0

    def key(self, args: tuple, tensors: tuple[torch.Tensor, ...]) -> tuple:
        """Options, and the sizes of x and a weight: those of compressed ones all differ."""
        frozen = None if self._to_freeze is None else tuple(map(_frozen, self._to_freeze(args)))
        return self._options(args), frozen, tensors[0].numel(), tensors[self._second].numel()

    def add(self, args: tuple, tensors: tuple[torch.Tensor, ...], plan: Plan) -> None:
        if self._kept >= _MOST_KEPT:
            self.plans, self._kept = {}, 0
        key = self.key(args, tensors)
        self.plans[key] = ((_guard(*tensors), plan), *self.plans.get(key, ())[: _MOST_ALIKE - 1])
        self._kept += 1


class Repeats:
    """The plans of one operator's calls so far, each given with all arguments by position."""

    def __init__(self) -> None:
        self._signatures: dict[tuple[type, ...], _Signature] = {}

    def find(self, args: tuple) -> tuple[Plan, tuple[torch.Tensor, ...]] | None:
        """The plan of an earlier call like this one and the tensors it takes, or None."""
        signature = self._signatures.get(tuple(map(type, args)))
        if signature is None:
            return None
        tensors = signature.tensors(args)
        for alike, plan in signature.plans.get(signature.key(args, tensors), ()):
            if alike(*tensors):
                return plan, tensors
        return None

    def add(self, args: tuple, plan: Plan) -> None:
        """Remembers the plan of a call that went well, where guards can watch over all of its tensors."""
        types = tuple(map(type, args))
        if not (_STATES and all(kind in _TENSORS or kind in _OPTIONS for kind in types)):
            return
        signature = self._signatures.get(types) or _Signature(types)
        tensors = signature.tensors(args)
        if tensors:
            self._signatures[types] = signature
            signature.add(args, tensors, plan)


class PlannedKernel:
    """A CPU kernel out of ``plan(*args)``, which checks everything but the data of a call and returns its plan."""

    def __init__(self, plan: Callable[..., Plan]) -> None:
        self._plan = plan
        self._parameters = list(inspect.signature(plan).parameters.values())
        self._repeats = Repeats()

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        rest = self._parameters[len(args) :]  # the dispatcher leaves defaults out
        args = (*args, *[keywords.get(parameter.name, parameter.default) for parameter in rest])
        plan, tensors = self.planned(args)
        return plan(*tensors)

    def planned(self, args: tuple) -> tuple[Plan, tuple[torch.Tensor, ...]]:
        """The plan of a call with all arguments by position, which may be that of an earlier one."""
        found = None if strict_soc() is not None else self._repeats.find(args)
        return found or self.plan(args)

    def plan(self, args: tuple) -> tuple[Plan, tuple[torch.Tensor, ...]]:
        plan = self._plan(*args)
        if strict_soc() is None:
            self._repeats.add(args, plan)
        return plan, tuple(value for value in args if isinstance(value, torch.Tensor))


class RepeatedOperator:
    """What a public function calls, with all arguments by position: repeated calls go past the dispatcher."""

    def __init__(self, call: Callable[..., Any], kernel: PlannedKernel, keywords: Sequence[str] = ()) -> None:
        self._call = call
        self._kernel = kernel
        self._keywords = keywords  # of the last arguments of ``call``
        self._repeats = Repeats()

    def __call__(self, *args: Any) -> Any:
        if must_dispatch():
            return self._dispatch(args)
        found = self._repeats.find(args)
        if found is not None:
            plan, tensors = found
            return plan(*tensors)
        result = self._dispatch(args)
        if is_plain([value for value in args if isinstance(value, torch.Tensor)]):
            self._repeats.add(args, self._kernel.plan(args)[0])
        return result

    def _dispatch(self, args: tuple) -> Any:
        positional = len(args) - len(self._keywords)
        keywords = dict(zip(self._keywords, args[positional:], strict=True))
        return self._call(*args[:positional], **keywords)
