# SPDX-License-Identifier: Apache-2.0
"""Attention over float and int8 keys and values in C, against plain float64 attention of each sequence."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field, replace

import c_front_end
import pytest
import torch

import anynpu
from anynpu import _native

HALF, BF16, FLOAT, INT8 = torch.float16, torch.bfloat16, torch.float32, torch.int8
ALL = 2147483647
FUSED = ("aclnnFusedInferAttentionScoreV2", "aclnnFusedInferAttentionScoreV3")
INCRE = "aclnnIncreFlashAttentionV4"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def attend(q, k, v, hidden, scale, shift=0):
    """One sequence in float64: q (N, R, D), k (Nkv, C, D), v (Nkv, C, Dv), hidden (N, R, C). Also the log-sum-exp."""
    k, v = (x.double().repeat_interleave(q.shape[0] // k.shape[0], 0) for x in (k, v))
    scores = (q.double() @ k.mT * scale + shift).masked_fill(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp().masked_fill(hidden, 0)
    return weights.nan_to_num(0) @ v, lse


@dataclass
class Problem:
    """What a call computes, in the axes (B, S, N, D), and how its tensors are laid out."""

    rows: list[int]
    columns: list[int]
    heads: tuple[int, int] = (4, 2)
    size: int = 16
    value_size: int = 0
    dtype: torch.dtype = HALF
    codes: bool = False
    int4: str = ""  # codes of keys and values: "words" of eight or "tensors" of the dtype
    layout: str = "BSND"
    mode: int = 0  # of antiquantisation
    stacked: bool = False
    offsets: bool = True
    block_size: int = 0
    nbsd: bool = False  # blocks (blocks, N, block_size, D)
    sparse: int = 0
    before: int = ALL
    after: int = ALL
    mask: torch.Tensor | None = None
    rope: int = 0
    lse: bool = False
    shift: torch.Tensor | None = None
    products: bool = False  # of int8 queries
    quantised: str = ""  # result: "one" factor or those of "channels", in int8
    options: dict = field(default_factory=dict)

    def __post_init__(self):
        self.value_size = self.value_size or self.size
        batch, (n, n_kv) = len(self.rows), self.heads
        self.s, self.t = max(self.rows), max(self.columns)
        self.scale = self.size**-0.5
        self.q = random(batch, self.s, n, self.size + self.rope).to(self.dtype)
        shape = (1,) if self.quantised == "one" else (n, self.value_size)
        self.result_factors = [random(*shape, seed=9).abs() * 40, random(*shape, seed=10) * 9]
        sizes = (self.size + self.rope, self.value_size)
        shapes = [(batch, self.t, n_kv, size) for size in sizes]
        if self.products:
            generator = torch.Generator().manual_seed(7)
            self.q, *self.kv = (
                torch.randint(-128, 128, shape, generator=generator).to(INT8) for shape in (self.q.shape, *shapes)
            )
            self.product_scales = [torch.tensor([x]) for x in (2.0**-11, 127.0, 2.0**-5)]
            return
        if not self.codes:
            self.kv = [random(*shape, seed=at + 1).to(self.dtype) for at, shape in enumerate(shapes)]
            self.values = self.kv
            return
        generator = torch.Generator().manual_seed(7)
        limit = 8 if self.int4 else 128
        self.kv = [torch.randint(-limit, limit, shape, generator=generator).to(INT8) for shape in shapes]
        self.scales = [self.factors(at, seed=3 + at).abs() / 64 + 0.01 for at in range(2)]
        self.shifts = [self.factors(at, seed=5 + at) * 3 for at in range(2)]
        dtype = FLOAT if self.mode in (1, 3, 4, 5) else self.dtype
        self.scales, self.shifts = ([x.to(dtype) for x in each] for each in (self.scales, self.shifts))
        self.values = [
            (codes + (shift.float() if self.offsets else 0)) * scale.float()
            for codes, scale, shift in zip(self.kv, self.scales, self.shifts, strict=True)
        ]

    def factors(self, at, seed):
        """Of keys (0) or values (1), with the axes (B, T, N, D) or 1."""
        batch, n_kv, size = len(self.rows), self.heads[1], (self.size, self.value_size)[at]
        shape = {0: (1, 1, n_kv, size), 2: (1, 1, n_kv, 1), 6: (1, 1, 1, 1)}.get(self.mode)
        return random(*(shape or (batch, self.t, n_kv if self.mode in (3, 5) else 1, 1)), seed=seed)

    def hidden(self, b):
        rows, columns = self.rows[b], self.columns[b]
        i, j = torch.arange(rows)[:, None], torch.arange(columns)
        none = torch.zeros(rows, columns, dtype=torch.bool)
        if self.sparse in (0, 1):
            if self.mask is None:
                return none
            mask = self.mask
            mask = mask if mask.dim() == 4 else mask[(None,) * (4 - mask.dim())] if self.s > 1 else mask[:, None, None]
            mask = mask.expand(len(self.rows), *mask.shape[1:])[b, :, :rows, :columns].bool()
            if self.sparse == 1 or self.s == 1:
                return mask
            return mask | (j < i - self.before) | (j > i + self.after)
        if self.s == 1:
            return none
        if self.sparse in (3, 4):
            i = i + columns - rows
        return j > i if self.sparse in (2, 3) else (j < i - self.before) | (j > i + self.after)

    def expected(self):
        """(B, S, N, Dv) and (B, S, N)."""
        batch = len(self.rows)
        out = torch.zeros(*self.q.shape[:3], self.value_size, dtype=torch.float64)
        lse = torch.zeros(self.q.shape[:3], dtype=torch.float64)
        for b, (rows, columns) in enumerate(zip(self.rows, self.columns, strict=True)):
            if self.products:
                out[b, :rows] = self.attend_in_integers(b).transpose(0, 1)
                continue
            k, v = (x[b, :columns].transpose(0, 1) for x in self.values)
            shift = 0 if self.shift is None else self.shift.double().expand(batch, -1, -1, -1)[b, :, :rows, :columns]
            result, sums = attend(self.q[b, :rows].transpose(0, 1), k, v, self.hidden(b), self.scale, shift)
            out[b, :rows], lse[b, :rows] = result.transpose(0, 1), sums.mT
        return out, lse

    def attend_in_integers(self, b):
        """Weights become int8 between the products."""
        score_scale, weight_scale, value_scale = (x.double() for x in self.product_scales)
        query = self.q[b, : self.rows[b]].transpose(0, 1).double()
        key, value = (
            x[b, : self.columns[b]].transpose(0, 1).double().repeat_interleave(self.heads[0] // self.heads[1], 0)
            for x in self.kv
        )
        scores = (query @ key.mT * score_scale * self.scale).masked_fill(self.hidden(b), -torch.inf)
        codes = (scores.softmax(-1).nan_to_num(0) * weight_scale).round().clamp(-128, 127)
        return codes @ value * value_scale

    def bound(self, out):
        """Scores are off by at most e, weights by a factor of 1 + 2 e, and the mean of values by 2 e of the largest.

        For int8 codes with factors of channels q and weights are rounded to 15 bits and a sign (16-bit q; twice as many
        for float32) of the largest, of a query and of 128 rows.
        """
        if self.products:  # float32 may round one weight of a row to another code
            return 128 * self.product_scales[2] + out.abs() * 2.0**-10
        rounding = 0 if not self.codes else 2.0**-15 if self.dtype != FLOAT else 2.0**-30
        largest = [x.abs().max().item() for x in (self.q, *self.values)]
        e = self.scale * self.q.shape[-1] * largest[0] * largest[1] * ((self.q.shape[-1] + 12) * 2.0**-24 + rounding)
        size = largest[2] * (2 * e + (self.t + 12) * 2.0**-23 + 128 * rounding)
        return size + out.abs() * torch.finfo(self.dtype).eps

    def assert_right(self, result, expected):
        """``result`` in a layout; codes are at most half a unit away from what is rounded."""
        bound = self.bound(expected)
        if self.quantised:
            layout = self.layout.split("_")[-1]
            scale, offset = (
                x if x.numel() == 1 else self.laid_out(x.expand(*self.q.shape[:2], -1, -1), layout, self.rows)
                for x in (x.double() for x in self.result_factors)
            )
            expected = (expected * scale + offset).clamp(-128, 127)
            bound = bound * scale + 0.501
        assert ((result.double() - expected).abs() <= bound).all(), (result - expected).abs().max()

    # The layouts.
    def laid_out(self, x, layout, packed=None):
        if layout in ("TND", "NTD"):
            x = torch.cat([row[:length] for row, length in zip(x, packed, strict=True)])
            return (x if layout == "TND" else x.transpose(0, 1)).contiguous()
        x = x.permute(["BSND".index(axis) for axis in layout.replace("H", "ND")]).contiguous()
        return x.flatten(-2) if "H" in layout else x

    def blocks(self, x, fill):
        """The sequences of (B, T, N, D) in blocks in another order, and the table that finds them."""
        batch, per = len(self.rows), -(-self.t // self.block_size)
        order = torch.randperm(batch * per + 2, generator=torch.Generator().manual_seed(1))[: batch * per]
        pool = torch.full((batch * per + 2, self.block_size, *x.shape[2:]), fill, dtype=x.dtype)
        whole = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, per * self.block_size - self.t))
        pool[order] = whole.unflatten(1, (per, self.block_size)).flatten(0, 1)
        return pool, order.reshape(batch, per).int()

    def cache(self, x):
        if not self.block_size:
            return self.laid_out(x, self.layout.split("_")[0], self.columns)
        pool, self.table = self.blocks(x, 99)
        return pool.transpose(1, 2).contiguous() if self.nbsd else pool.flatten(-2)

    def factor_tensor(self, x):
        if self.mode in (0, 2, 6):
            return x.flatten()
        if self.mode in (4, 5):
            x, _ = self.blocks(x, 99.0)
        return x[..., 0, 0] if self.mode in (1, 4) else x.squeeze(-1).transpose(1, 2).contiguous()

    def cut(self, function, make):
        """The arguments of a call, its outputs, and what puts the first in the axes of ``expected``."""
        source, _, target = self.layout.partition("_")
        packed = source == "TND"
        parts = self.q.split([self.size, self.rope], -1) if self.rope else (self.q, None)
        query = self.laid_out(parts[0], source, self.rows)
        kv = (
            [anynpu.int4_pack(x.int().flatten(0, -2)).unflatten(0, x.shape[:-1]) for x in self.kv]
            if self.int4
            else self.kv
        )
        keys = kv[0].split([self.size, self.rope], -1) if self.rope else (kv[0], None)
        key, value = self.cache(keys[0]), self.cache(kv[1])
        shape = self.laid_out(torch.empty(*self.q.shape[:3], self.value_size), target or source, self.rows).shape
        out = make.output(list(shape), INT8 if self.quantised else self.dtype)
        products = [make.tensor(x) for x in self.product_scales] if self.products else [None] * 3
        if self.products and function[-1] == "3":  # the words that the chips want
            products[::2] = [make.tensor(self.product_scales[at].view(torch.int32).long()) for at in (0, 2)]
        shift = make.tensor(self.shift)
        result_factors = [make.tensor(x) for x in self.result_factors] if self.quantised else [None, None]
        lse_shape = [sum(self.rows), self.heads[0], 1] if packed else [len(self.rows), self.heads[0], self.s, 1]
        lse = make.output(lse_shape if self.lse else [1], FLOAT)
        code = c_front_end.INT4 if self.int4 == "tensors" else None
        lists = [make.tensors([make.tensor(x, code=code)]) for x in (key, value)]
        sums = [torch.tensor(each).cumsum(0).tolist() if packed else each for each in (self.rows, self.columns)]
        if self.block_size:
            sums[1] = self.columns
        stacked, separate = [None, None], [None] * 4
        if self.codes:
            tensors = [self.factor_tensor(x) for x in (*self.scales, *self.shifts)]
            if self.stacked:
                pairs = [torch.stack(tensors[:2]), torch.stack(tensors[2:]) if self.offsets else None]
                stacked = [make.tensor(x) for x in pairs]
            else:
                order = (0, 2, 1, 3)
                separate = [make.tensor(tensors[at] if at < 2 or self.offsets else None) for at in order]
        table = make.tensor(self.table) if self.block_size else None
        mask = self.mask if self.sparse in (0, 1) else torch.ones(2048, 2048).triu(1).bool()
        texts = ctypes.c_char_p(self.layout.encode())
        number = ctypes.c_int64
        mode = 0 if self.mode == 6 else self.mode
        sizes = [number(self.heads[0]), ctypes.c_double(self.scale)]
        if function == INCRE:
            lengths = None if set(self.columns) == {self.t} else make.ints(sums[1])
            arguments = [
                make.tensor(query),
                *lists,
                shift,
                make.tensor(mask),
                lengths,
                *products,
                *result_factors,
                *stacked,
                table,
                None,
            ]
            arguments += [*sizes, texts, number(self.heads[1]), number(self.block_size), number(1), out.handle]
            return arguments, out, lse
        rope = [make.tensor(x if x is None else f(x)) for f, x in ((self.query_rope, parts[1]), (self.cache, keys[1]))]
        arguments = [make.tensor(query), *lists, shift, make.tensor(mask), *map(make.ints, sums), *products]
        arguments += [
            *result_factors,
            *stacked,
            table,
            None,
            None,
            *separate,
            None,
            None,
            None,
            *([*rope, None] if function[-1] == "3" else []),
        ]
        arguments += [
            *sizes,
            number(self.before),
            number(self.after),
            texts,
            number(self.heads[1]),
            number(self.sparse),
        ]
        arguments += [
            number(0),
            number(self.block_size),
            number(mode),
            ctypes.c_bool(self.lse),
            number(mode),
            number(mode),
        ]
        return [*arguments, out.handle, lse.handle], out, lse

    def query_rope(self, x):
        return self.laid_out(x, self.layout.split("_")[0], self.rows)

    def run(self, function):
        with c_front_end.session() as make:
            arguments, out, lse = self.cut(function, make)
            outcome = c_front_end.call(function, *arguments)
            if outcome.status != 0:
                assert out.is_untouched() and lse.is_untouched()
                return outcome, None, None
            target = self.layout.split("_")[-1]
            expected, sums = self.expected()
            expected = self.laid_out(expected, target, self.rows)
            self.assert_right(out.tensor(list(expected.shape), INT8 if self.quantised else self.dtype), expected)
            if self.lse:
                sums = sums.unsqueeze(-1)
                wanted = self.laid_out(sums, "TND" if target.endswith("TD") or target == "TND" else "BNSD", self.rows)
                result = lse.tensor(list(wanted.shape), FLOAT).double()
                torch.testing.assert_close(result, wanted, rtol=2e-5, atol=2e-5)
            return outcome, out, lse


DECODE = Problem([1, 1, 1], [37, 5, 80])
PREFILL = Problem([9, 4], [40, 4], (6, 2))
PROBLEMS = {
    "decode": DECODE,
    "decode BSH": replace(DECODE, layout="BSH", dtype=BF16),
    "decode BNSD float32": replace(DECODE, layout="BNSD", dtype=FLOAT),
    "decode of length 0": replace(DECODE, columns=[3, 0, 9]),
    "decode odd sizes": replace(DECODE, size=17, heads=(3, 1)),
    "decode paged": replace(DECODE, layout="BSH", block_size=16),
    "decode paged BNSD": replace(DECODE, layout="BNSD", block_size=16, nbsd=True),
    "decode with a mask": replace(DECODE, mask=random(3, 80) > 0.5),
    "decode sees all in sparse mode 3": replace(DECODE, sparse=3),
    "decode int8": replace(DECODE, codes=True),
    "decode int8 BSH": replace(DECODE, codes=True, layout="BSH", dtype=BF16, offsets=False),
    "decode int8 BNSD": replace(DECODE, codes=True, layout="BNSD", heads=(6, 3)),
    "decode int8 float32": replace(DECODE, codes=True, dtype=FLOAT),
    "decode int8 stacked": replace(DECODE, codes=True, stacked=True),
    "decode int8 one scale": replace(DECODE, codes=True, mode=6),
    "decode int8 one scale stacked": replace(DECODE, codes=True, mode=6, stacked=True),
    "decode int8 paged": replace(DECODE, codes=True, layout="BSH", block_size=32),
    "decode int8 paged BNSD": replace(DECODE, codes=True, layout="BNSD", block_size=32, nbsd=True),
    "decode int8 tokens": replace(DECODE, codes=True, mode=1),
    "decode int8 tokens stacked": replace(DECODE, codes=True, mode=1, stacked=True),
    "decode int8 heads": replace(DECODE, codes=True, mode=2),
    "decode int8 tokens and heads": replace(DECODE, codes=True, mode=3),
    "decode int8 paged tokens": replace(DECODE, codes=True, mode=4, layout="BSH", block_size=16),
    "decode int8 paged tokens and heads": replace(DECODE, codes=True, mode=5, layout="BSH", block_size=16),
    "decode int8 of length 0": replace(DECODE, codes=True, columns=[3, 0, 9]),
    "decode int8 with a mask": replace(DECODE, codes=True, mask=random(3, 80) > 0.5),
    "decode int8 long": Problem([1], [700], (8, 2), 64, codes=True),
    "prefill": PREFILL,
    "prefill causal": replace(PREFILL, sparse=3),
    "prefill causal BSH": replace(PREFILL, sparse=3, layout="BSH", dtype=FLOAT),
    "prefill causal BNSD": replace(PREFILL, sparse=3, layout="BNSD"),
    "prefill causal from the top left": replace(PREFILL, sparse=2),
    "prefill band": replace(PREFILL, sparse=4, before=3, after=1),
    "prefill band of nothing": replace(PREFILL, sparse=4, before=-2, after=1),
    "prefill with a mask": replace(PREFILL, mask=random(9, 40) > 0),
    "prefill with a mask of batches": replace(PREFILL, mask=(random(2, 1, 9, 40) > 0).to(INT8), sparse=1),
    "prefill with a mask of heads": replace(PREFILL, mask=(random(2, 6, 9, 40) > 0).to(torch.uint8)),
    "prefill with a mask and tokens": replace(PREFILL, mask=random(9, 40) > 0, before=4, after=6),
    "prefill more rows than columns": replace(PREFILL, sparse=3, columns=[4, 40]),
    "prefill all hidden": replace(PREFILL, mask=torch.ones(9, 40).bool(), lse=True),
    "prefill log-sum-exp": replace(PREFILL, lse=True),
    "prefill long": Problem([70, 130], [200, 140], (4, 1), 40, sparse=3),
    "prefill with longer heads of keys": replace(PREFILL, size=24, value_size=8),
    "prefill BNSD_BSND": replace(PREFILL, layout="BNSD_BSND", lse=True),
    "prefill BSH_NBSD": replace(PREFILL, layout="BSH_NBSD"),
    "prefill BSND_NBSD": replace(PREFILL, layout="BSND_NBSD"),
    "prefill BNSD_NBSD": replace(PREFILL, layout="BNSD_NBSD"),
    "prefill TND": replace(PREFILL, layout="TND", sparse=3, lse=True),
    "prefill TND_NTD": replace(PREFILL, layout="TND_NTD"),
    "prefill TND paged": replace(PREFILL, layout="TND", sparse=3, block_size=16),
    "prefill int8": replace(PREFILL, codes=True),
    "prefill int8 causal": replace(PREFILL, codes=True, sparse=3),
    "prefill int8 causal together": replace(PREFILL, codes=True, sparse=3, rows=[9, 9], columns=[40, 30]),
    "prefill int8 causal BNSD": replace(PREFILL, codes=True, sparse=3, layout="BNSD", rows=[9, 9], columns=[40, 30]),
    "prefill int8 causal TND": replace(PREFILL, codes=True, sparse=3, layout="TND"),
    "prefill int8 causal TND paged": replace(PREFILL, codes=True, sparse=3, layout="TND", block_size=16),
    "prefill int8 more rows than columns": replace(PREFILL, codes=True, sparse=3, columns=[4, 40]),
    "prefill int8 log-sum-exp": replace(PREFILL, codes=True, sparse=2, lse=True),
    "prefill int8 tokens": replace(PREFILL, codes=True, mode=1),
    "decode int4": replace(DECODE, codes=True, int4="tensors"),
    "decode int4 words": replace(DECODE, codes=True, int4="words", layout="BSH", stacked=True, offsets=False),
    "decode int4 tokens": replace(DECODE, codes=True, int4="words", mode=1, layout="BNSD"),
    "decode int4 heads": replace(DECODE, codes=True, int4="tensors", mode=2),
    "decode int4 tokens and heads": replace(DECODE, codes=True, int4="tensors", mode=3, value_size=8),
    "decode int4 paged": replace(DECODE, codes=True, int4="tensors", layout="BSH", block_size=16),
    "decode int4 paged tokens": replace(DECODE, codes=True, int4="words", mode=4, layout="BSH", block_size=16),
    "decode int4 paged tokens and heads": replace(
        DECODE, codes=True, int4="words", mode=5, layout="BNSD", block_size=16, nbsd=True
    ),
    "prefill int4": replace(PREFILL, codes=True, int4="words", sparse=3, lse=True),
    "prefill int4 TND": replace(PREFILL, codes=True, int4="tensors", sparse=3, layout="TND", quantised="one"),
    "decode shift": replace(DECODE, shift=random(1, 4, 1, 80).half()),
    "decode int8 shift": replace(DECODE, codes=True, shift=random(3, 4, 1, 96)),
    "prefill shift": replace(PREFILL, sparse=3, shift=random(2, 6, 9, 40).half(), layout="BNSD", lse=True),
    "decode int8 products": replace(DECODE, products=True),
    "decode int8 products paged": replace(DECODE, products=True, layout="BSH", block_size=32),
    "prefill int8 products": replace(PREFILL, products=True, sparse=3, value_size=8),
    "prefill int8 products, result": replace(PREFILL, products=True, mask=random(9, 40) > 0, quantised="channels"),
    "prefill int8 products TND": replace(PREFILL, products=True, sparse=3, layout="TND"),
    "decode int8 result": replace(DECODE, quantised="one"),
    "decode int8 result by channels": replace(DECODE, quantised="channels", layout="BNSD", codes=True, stacked=True),
    "prefill int8 result": replace(PREFILL, quantised="one", sparse=3, lse=True),
    "prefill int8 result by channels": replace(PREFILL, quantised="channels", layout="BSH", dtype=BF16),
    "prefill int8 result by channels TND_NTD": replace(PREFILL, quantised="channels", layout="TND_NTD"),
}  # fmt: skip
ROPE = {
    "decode with ropes": replace(DECODE, rope=8),
    "prefill with ropes": replace(PREFILL, rope=8, sparse=3),
    "prefill with ropes TND paged": replace(PREFILL, rope=8, layout="TND", block_size=16),
}


@pytest.mark.parametrize("function", FUSED)
@pytest.mark.parametrize("name", PROBLEMS)
def test_fused_infer_attention_score(name, function):
    outcome, _, _ = PROBLEMS[name].run(function)
    assert outcome.status == 0, outcome


# The places of arguments that older versions lack.
OLDER = {
    "aclnnFusedInferAttentionScore": (FUSED[0], [*range(17, 24), 35, 36]),
    "aclnnIncreFlashAttentionV3": (INCRE, [14]),
    "aclnnIncreFlashAttentionV2": (INCRE, [*range(11, 15), 19, 20]),
    "aclnnIncreFlashAttention": (INCRE, [*range(6, 15), 19, 20]),
}


@pytest.mark.parametrize("function", OLDER)
def test_older_versions(function):
    newer, missing = OLDER[function]
    problem = replace(DECODE, columns=[80, 80, 80], lse=newer in FUSED)
    results = []
    for name, left_out in ((newer, []), (function, missing)):
        with c_front_end.session() as make:
            arguments, out, _ = problem.cut(newer, make)
            given = [argument for at, argument in enumerate(arguments) if at not in left_out]
            outcome = c_front_end.call(name, *given)
            assert outcome.status == 0, outcome
            results.append(out.read())
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ROPE)
def test_ropes(name):
    outcome, _, _ = ROPE[name].run("aclnnFusedInferAttentionScoreV3")
    assert outcome.status == 0, outcome


def only_increments(problem: Problem) -> bool:
    separate = problem.codes and not problem.stacked
    of_channels = problem.mode in (0, 6)  # it has no argument for another mode
    plain = problem.sparse == 0 and not separate and of_channels and problem.layout in ("BSH", "BSND", "BNSD")
    return problem.s == 1 and plain


@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if only_increments(problem)])
def test_incre_flash_attention(name):
    outcome, _, _ = PROBLEMS[name].run(INCRE)
    assert outcome.status == 0, outcome


@pytest.mark.parametrize("name", ["decode", "decode odd sizes", "prefill long", "decode int8", "decode int8 tokens"])
def test_every_tier(name, isa):
    outcome, _, _ = PROBLEMS[name].run(FUSED[1])
    assert outcome.status == 0, outcome


def test_results_do_not_depend_on_threads(each_thread_count):
    call = _native.Call("fused_attention", tensors=20, scalars="qqfiii")
    q, k, v = random(2, 70, 6, 24).half(), random(2, 300, 2, 24).half(), random(2, 300, 2, 40).half()
    lengths = torch.tensor([70, 33]), torch.tensor([300, 190])

    def attend():
        out = torch.empty(2, 70, 6, 40, dtype=HALF)
        call(q, k, v, *[None] * 9, *lengths, *[None] * 4, out, None, scalars=(ALL, 0, 0.2, 1, 0, 0))
        return out

    first, *others = each_thread_count(attend)
    assert all(torch.equal(first, other) for other in others)


def test_views():
    """Sequences and heads may lie anywhere, in outputs too: only the values of a head are side by side."""
    for codes in (False, True):
        problem = replace(DECODE, codes=codes, offsets=False)
        with c_front_end.session() as make:
            arguments, _, _ = problem.cut(FUSED[1], make)
            caches = [torch.stack([x, x], 2).to(x.dtype) for x in problem.kv]  # B, T, 2, N, D
            views = [x[:, :, 1] for x in caches]
            arguments[1:3] = [make.tensors([make.tensor(x)]) for x in views]
            arguments[0] = make.tensor(torch.cat([problem.q, problem.q], -1)[..., :16])
            whole = torch.full([3, 1, 4, 20], -91, dtype=HALF)
            arguments[-2] = make.tensor(whole[..., :16])
            outcome = c_front_end.call(FUSED[1], *arguments)
            assert outcome.status == 0, outcome
            result = make.find(arguments[-2]).tensor([3, 1, 4, 20], HALF)
        expected, _ = problem.expected()
        assert ((result[..., :16] - expected).abs() <= problem.bound(expected)).all()
        assert torch.equal(result[..., 16:], whole[..., 16:])


LAYOUT, HEADS, KV_HEADS, SPARSE, BLOCK_SIZE, MODE, KEY_MODE, OUT = 31, 27, 32, 33, 35, 36, 38, 40
CODES = replace(DECODE, codes=True)
ONE = torch.ones(1, dtype=torch.int32)
PREFIX = random(1, 5, 2, 16).to(HALF)
SHARED = {21: PREFIX, 22: PREFIX}
REFUSALS = {
    "no query": (DECODE, {0: None}, 161001, "query is a null pointer"),
    "no key": (DECODE, {1: None}, 161001, "key is a null pointer"),
    "no value": (DECODE, {2: None}, 161001, "value is a null pointer"),
    "no output": (DECODE, {OUT: None}, 161001, "attentionOut is a null pointer"),
    "shift": (DECODE, {3: torch.ones(1)}, 161002, "bias must have 4 axes"),
    "small shift": (DECODE, {3: torch.ones(1, 4, 1, 79)}, 361001, "bias must have at least 1 rows and 80 columns"),
    "quantised": (DECODE, {8: torch.ones(1)}, 161002, "quantScale1Optional and deqScale2Optional must be given for an"),
    "no products": (PROBLEMS["decode int8 products"], {9: None}, 161002, "must be given for an int8 query"),
    "products": (
        PROBLEMS["decode int8 products"],
        {8: torch.ones(2)},
        161002,
        "the scale of weights must hold one value",
    ),
    "no scale of scores": (PROBLEMS["decode int8 products"], {7: None}, 161002, "must be given for an int8 query"),
    "no scale of weights": (PROBLEMS["decode int8 products"], {8: None}, 161002, "must be given for an int8 query"),
    "scales of products": (
        PROBLEMS["decode int8 products"],
        {17: torch.ones(32), 19: torch.ones(32)},
        161002,
        "an int8 query excludes scales of antiquantisation",
    ),
    "result scale": (DECODE, {10: torch.ones(1)}, 161002, "out must be int8, got float16"),
    "result scales": (DECODE, {10: torch.ones(16)}, 161002, "quantScale2 must hold 1 or 64 values side by side"),
    "result offset alone": (DECODE, {11: torch.ones(1)}, 161001, "out_scale must be given for an out_offset"),
    "float padding": (DECODE, {16: torch.ones(1)}, 161002, "kvPaddingSize must be int64 or int32, got float32"),
    "two paddings": (DECODE, {16: ONE.expand(2)}, 161002, r"kvPaddingSize must hold one value, got shape \(2,\)"),
    "query padding": (DECODE, {15: ONE, 5: None}, 161002, "queryPaddingSize needs the lengths of its sequences"),
    "padding alone": (DECODE, {16: ONE, 6: None}, 161002, "kvPaddingSize needs the lengths of its sequences"),
    "padded length": (DECODE, {16: ONE, 6: [81, 1, 1]}, 161002, r"must be in \[0, 80\], got 81"),
    "negative padded length": (DECODE, {16: ONE, 6: [80, -1, 1]}, 161002, r"must be in \[0, 80\], got -1"),
    "padding in blocks": (replace(DECODE, block_size=16), {16: ONE}, 161002, "padding sizes are not implemented in"),
    "padding of TND": (replace(DECODE, layout="TND"), {16: ONE}, 161002, "padding sizes are not implemented in"),
    "padding of scaled tokens": (replace(CODES, mode=1), {16: ONE}, 161002, "padding sizes are not implemented in"),
    "padding and a mask of columns": (
        PREFILL,
        {16: ONE, 4: torch.zeros(9, 39).bool()},
        161002,
        "attenMask must have all rows and columns beside padding sizes",
    ),
    "padding and a mask of rows": (
        PREFILL,
        {16: ONE, 4: torch.zeros(8, 40).bool()},
        161002,
        "attenMask must have all rows and columns beside padding sizes",
    ),
    "prefix of keys": (DECODE, {21: PREFIX}, 161002, "keySharedPrefixOptional and valueSharedPrefixOptional must be"),
    "prefix length": (DECODE, {23: [1]}, 161002, "actualSharedPrefixLenOptional needs keySharedPrefixOptional"),
    "prefix lengths": (
        DECODE,
        {**SHARED, 23: [1, 2]},
        161002,
        "actualSharedPrefixLenOptional must hold one value, got 2",
    ),
    "long prefix": (DECODE, {**SHARED, 23: [6]}, 161002, r"actualSharedPrefixLenOptional must be in \[0, 5\], got 6"),
    "negative prefix": (DECODE, {**SHARED, 23: [-1]}, 161002, r"must be in \[0, 5\], got -1"),
    "float prefix": (DECODE, {**SHARED, 21: PREFIX.float()}, 161002, "keySharedPrefixOptional must have the dtype of"),
    "prefix of 3 axes": (
        DECODE,
        {**SHARED, 22: PREFIX[0]},
        161002,
        "valueSharedPrefixOptional must have 4 axes in layout",
    ),
    "two prefixes": (
        DECODE,
        {**SHARED, 21: PREFIX.expand(2, -1, -1, -1)},
        161002,
        "must have one sequence of heads of 16",
    ),
    "prefix of short heads": (DECODE, {**SHARED, 22: PREFIX[..., 1:]}, 161002, "must have one sequence of heads of 16"),
    "prefix of few values": (DECODE, {**SHARED, 22: PREFIX[:, 1:]}, 161002, "must have 5 tokens as keys have, got 4"),
    "prefix of a length": (DECODE, {**SHARED, 6: [81, 1, 1]}, 161002, r"must be in \[0, 80\], got 81"),
    "prefix of a negative length": (DECODE, {**SHARED, 6: [8, -1, 1]}, 161002, r"must be in \[0, 80\], got -1"),
    "prefix and padding": (DECODE, {**SHARED, 16: ONE}, 161002, "shared prefixes are not implemented in layout TND"),
    "prefix of TND": (replace(DECODE, layout="TND"), SHARED, 161002, "shared prefixes are not implemented in"),
    "prefix in blocks": (replace(DECODE, block_size=16), SHARED, 161002, "shared prefixes are not implemented in"),
    "prefix of scaled tokens": (replace(CODES, mode=1), SHARED, 161002, "shared prefixes are not implemented in"),
    "layout": (DECODE, {LAYOUT: b"SBH"}, 161002, "inputLayout must be one of BSH, BSND"),
    "heads": (DECODE, {HEADS: 0}, 161002, "numHeads must be greater than 0, got 0"),
    "other heads": (DECODE, {HEADS: 3}, 161002, "axis 2 of query must be its 3 heads, got 4"),
    "kv heads": (DECODE, {KV_HEADS: 3}, 161002, "axis 2 of key must be its 3 heads, got 2"),
    "kv heads below 0": (DECODE, {KV_HEADS: -1}, 161002, "numKeyValueHeads must be at least 0, got -1"),
    "joined heads": (
        replace(DECODE, layout="BSH"),
        {HEADS: 3},
        161002,
        "axis of query must be a multiple of its 3 heads",
    ),
    "axes": (DECODE, {0: torch.ones(3, 64).half()}, 161002, "query must have 4 axes in layout BSND"),
    "dtypes": (DECODE, {0: torch.ones(3, 1, 4, 16)}, 161002, "k must be float32 or int8 or int4, got float16"),
    "integers": (
        DECODE,
        {0: torch.ones(3, 1, 4, 16).int()},
        161002,
        "q must be float16 or bfloat16 or float32 or int8",
    ),
    "head size": (DECODE, {0: torch.ones(3, 1, 4, 8).half()}, 161002, "heads of k must be as long as those of q, 8"),
    "batch": (DECODE, {0: torch.ones(2, 1, 4, 16).half(), 5: None, 6: None}, 161002, "k must have 2 sequences"),
    "out": (DECODE, {OUT: torch.ones(3, 1, 4, 8).half()}, 161002, "out must have axes 3 to 3 of v"),
    "lengths": (DECODE, {6: [1, 2]}, 161002, "actualSeqLengthsKvOptional must have 1 or 3 values, got 2"),
    "length": (DECODE, {6: [1, 2, 81]}, 361001, "kv_lengths must be in .0, 80., got 81 at .2."),
    "negative length": (DECODE, {5: [-1, 1, 1]}, 361001, "q_lengths must be in .0, 1., got -1 at .0."),
    "sparse mode": (PREFILL, {SPARSE: 5}, 161002, "sparseMode must be 0, 1, 2, 3 or 4, got 5"),
    "negative sparse mode": (PREFILL, {SPARSE: -1}, 161002, "sparseMode must be 0, 1, 2, 3 or 4, got -1"),
    "no mask": (PREFILL, {SPARSE: 3, 4: None}, 161002, "attenMaskOptional must be given for sparseMode 3"),
    "mask": (PREFILL, {SPARSE: 3, 4: torch.ones(9, 40).bool()}, 161002, r"shape \(2048, 2048\) for sparseMode 3"),
    "band of a token": (replace(DECODE, sparse=4), {}, 161002, "must be 0, 1 or 3 for queries of one token, got 4"),
    "small mask": (PREFILL, {4: torch.ones(9, 39).bool()}, 361001, "mask must have at least 9 rows and 40 columns"),
    "flat mask": (PREFILL, {4: torch.ones(9).bool()}, 161002, "attenMask must have 2 to 4 axes, got shape .9,."),
    "mask of 5 axes": (PREFILL, {4: torch.ones(1, 1, 1, 9, 40).bool()}, 161002, "attenMask must have 2 to 4 axes"),
    "float mask": (PREFILL, {4: torch.ones(9, 40)}, 161002, "mask must be bool or int8 or uint8, got float32"),
    "no scale": (CODES, {17: None, 18: None}, 161002, "must be given together"),
    "no scales": (CODES, dict.fromkeys(range(17, 21)), 161001, "k_scale"),
    "scales of floats": (
        DECODE,
        {17: torch.ones(32), 19: torch.ones(32)},
        161002,
        "k_scale is for int8 or int4 k and v",
    ),
    "scale": (CODES, {17: torch.ones(31).half()}, 161002, "must hold 32 values of mode 0 side by side"),
    "offset of k alone": (DECODE, {18: torch.ones(32)}, 161002, "valueAntiquantOffsetOptional need scales"),
    "offset of v alone": (DECODE, {20: torch.ones(32)}, 161002, "valueAntiquantOffsetOptional need scales"),
    "stacked scales of one": (
        replace(CODES, stacked=True),
        {12: torch.ones(1, 32).half()},
        161002,
        "the first axis of antiquantScale must be 2, for key and value",
    ),
    "stacked offset alone": (
        replace(CODES, stacked=True, offsets=True),
        {12: None},
        161002,
        "antiquantOffset needs a scale",
    ),
    "mode": (CODES, {KEY_MODE: 6}, 161002, "must be equal, 0 to 5, or 0 and 1, got 6 and 0"),
    "negative modes": (CODES, {KEY_MODE: -1, 39: -1}, 161002, "must be equal, 0 to 5, or 0 and 1, got -1 and -1"),
    "unknown modes": (CODES, {KEY_MODE: 6, 39: 6}, 161002, "must be equal, 0 to 5, or 0 and 1, got 6 and 6"),
    "modes that do not go together": (CODES, {KEY_MODE: 1, 39: 0}, 161002, "must be equal, 0 to 5, or 0 and 1, got 1"),
    "mode of blocks": (CODES, {KEY_MODE: 4, 39: 4}, 161002, "of mode 4 is not implemented without a block table"),
    "stacked mode": (replace(CODES, stacked=True), {MODE: 2}, 161002, "antiquantMode must be 0 or 1, got 2"),
    "block size": (PROBLEMS["decode paged"], {BLOCK_SIZE: 32}, 161002, "blockSize must be that of key, 16, got 32"),
    "blocks": (
        PROBLEMS["decode paged"],
        {14: torch.full((3, 5), 17, dtype=torch.int32)},
        361001,
        r"block_table must be in \[0, 17\) where rows are used, got 17",
    ),
    "blocks of int8": (
        PROBLEMS["decode int8 paged"],
        {14: torch.full((3, 3), -1, dtype=torch.int32)},
        361001,
        "where rows are used, got -1",
    ),
    "lengths of blocks": (PROBLEMS["decode paged"], {6: None}, 161001, "kv_lengths must be given for a block_table"),
    "sums": (PROBLEMS["prefill TND"], {5: [9, 12]}, 361001, "running sums that end with the last, got 12"),
    "no sums": (PROBLEMS["prefill TND"], {5: None}, 161002, "must be given in layout TND"),
    "rope alone": (DECODE, {24: torch.ones(3, 1, 4, 8).half()}, 161002, "q_rope and k_rope must be given together"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    problem, changes, status, sentence = REFUSALS[name]
    with c_front_end.session() as make:
        arguments, out, lse = problem.cut(FUSED[1], make)
        for at, value in changes.items():
            arguments[at] = _changed(make, arguments[at], value)
        outcome = c_front_end.call(FUSED[1], *arguments)
        assert outcome.status == status, outcome
        assert re.search(sentence, outcome.sentence), outcome
        assert out.is_untouched() and lse.is_untouched()


def _changed(make, before, value):
    if isinstance(value, torch.Tensor):
        return make.tensor(value)
    if isinstance(value, list):
        return make.ints(value)
    return value if value is None else type(before)(value)


PROMPTS = ("aclnnPromptFlashAttentionV2", "aclnnPromptFlashAttentionV3")


def prompt(problem, function, changes=()):
    """The arguments of a fused call that it has, with key and value themselves; and how it went."""
    with c_front_end.session() as make:
        arguments, out, _ = problem.cut(FUSED[1], make)
        arguments[1:3] = [make.tensor(problem.cache(x)) for x in problem.kv]
        for at, value in dict(changes).items():
            arguments[at] = _changed(make, arguments[at], value)
        taken = [*range(12), *range(HEADS, SPARSE + 1 + (function == PROMPTS[1])), OUT]
        outcome = c_front_end.call(function, *(arguments[at] for at in taken))
        if outcome.status != 0:
            assert out.is_untouched()
            return outcome, None
        expected = problem.laid_out(problem.expected()[0], problem.layout.split("_")[-1], problem.rows)
        result = out.tensor(list(expected.shape), INT8 if problem.quantised else problem.dtype)
        problem.assert_right(result, expected)
        return outcome, result


def only_prompts(problem: Problem) -> bool:
    return not (problem.codes or problem.block_size) and problem.layout in ("BSH", "BSND", "BNSD", "BNSD_BSND")


@pytest.mark.parametrize("function", PROMPTS)
@pytest.mark.parametrize("name", [name for name, problem in PROBLEMS.items() if only_prompts(problem)])
def test_prompt_flash_attention(name, function):
    outcome, _ = prompt(PROBLEMS[name], function)
    assert outcome.status == 0, outcome


@pytest.mark.parametrize(
    "changes, status, sentence",
    [
        ({1: None}, 161001, "key is a null pointer"),
        ({3: torch.ones(1)}, 161002, "bias must have 4 axes"),
        (
            {8: torch.ones(1)},
            161002,
            "deqScale1, quantScale1 and deqScale2 must be given for an int8 query, and for no",
        ),
        ({LAYOUT: b"TND"}, 161002, "inputLayout must be one of BSH, BSND, BNSD, BNSD_BSND, got TND"),
        ({5: [1, 2, 3]}, 161002, "must have 1 or 2 values, got 3"),
        ({6: [41, 4]}, 361001, r"kv_lengths must be in \[0, 40\], got 41"),
        ({SPARSE: 7}, 161002, "sparseMode must be 0, 1, 2, 3 or 4, got 7"),
        ({0: torch.ones(2, 9, 6, 16, dtype=INT8)}, 161002, "must be given for an int8 query"),
    ],
)
def test_prompt_flash_attention_refuses(changes, status, sentence):
    outcome, _ = prompt(PREFILL, PROMPTS[1], changes)
    assert outcome.status == status, outcome
    assert re.search(sentence, outcome.sentence), outcome


def test_incre_flash_attention_takes_one_token():
    outcome, _, _ = PREFILL.run(INCRE)
    assert outcome.status == 161002
    assert "query must have one token for each sequence, got 9" in outcome.sentence


def moved(x, lengths, rows, behind):
    """(B, S, ...) with the tokens of each sequence at the right end of ``rows`` but for ``behind``, 7 elsewhere."""
    made = torch.full((x.shape[0], rows, *x.shape[2:]), 7, dtype=x.dtype)
    for own, from_, length in zip(made, x, lengths, strict=True):
        own[rows - behind - length : rows - behind] = from_[:length]
    return made


PADDED = {
    "decode": (INCRE, replace(DECODE, dtype=FLOAT)),
    "decode of int8": (INCRE, replace(DECODE, codes=True, stacked=True, mode=0)),
    "prefill": (FUSED[0], replace(PREFILL, lse=True)),
    "prefill of int8 heads": (FUSED[1], replace(PREFILL, codes=True, mode=2, lse=True)),
    "prefill of a length of 0": (FUSED[1], replace(PREFILL, rows=[9, 0], columns=[0, 4], lse=True)),
    "prefill, causal from the top left": (FUSED[1], replace(PREFILL, sparse=2, lse=True)),
    "prefill, causal": (FUSED[1], replace(PREFILL, sparse=3, layout="BSH", dtype=BF16, lse=True)),
    "prefill, a band": (FUSED[1], replace(PREFILL, sparse=4, before=3, after=1, layout="BNSD", lse=True)),
    "prefill, a band behind": (FUSED[1], replace(PREFILL, sparse=4, before=-2, after=3, dtype=FLOAT, lse=True)),
    "int8 queries": (FUSED[1], replace(PREFILL, dtype=HALF, products=True)),
}


@pytest.mark.parametrize(("function", "problem"), PADDED.values(), ids=PADDED)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_padded_sequences(function, problem, kind):
    """The results of the same sequences at the left ends, elsewhere 0."""
    queries, (behind, behind_keys) = function != INCRE, (2, 3)
    out, lse = problem.expected()
    padded = replace(problem)
    if queries:
        rows = problem.s + 4
        padded.s, padded.q, out = rows, *(moved(x, problem.rows, rows, behind) for x in (problem.q, out))
        lse = moved(lse, problem.rows, rows, behind)
    padded.t = problem.t + 5
    padded.kv = [moved(x, problem.columns, padded.t, behind_keys) for x in problem.kv]
    with c_front_end.session() as make:
        arguments, result, sums = padded.cut(function, make)
        arguments[16 if queries else 14] = make.tensor(torch.tensor([behind_keys], dtype=kind))
        if queries:
            arguments[15] = make.tensor(torch.tensor(behind, dtype=kind))
        outcome = c_front_end.call(function, *arguments)
        assert outcome.status == 0, outcome
        outside = torch.full(out.shape[:2], queries)
        for b, length in enumerate(problem.rows if queries else ()):
            outside[b, padded.s - behind - length : padded.s - behind] = False
        wanted = padded.laid_out(out.masked_fill(outside[..., None, None], 0), padded.layout, None)
        got = result.tensor(list(wanted.shape), padded.dtype)
        assert ((got.double() - wanted).abs() <= padded.bound(wanted)).all()
        if padded.lse:
            wanted = lse.masked_fill(outside[..., None], -torch.inf).transpose(1, 2).unsqueeze(-1).contiguous()
            torch.testing.assert_close(sums.tensor(list(wanted.shape), FLOAT).double(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("behind", [-3, 0, 40, 2**31 - 1])
def test_padding_with_a_mask(behind):
    """Places of the mask are those of all columns; a size below 0 is 0, and one beyond the columns leaves nothing."""
    problem = Problem([9, 9], [40, 25], dtype=FLOAT)
    mask = random(2, 1, 9, 41) > 0.5
    with c_front_end.session() as make:
        arguments, out, _ = problem.cut(FUSED[1], make)
        arguments[4], arguments[16] = make.tensor(mask), make.tensor(torch.tensor([behind], dtype=torch.int32))
        outcome = c_front_end.call(FUSED[1], *arguments)
        assert outcome.status == 0, outcome
        result = out.tensor([2, 9, 4, 16], FLOAT)
    for b, length in enumerate(problem.columns):
        hidden = mask[b, :, :, :40].clone()
        hidden[..., : 40 - length] = True
        k, v = (x[b].transpose(0, 1) for x in problem.kv)
        wanted, _ = attend(problem.q[b].transpose(0, 1), k, v, hidden | (behind > 0), problem.scale)
        assert ((result[b].transpose(0, 1) - wanted).abs() <= problem.bound(wanted)).all()


PREFIXED = {
    "decode": replace(DECODE, dtype=FLOAT),
    "decode of int8": replace(DECODE, codes=True),
    "prefill BSH": replace(PREFILL, layout="BSH", lse=True),
    "prefill BNSD, causal": replace(PREFILL, layout="BNSD", sparse=3, dtype=BF16, lse=True),
    "values of another size": replace(PREFILL, value_size=24, lse=True),
    "int8 queries": replace(PREFILL, products=True),
}


def shared_tokens(x):
    return x[1:2, :6].flip(1)


@pytest.mark.parametrize("problem", PREFIXED.values(), ids=PREFIXED)
@pytest.mark.parametrize("count", [None, 4, 0])
def test_shared_prefixes(problem, count):
    """The results of sequences that begin with the shared tokens."""
    tokens, batch = 6 if count is None else count, len(problem.rows)

    def joined(parts):
        return [torch.cat([shared_tokens(x)[:, :tokens].expand(batch, -1, -1, -1), x], 1) for x in parts]

    whole = replace(problem, columns=[length + tokens for length in problem.columns])
    whole.t, whole.kv = problem.t + tokens, joined(problem.kv)
    if not problem.products:
        whole.values = joined(problem.values)
    out, lse = whole.expected()
    with c_front_end.session() as make:
        arguments, result, sums = problem.cut(FUSED[1], make)
        arguments[21:23] = [make.tensor(problem.laid_out(shared_tokens(x), problem.layout)) for x in problem.kv]
        arguments[23] = None if count is None else make.ints([count])
        outcome = c_front_end.call(FUSED[1], *arguments)
        assert outcome.status == 0, outcome
        wanted = problem.laid_out(out, problem.layout)
        got = result.tensor(list(wanted.shape), problem.dtype)
        assert ((got.double() - wanted).abs() <= whole.bound(wanted)).all()
        if problem.lse:
            wanted = lse.transpose(1, 2).unsqueeze(-1).contiguous()
            torch.testing.assert_close(sums.tensor(list(wanted.shape), FLOAT).double(), wanted, rtol=2e-5, atol=2e-5)
