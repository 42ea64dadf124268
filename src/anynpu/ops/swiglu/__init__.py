# SPDX-License-Identifier: Apache-2.0
"""The gated activation of most language models."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.swiglu import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.composite"))


def swiglu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """``a * sigmoid(a) * b``, a the **first** half of x along ``dim``, b the second; in float32, rounded once.

    Args:
        x: float32, float16 or bfloat16, one to eight axes.
        dim: the axis, of an even size.

    Returns:
        The dtype of x, half as large along dim.

    Raises:
        TypeError: a dtype other than these.
        ValueError: an axis that x does not have, or of an odd size.

    Source: torch_npu.npu_swiglu.

    >>> import torch, anynpu
    >>> anynpu.swiglu(torch.tensor([0.0, 100.0, 3.0, 2.0]))
    tensor([  0., 200.])
    """
    return _op(x, dim)
