# SPDX-License-Identifier: Apache-2.0
"""Errors that only a GPU sees, because it alone reads the data: noted on the device, raised when somebody asks.

Each device has one 64-bit word. A kernel that meets a value which breaks a rule puts the number of the rule and the
position of the value there, unless a smaller one is there already. Nobody waits for it: `check_device_errors` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import is_fake

_NO_ERROR = 2**63 - 1
_POSITION_BITS = 48


@dataclass(frozen=True)
class _Rule:
    operator: str
    argument: str
    sentence: str


_rules: list[_Rule] = []
_words: dict[torch.device, torch.Tensor] = {}


def new_rule(operator: str, argument: str, sentence: str) -> int:
    """Registers a rule on the values of ``argument``, such as "must be in [0, 7]".

    Returns the number that a kernel adds to a position to report it.
    """
    _rules.append(_Rule(operator, argument, sentence))
    return (len(_rules) - 1) << _POSITION_BITS


def word(device: torch.device) -> torch.Tensor:
    """The word of ``device`` that kernels report to.

    It has to exist before a graph is captured, as memory that a capture allocates belongs to the graph.
    """
    if device not in _words:
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("anynpu: call an operator once before capturing a CUDA graph that contains it")
        made = torch.full((1,), _NO_ERROR, dtype=torch.int64, device=device)
        if device.type == "cuda":  # the next to report may be on another stream
            torch.cuda.current_stream(device).synchronize()
        _words.setdefault(device, made)  # another thread may have been faster
    return _words[device]


def within(values: torch.Tensor, low: int, limit: int, rule: int) -> torch.Tensor:
    """``values`` cut to [low, limit), for operators made of tensor operations; notes the first that was outside.

    An empty range is refused at once: a GPU stops for good where an index has nothing to point at.
    """
    if limit <= low and values.numel() > 0:
        broken = _rules[rule >> _POSITION_BITS]
        raise ValueError(f"{broken.operator}: every value of {broken.argument} {broken.sentence}, but there is none")
    note((values < low) | (values >= limit), rule)
    return values.clamp(low, limit - 1)


def note(wrong: torch.Tensor, rule: int) -> None:
    """Notes the first of ``wrong`` that is True as a position where ``rule`` is broken."""
    if wrong.numel() == 0:
        return
    if is_fake(wrong):  # of a graph that is traced, which reads no word: it raises where it runs
        broken = _rules[rule >> _POSITION_BITS]
        sentence = f"{broken.operator}: every value of {broken.argument} {broken.sentence}"
        torch._assert_async(~wrong.any(), sentence)
        return
    position = torch.arange(wrong.numel(), device=wrong.device).view(wrong.shape)
    noted = word(wrong.device)
    noted.copy_(torch.minimum(noted, torch.where(wrong, position + rule, _NO_ERROR).min()))


def check_device_errors(device: torch.device | str | int | None = None) -> None:
    """Waits for the GPUs (or one) and raises the error that a kernel met since the last call, if there was one.

    An operator on CUDA tensors checks shapes and dtypes at once, but not the values of its tensors: that would wait
    for the GPU. A kernel that meets a wrong value skips it and notes it. With several, the first rule in the order of
    their registration and the least position are told. The note is then cleared.

    Args:
        device: the GPU to ask; all that were used by default.

    Raises:
        ValueError: a value that breaks a rule of an operator.

    >>> import anynpu
    >>> anynpu.check_device_errors()
    """
    for known in list(_words) if device is None else [_as_device(device)]:
        if known.type == "cuda":
            torch.cuda.synchronize(known)
        if known in _words:
            _check(_words[known])


def _as_device(device: torch.device | str | int) -> torch.device:
    parsed = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if parsed.type == "cuda" and parsed.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return parsed


def _check(noted: torch.Tensor) -> None:
    code = int(noted)
    if code == _NO_ERROR:
        return
    noted.fill_(_NO_ERROR)
    if noted.is_cuda:
        torch.cuda.current_stream(noted.device).synchronize()
    rule, position = _rules[code >> _POSITION_BITS], code & (1 << _POSITION_BITS) - 1
    raise ValueError(
        f"{rule.operator}: every value of {rule.argument} {rule.sentence}, got another at flat position {position} "
        f"on {noted.device}"
    )
