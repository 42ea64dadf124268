# SPDX-License-Identifier: Apache-2.0
"""Writing an INT8 KV cache and attention over it: the problems, anynpu's variants, and what torch does instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from measure import Variant, copies_for

import anynpu
from anynpu.ops.kv_cache_attention.spec import sample_arguments as attention_arguments
from anynpu.ops.rope_kv_cache.spec import sample_arguments as rope_arguments

_SHORT = {torch.int32: "int32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class RopeProblem:
    """x [B, S, H] to q in float16 and a row of the cache for each token, contiguous mode."""

    leading: tuple[int, int]
    heads: tuple[int, int]  # Nq, Nkv
    dtype: torch.dtype
    head_size = 128
    operations = 0  # it is bound by memory

    @property
    def name(self) -> str:
        """For tables and the command line."""
        width = (self.heads[0] + 2 * self.heads[1]) * self.head_size
        return f"x{self.leading[0]}x{self.leading[1]}x{width}_{_SHORT[self.dtype]}"

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Of anynpu.rope_kv_cache."""
        batch, length = self.leading
        cache = (batch, max(length, 16))
        half = torch.float16
        args = rope_arguments(self.leading, self.heads, self.head_size, self.dtype, half, cache, [0] * batch)
        if self.dtype == torch.int32:
            args["weight_scale"] = torch.rand(args["x"].shape[-1]) * 1e-4
            args["activation_scale"] = torch.rand(batch * length) + 0.5
        return args

    @property
    def bytes(self) -> int:
        """x, cos and sin read, q and two codes a kv channel written."""
        tokens = self.leading[0] * self.leading[1]
        q_heads, kv_heads = self.heads
        written = tokens * self.head_size * (2 * q_heads + 2 * kv_heads)
        return self.arguments["x"].nbytes + 2 * self.arguments["cos"].nbytes + written

    def variant(self, name: str, function: Callable[..., torch.Tensor]) -> Variant:
        """``function`` takes the arguments by name and returns q."""
        args = self.arguments

        def call_with(x: torch.Tensor) -> Callable[[], torch.Tensor]:
            copy = {**args, "x": x}
            return lambda: function(**copy)

        return Variant(
            name=name,
            arithmetic=f"{_SHORT[self.dtype]} to fp16 and int8",
            calls=[call_with(args["x"].clone()) for _ in range(copies_for(args["x"].nbytes))],
            expected=self._expected,
            tolerance=2.0**-10,
            bytes=self.bytes,
        )

    def _expected(self) -> torch.Tensor:
        caches = {name: self.arguments[name].clone() for name in ("k_cache", "v_cache")}
        return anynpu.reference.rope_kv_cache(**{**self.arguments, **caches})[0]


def rope_problems(quick: bool) -> Iterator[RopeProblem]:
    """The shapes of the operator's document and of a model with 32 and 8 heads."""
    shapes = [((320, 1), (8, 1))]
    if not quick:
        shapes += [(leading, (32, 8)) for leading in ((1, 1), (32, 1), (1024, 1), (8, 128))]
    for leading, heads in shapes:
        for dtype in (torch.int32, torch.float16):
            yield RopeProblem(leading, heads, dtype)


def rope_variants(problem: RopeProblem) -> Iterator[Variant]:
    """The operator, through its public function."""
    yield problem.variant("anynpu", lambda **args: anynpu.rope_kv_cache(**args)[0])


def rope_peers(problem: RopeProblem) -> Iterator[Variant]:
    """The same with tensor operations, eager and compiled by Inductor."""
    yield problem.variant("torch eager", rope_with_tensor_operations)
    torch.compiler.reset()  # or it gives up on a function compiled for many shapes
    compiled = torch.compile(rope_with_tensor_operations, dynamic=False)
    yield problem.variant("torch.compile", compiled)


