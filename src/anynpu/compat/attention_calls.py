# SPDX-License-Identifier: Apache-2.0
"""Calls of ``fused_attention`` that published arguments come to, and those calls when they repeat.

The layers of a model attend with the same layouts and lengths: what the arguments of the first mean holds for all. What
``fused_attention`` takes are views of the caller's tensors, to be made again of other tensors, or depends on options.
"""

from __future__ import annotations

import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anynpu._register import operators
from anynpu._repeat import Repeats, is_plain, must_dispatch
from anynpu.compat.attention_layouts import laid_out
from anynpu.compat.gradients import with_gradients
from anynpu.ops.fused_attention import composite, fused_attention

Results = tuple[torch.Tensor, torch.Tensor]

_PARAMETERS = inspect.signature(fused_attention).parameters
_LENGTHS = ("q_lengths", "kv_lengths")  # made of options


@dataclass(frozen=True)
class Call:
    """A call of ``fused_attention``, and how its results are to lie."""

    arguments: dict[str, Any]
    layout: str
    unread: torch.Tensor | None = None  # a tensor of the caller's of which only the shape counted

    def __call__(self) -> Results:
        """The result in its layout, and the log-sum-exp, (B, N, S, 1) or (T, N, 1), a 0 unless asked for."""
        rest = dict(self.arguments)
        tensors = [rest.pop(name) for name in "qkv"]
        return self._laid_out(*with_gradients(fused_attention, composite.fused_attention, *tensors, **rest))

    def _laid_out(self, out: torch.Tensor, lse: torch.Tensor) -> Results:
        if not self.arguments["with_lse"]:
            return laid_out(out, self.layout), lse.new_zeros(1)
        lse = lse.squeeze(0) if self.arguments["packed"] else lse.transpose(1, 2)
        return laid_out(out, self.layout), lse.unsqueeze(-1).contiguous()

    def plan(self, given: Sequence[torch.Tensor]) -> Callable[..., Results] | None:
        """The same call of other tensors like ``given``, those of the caller; None if their data had a say in it."""
        args = tuple(self.arguments.get(name, parameter.default) for name, parameter in _PARAMETERS.items())
        views, viewed = [], {id(self.unread)}
        for name, value in zip(_PARAMETERS, args, strict=True):
            if not isinstance(value, torch.Tensor):
                continue
            if name in _LENGTHS:
                views.append((value, 0, (), ()))
                continue
            sources = [i for i, tensor in enumerate(given) if _starts_at(value, tensor)]
            if len({id(given[i]) for i in sources}) != 1:
                return None
            views.append((None, sources[0], value.shape, value.stride()))
            viewed.add(id(given[sources[0]]))
        if any(id(tensor) not in viewed for tensor in given):
            return None
        run, _ = operators["fused_attention"].cpu.planned(args)
        lying = Call({name: self.arguments[name] for name in ("with_lse", "packed")}, self.layout)

        def call(*tensors: torch.Tensor) -> Results:
            taken = [lengths if lengths is not None else tensors[i].as_strided(*view) for lengths, i, *view in views]
            return lying._laid_out(*run(*taken))

        return call


def _starts_at(view: torch.Tensor, tensor: torch.Tensor) -> bool:
    return view.data_ptr() == tensor.data_ptr() and view.dtype == tensor.dtype


def repeated(body: Callable[..., Call]) -> Callable[..., Results]:
    """The results of the call that ``body`` makes of its arguments, which it is not asked for again and again.

    It is asked twice: remembering takes almost as long, and programs with one layer never have the same lengths.
    """
    memories: defaultdict[tuple, Repeats] = defaultdict(Repeats)  # by which arguments are given
    latest: dict[tuple, list[Any]] = {}  # likewise, what else than tensors was given

    @functools.wraps(body)
    def function(*args: Any, **kwargs: Any) -> Results:
        if must_dispatch():
            return body(*args, **kwargs)()
        names, given = (len(args), *kwargs), (*args, *kwargs.values())
        found = memories[names].find(given)
        if found is not None:
            plan, tensors = found
            return plan(*tensors)
        call = body(*args, **kwargs)
        results = call()
        options = [value for value in given if not isinstance(value, torch.Tensor)]
        if options == latest.get(names):
            tensors = [value for value in given if isinstance(value, torch.Tensor)]
            plan = call.plan(tensors) if is_plain(tensors) else None
            if plan is not None:
                memories[names].add(given, plan)
        latest[names] = options
        return results

    return function
