# SPDX-License-Identifier: Apache-2.0
"""The published operator of a whole feed-forward block: two products of groups of rows around an activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import anynpu
from anynpu._check import require, require_dtype
from anynpu.compat.float_operators import fast_gelu
from anynpu.compat.published import Dtype, published, torch_dtype
from anynpu.ops.grouped_matmul_combine.weights import unpack_scale

_ACTIVATIONS = {
    "fastgelu": fast_gelu,
    "gelu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "silu": torch.nn.functional.silu,
}
_GATED = ("geglu", "swiglu", "reglu")
Parameter = torch.Tensor | None


@published(
    "npu_ffn(Tensor x, Tensor weight1, Tensor weight2, str activation, *, SymInt[]? expert_tokens=None, "
    "SymInt[]? expert_tokens_index=None, Tensor? bias1=None, Tensor? bias2=None, Tensor? scale=None, "
    "Tensor? offset=None, Tensor? deq_scale1=None, Tensor? deq_scale2=None, Tensor? antiquant_scale1=None, "
    "Tensor? antiquant_scale2=None, Tensor? antiquant_offset1=None, Tensor? antiquant_offset2=None, "
    "int? inner_precise=None, ScalarType? output_dtype=None) -> Tensor",
    "aclnnFFNV3",
)
def npu_ffn(
    x: torch.Tensor,
    weight1: torch.Tensor,
    weight2: torch.Tensor,
    activation: str,
    *,
    expert_tokens: Sequence[int] | None = None,
    expert_tokens_index: Sequence[int] | None = None,
    bias1: Parameter = None,
    bias2: Parameter = None,
    scale: Parameter = None,
    offset: Parameter = None,
    deq_scale1: Parameter = None,
    deq_scale2: Parameter = None,
    antiquant_scale1: Parameter = None,
    antiquant_scale2: Parameter = None,
    antiquant_offset1: Parameter = None,
    antiquant_offset2: Parameter = None,
    inner_precise: int | None = None,
    output_dtype: Dtype | None = None,
) -> torch.Tensor:
    """``activation(x @ weight1 + bias1) @ weight2 + bias2`` in the dtype of x, the inner result rounded to it.

    Weights are (K, N), or (E, K, N) for experts: rows of x then belong to them in turn, ``expert_tokens`` of each, or
    up to ``expert_tokens_index``. int8 and packed int4 weights with ``antiquant_*`` are ``(weight + offset) * scale``.
    int8 x: ``round(activation((x @ weight1 + bias1) * deq_scale1) * scale + offset)`` in int8, times weight2, plus
    bias2, times deq_scale2, in ``output_dtype``, float16 or bfloat16. ``inner_precise`` has no effect.
    """
    op = "npu_ffn"
    if activation in _GATED:
        raise NotImplementedError(
            f"activation {activation} is not implemented by anynpu, {', '.join(_ACTIVATIONS)} are"
        )
    require(op, activation in _ACTIVATIONS, f"activation must be {' or '.join(_ACTIVATIONS)}, got {activation!r}")
    require(op, x.dim() >= 2, f"x must have at least 2 axes, got {x.dim()}")
    rows = x.flatten(0, -2)
    experts = _Experts(op, rows.shape[0], weight1, weight2, expert_tokens, expert_tokens_index)
    apply = _ACTIVATIONS[activation]
    if x.dtype == torch.int8:
        dtype = torch.float16 if output_dtype is None else torch_dtype("output_dtype", output_dtype)
        for name, parameter in (("scale", scale), ("deq_scale1", deq_scale1), ("deq_scale2", deq_scale2)):
            if parameter is None:
                raise TypeError(f"{op}: {name} must be a tensor with int8 x, got NoneType")
        sums = experts.product(rows, weight1, bias1, dtype=torch.int32)
        inner = apply(sums.float() * experts.by_row("deq_scale1", _decoded(deq_scale1)))
        inner = inner * experts.by_row("scale", scale)
        if offset is not None:
            inner = inner + experts.by_row("offset", offset)
        inner = inner.round().clamp(-128, 127).to(torch.int8)
        y = experts.product(inner, weight2, bias2, scale=_decoded(deq_scale2), dtype=dtype)
    else:
        inner = experts.product(
            rows, weight1, bias1, antiquant_scale=antiquant_scale1, antiquant_offset=antiquant_offset1
        )
        inner = apply(inner.float()).to(x.dtype)
        y = experts.product(inner, weight2, bias2, antiquant_scale=antiquant_scale2, antiquant_offset=antiquant_offset2)
    return y.view(*x.shape[:-1], y.shape[-1])


def _decoded(scale: torch.Tensor) -> torch.Tensor:
    """float32 scales, also of words of ``npu_trans_quant_param``."""
    return unpack_scale(scale) if scale.dtype in (torch.int64, torch.uint64) else scale.float()


class _Experts:
    """Whose rows are whose; one expert has all where weights are 2-D."""

    def __init__(
        self,
        op: str,
        rows: int,
        weight1: torch.Tensor,
        weight2: torch.Tensor,
        counts: Sequence[int] | None,
        ends: Sequence[int] | None,
    ) -> None:
        self.op, self.rows, axes = op, rows, weight1.dim()
        require(op, axes in (2, 3), f"weight1 must have shape (K, N) or (E, K, N), got {tuple(weight1.shape)}")
        require(op, weight2.dim() == axes, f"weight2 must have {axes} axes as weight1, got {tuple(weight2.shape)}")
        self.stacked = axes == 3
        given = (counts is not None) + (ends is not None)
        require(op, given == self.stacked, "one of expert_tokens and expert_tokens_index must be given for 3-D weights")
        if ends is not None:
            counts = [end - start for start, end in zip((0, *ends), ends, strict=False)]
        counts = [rows] if counts is None else list(counts)
        sound = min(counts, default=0) >= 0 and sum(counts) == rows
        require(op, sound, f"the rows of experts must add up to {rows}, those of x, got {counts}")
        self.counts = torch.tensor(counts, dtype=torch.int64, device=weight1.device)

    def product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Parameter,
        scale: Parameter = None,
        antiquant_scale: Parameter = None,
        antiquant_offset: Parameter = None,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        lists = {"bias": bias, "scale": scale, "antiquant_scale": antiquant_scale, "antiquant_offset": antiquant_offset}
        given = {name: [self._stack(tensor)] for name, tensor in lists.items() if tensor is not None}
        return anynpu.grouped_matmul(
            [x], [self._stack(weight)], group_list=self.counts, group_list_type=1, group_type=0, split_item=3,
            output_dtype=dtype, **given,
        )[0]  # fmt: skip

    def _stack(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.stacked else tensor.unsqueeze(0)

    def by_row(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        """(E,) or (E, N), without experts (1,) or (N,), for the rows of x."""
        require_dtype(self.op, name, parameter, (torch.float32,))
        stacked = self._stack(parameter)
        shape, experts = tuple(stacked.shape), self.counts.numel()
        require(
            self.op,
            len(shape) in (1, 2) and shape[0] == experts,
            f"{name} must have a row for each expert, got {shape}",
        )
        return stacked.reshape(experts, -1).repeat_interleave(self.counts, 0, output_size=self.rows)
