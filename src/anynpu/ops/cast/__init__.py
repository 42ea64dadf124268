# SPDX-License-Identifier: Apache-2.0
"""Conversion between dtypes."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.cast import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.composite"))


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Converts ``x`` to ``dtype``: saturating from float to integer, with one rounding to any float.

    ============ ============================================================================
    to           rule
    ============ ============================================================================
    a float      the nearest value, half to even, of the exact input; overflow gives infinity
    an integer   of a float: truncated, then saturated; NaN gives 0.
                 Of an integer or bool: two's complement, the high bits dropped
    bool         ``x != 0``
    ============ ============================================================================

    Args:
        x: any shape and strides; float16, bfloat16, float32, float64, int8 to int64, uint8 to uint64 or bool.
        dtype: any of the same.

    Returns:
        A contiguous tensor of ``x``'s shape.

    Raises:
        TypeError: a dtype other than these.
        ValueError: more than 8 axes.

    Source: aclnnCast.

    >>> import torch, anynpu
    >>> anynpu.cast(torch.tensor([-1.7, 300.0, float("nan")]), torch.int8).tolist()
    [-1, 127, 0]
    >>> anynpu.cast(torch.tensor([-1, 256, 257]), torch.uint8).tolist()
    [255, 0, 1]
    """
    return _op(x, dtype)
