# SPDX-License-Identifier: Apache-2.0
"""Attention over float, int8 or int4 keys and values of sequences of their own lengths."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.fused_attention import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.composite"))


def fused_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    k_offset: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    v_offset: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    q_lengths: torch.Tensor | None = None,
    kv_lengths: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    before: int = spec.ALL,
    after: int = spec.ALL,
    from_end: bool = False,
    packed: bool = False,
    with_lse: bool = False,
    out_scale: torch.Tensor | None = None,
    out_offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    p_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``softmax(q @ k^T * softmax_scale, hidden) @ v`` where keys and values lie, float or codes, in float32.

    Query head h reads kv head ``h // (Nq / Nkv)``. int8 and int4 keys and values are ``(code + offset) * scale``.

    Args:
        q: float16, bfloat16, float32 or int8 ``[B, S, Nq, D]``.
        k, v: of q's dtype or int8, ``[B, T, Nkv, D]`` and ``[B, T, Nkv, Dv]``, or int32, eight int4 a word as
            ``int4_pack`` has them, ``[B, T, Nkv, D / 8]``. As q any strides but that of the last axis, 1.
        q_lengths, kv_lengths: int64 ``[B]``, rows of each sequence; all by default.
        block_table: int32 ``[B, blocks]``: k and v are ``[P, T, ..]``, row r of sequence b is
            ``[block_table[b, r // T], r % T]``. Entries behind kv_lengths, which it needs, are not read.
        mask: bool, int8 or uint8 ``[B or 1, Nq or 1, S or more, T or more]``; what is not 0 is hidden.
        sink: ``[Nq]``, of each head the score of one more key, which all queries see and whose value is 0.
        q_rope, k_rope: ``[.., Dr]``, further values of the heads of q and float k.
        k_scale, k_offset, v_scale, v_offset: of any of these float dtypes, for each head and channel,
            ``[1, 1, Nkv or 1, D or 1]``, or each token, ``[B, T, Nkv or 1, 1]`` (``[P, T, ..]``).
        softmax_scale: ``D ** -0.5`` by default.
        before, after: row i sees columns from ``i - before`` to ``i + after``; from 2147483647 on all.
        from_end: i is counted from where the last row meets the last column, otherwise from the first of both.
        packed: sequences lie one after the other in q ``[1, S, ..]``, and k and v ``[1, T, ..]`` without a block_table;
            their lengths are running sums, of kv only without a block_table. No mask.
        with_lse: the log-sum-exp of the scores is wanted, without that of the sink.
        out_scale, out_offset: ``[Nq or 1, Dv or 1]`` of any of these float dtypes: the result is the int8
            ``saturate(rint(out * out_scale + out_offset))`` of the float32 one.
        bias: ``[B or 1, Nq or 1, S or more, T or more]`` of any of these float dtypes, added to the scaled scores.
        p_scale: ``[1]``, of int8 q alone, whose k and v are int8 with one scale for each head: the weights become the
            int8 ``saturate(rint(weights * p_scale))`` before they meet the codes of v.

    Returns:
        ``[B, S, Nq, Dv]`` in the dtype of q (int8: float16) or int8, and float32 ``[B, S, Nq]``, empty unless
        ``with_lse``. Rows behind their sequence give 0 and 0, rows that see nothing 0 and -inf. The same bits for any
        number of threads.

    Raises:
        TypeError: a dtype.
        ValueError: a shape; a length or used block out of range.
        NotImplementedError: ropes beside int8 or int4 keys, a mask or bias for packed sequences.

    >>> import torch, anynpu
    >>> q, k = torch.zeros(1, 2, 1, 2), torch.tensor([[[[4.0, 2.0]], [[8.0, -6.0]]]])
    >>> anynpu.fused_attention(q, k, k, after=0)[0].tolist()
    [[[[4.0, 2.0]], [[6.0, -2.0]]]]
    """
    return _op(
        q, k, v, q_rope, k_rope, k_scale, k_offset, v_scale, v_offset, block_table, mask, sink, q_lengths, kv_lengths,
        softmax_scale, before, after, from_end, packed, with_lse, out_scale, out_offset, bias, p_scale,
    )  # fmt: skip