def rope_with_tensor_operations(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    indices: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    size_splits: list[int],
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """As a model would write it: float32 arithmetic, index_put for the rows."""
    batch, length, _ = x.shape
    y = x.float()
    if weight_scale is not None:
        y = y * weight_scale * activation_scale.view(batch, length, 1)
    q, k, v = (part.unflatten(-1, (-1, cos.shape[-1])) for part in y.split(size_splits, -1))

    def rotate(t: torch.Tensor) -> torch.Tensor:
        low, high = t.chunk(2, -1)
        return t * cos.float() + torch.cat([-high, low], -1) * sin.float()

    k = rotate(k)
    plane = torch.arange(batch)[:, None]
    row = indices[:, None] + torch.arange(length)
    k_cache[plane, row] = torch.round(k / scale_k).clamp(-128, 127).to(torch.int8)
    v_cache[plane, row] = torch.round(v / scale_v).clamp(-128, 127).to(torch.int8)
    return rotate(q).to(cos.dtype)


@dataclass(frozen=True)
class AttentionProblem:
    """S new positions of each sequence over ``context`` rows, or where ``unequal`` half of them for each next pair."""

    batch: int
    length: int
    heads: tuple[int, int]
    context: int
    unequal: bool = False
    head_size = 128

    @property
    def name(self) -> str:
        """For tables and the command line."""
        unequal = "_unequal" if self.unequal else ""
        return f"b{self.batch}_s{self.length}_h{self.heads[0]}_{self.heads[1]}_context{self.context}{unequal}"

    @property
    def lengths(self) -> list[int]:
        """Rows of each sequence."""
        return [max(self.length, self.context >> (i // 2 if self.unequal else 0)) for i in range(self.batch)]

    @property
    def operations(self) -> int:
        """Of both products; the causal mask saves some of them when there are several positions."""
        return 4 * self.length * self.heads[0] * self.head_size * sum(self.lengths)

    @cached_property
    def arguments(self) -> dict[str, torch.Tensor]:
        """Of anynpu.kv_cache_attention, q in float16."""
        cache = (self.batch, self.context)
        return attention_arguments(
            self.batch, self.length, self.heads, self.head_size, torch.float16, cache, self.lengths
        )

    @property
    def seen(self) -> torch.Tensor | None:
        """The mask of torch, [B, 1, S, T]; None where every query sees all."""
        if self.length == 1 and not self.unequal:
            return None
        last = torch.tensor(self.lengths)[:, None] - self.length + torch.arange(self.length)
        return (torch.arange(self.context) <= last[..., None])[:, None]

    def float_caches(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """What the codes of k and v stand for."""
        args = self.arguments
        return (args["k_cache"] * args["scale_k"]).to(dtype), (args["v_cache"] * args["scale_v"]).to(dtype)

    def variant(
        self, name: str, arithmetic: str, k: torch.Tensor, v: torch.Tensor, function: Callable[..., torch.Tensor]
    ) -> Variant:
        """``function`` takes k and v, which are copied for every call."""

        def call_with(k: torch.Tensor, v: torch.Tensor) -> Callable[[], torch.Tensor]:
            return lambda: function(k, v)

        return Variant(
            name=name,
            arithmetic=arithmetic,
            calls=[call_with(k.clone(), v.clone()) for _ in range(copies_for(2 * k.nbytes))],
            expected=lambda: anynpu.reference.kv_cache_attention(**self.arguments),
            tolerance=0.01,  # float16 and bfloat16 caches round what the codes stand for
            bytes=2 * k.nbytes * sum(self.lengths) // (self.batch * self.context) + 2 * self.arguments["q"].nbytes,
        )


def attention_problems(quick: bool) -> Iterator[AttentionProblem]:
    """Decoding at batch 1 and 8, also of unequal lengths, and a chunk of a prompt, at context 2048."""
    yield AttentionProblem(1, 1, (32, 8), 2048)
    if not quick:
        yield AttentionProblem(8, 1, (32, 8), 2048)
        yield AttentionProblem(8, 1, (32, 8), 2048, unequal=True)
        yield AttentionProblem(1, 128, (32, 8), 2048)


def attention_variants(problem: AttentionProblem) -> Iterator[Variant]:
    """The operator, through its public function, and the one for float caches."""
    args = dict(problem.arguments)
    k, v, lengths = args.pop("k_cache"), args.pop("v_cache"), args["lengths"].long()
    yield problem.variant(
        "anynpu", "int8 cache", k, v, lambda k, v: anynpu.kv_cache_attention(k_cache=k, v_cache=v, **args)
    )
    for dtype in (torch.float16, torch.bfloat16):
        q = args["q"].to(dtype)

        def attend(k: torch.Tensor, v: torch.Tensor, q: torch.Tensor = q) -> torch.Tensor:
            return anynpu.fused_attention(q, k, v, kv_lengths=lengths, after=0, from_end=True)[0]

        name, caches = f"anynpu fused_attention {_SHORT[dtype]}", problem.float_caches(dtype)
        yield problem.variant(name, f"{_SHORT[dtype]} cache", *caches, attend)


def attention_peers(problem: AttentionProblem) -> Iterator[Variant]:
    """torch's fused attention over a float cache in the layout that it likes."""
    args, mask = problem.arguments, problem.seen
    for dtype in (torch.float16, torch.bfloat16):
        q = args["q"].to(dtype).transpose(1, 2)
        k, v = (cache.transpose(1, 2).contiguous() for cache in problem.float_caches(dtype))

        def attend(k: torch.Tensor, v: torch.Tensor, q: torch.Tensor = q) -> torch.Tensor:
            attention = torch.nn.functional.scaled_dot_product_attention
            return attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)

        yield problem.variant(f"torch SDPA {_SHORT[dtype]}", f"{_SHORT[dtype]} cache", k, v, attend)
