# SPDX-License-Identifier: Apache-2.0
"""What stands between the two matrix products of a quantised feed-forward layer, in one pass."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.dequant_swiglu_quant import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.triton"))


def dequant_swiglu_quant(
    x: torch.Tensor,
    *,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Dequantises x, applies SwiGLU to the halves of each row, and quantises the result; all in float32.

    1. int32 x: ``(x + bias) * weight_scale * activation_scale``; a float bias is added last. Other x are taken as they
       are, whatever scales and bias are passed.
    2. ``swiglu_mode`` 0: ``a * sigmoid(a) * b``, a the **right** half unless ``activate_left``. Mode 1: even columns g,
       odd columns u, ``g = min(g, clamp_limit)``, ``u`` within ``+-clamp_limit``,
       ``g * sigmoid(glu_alpha * g) * (u + glu_bias)``. Mode 2: the same of the halves of mode 0.
    3. ``quant_mode`` 0: ``y = value / quant_scale + quant_offset``, scale 0. Mode 1: ``value *= quant_scale``,
       ``scale = max |value| / 127`` of each row, ``y = value / scale``. Rounded half to even; a row of zeros gives
       scale 0 and codes 0, as NaN does.

    Args:
        x: int32, float32, float16 or bfloat16 ``[..., 2 H]``, two axes at least.
        weight_scale: float32 ``[G, 2 H]``, or ``[2 H]`` for one group.
        activation_scale: float32, a value for each row; None: 1.
        bias: int32, float32, float16 or bfloat16 ``[2 H]``; not with group_index.
        quant_scale: float32 ``[G, H]`` or ``[G]`` (``[H]`` for one group); float16 and bfloat16 too in mode 1.
        quant_offset: as quant_scale; mode 0 without group_index only.
        group_index: int64 ``[G]``, how many consecutive rows each group has; None: one group with all rows. Rows
            beyond the groups give scale 0 and codes 0.

    Returns:
        int8 ``[..., H]`` and float32 scales ``[...]``.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, modes, or counts that are negative or more than the rows.

    Source: torch_npu.npu_dequant_swiglu_quant.

    >>> import torch, anynpu
    >>> x = torch.tensor([[10, 40, 100, -100]], dtype=torch.int32)
    >>> y, scale = anynpu.dequant_swiglu_quant(x, weight_scale=torch.full((4,), 0.1), quant_mode=1)
    >>> y.tolist()
    [[127, 0]]
    """
    return _op(
        x, weight_scale, activation_scale, bias, quant_scale, quant_offset, group_index,
        activate_left, quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias,
    )  # fmt: skip
