# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.contrib.function``: what models of vision and language call, in torch's operators, with gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from anynpu.compat.errors import module_getattr


def roll(x: torch.Tensor, shifts: Sequence[int], dims: Sequence[int]) -> torch.Tensor:
    """``torch.roll`` of a 4-D tensor by two shifts."""
    if x.dim() != 4 or len(shifts) != 2 or len(dims) != 2:
        raise ValueError(
            f"roll: wants a 4-D tensor, 2 shifts and 2 dims, got {x.dim()}-D, {len(shifts)} and {len(dims)}"
        )
    return torch.roll(x, tuple(shifts), tuple(dims))


def matmul_transpose(tensor1: torch.Tensor, tensor2: torch.Tensor) -> torch.Tensor:
    """``tensor1 @ tensor2.mT``."""
    return tensor1 @ tensor2.mT


def npu_fast_condition_index_put(x: torch.Tensor, condition: torch.Tensor, value: float) -> torch.Tensor:
    """A copy of x that holds ``value`` where ``condition``, of bools, is true."""
    if condition.dtype != torch.bool:
        raise TypeError(f"npu_fast_condition_index_put: condition must be torch.bool, got {condition.dtype}")
    return x.masked_fill(condition, value)


def dropout_with_byte_mask(
    input1: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    """``torch.nn.functional.dropout``, not in place."""
    if inplace or not 0 <= p <= 1:
        raise ValueError(f"dropout_with_byte_mask: p must be in [0, 1] and inplace False, got {p} and {inplace}")
    return torch.nn.functional.dropout(input1, p, training)


def fuse_add_softmax_dropout(
    training: bool,
    dropout: Callable[[torch.Tensor], torch.Tensor],
    attn_mask: torch.Tensor,
    attn_scores: torch.Tensor,
    attn_head_size: float,
    p: float = 0.5,
    dim: int = -1,
) -> torch.Tensor:
    """``dropout(softmax(attn_mask + attn_scores / sqrt(attn_head_size)))`` along the last dimension.

    ``dropout`` is called for all shapes; ``training`` and ``p``, with which it must agree, and ``dim`` have no effect.
    """
    scores = torch.add(attn_mask, attn_scores, alpha=1 / math.sqrt(attn_head_size))
    return dropout(scores.softmax(-1))


__getattr__ = module_getattr(__name__, globals())
