# SPDX-License-Identifier: Apache-2.0
"""What is measured on a GPU: the shapes of Llama-3-8B, anynpu's variants, and what torch has for the same problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from compressed_matmul import CompressedProblem
from kv_cache import AttentionProblem
from measure import Variant, copies_for
from moe_tokens import TOLERANCE, ActivationProblem, RoutingProblem, activation_formula
from problems import MatmulProblem, PackProblem, Product

import anynpu
from anynpu.formats import compress_weight
from anynpu.ops.rope_kv_cache.spec import sample_arguments

_SHAPES = [(4096, 4096), (4096, 14336), (14336, 4096)]  # (K, N)
_ROWS = (1, 16, 64, 512, 4096)
_BF16 = 2.0**-8


@dataclass(frozen=True)
class Case:
    """The benchmark of one operator; variants and peers get a problem and the device."""

    problems: Callable[[bool], Iterator[Any]]
    variants: Callable[[Any, torch.device], Iterator[Variant]]
    limits: tuple[str, ...]


def _rotated(name: str, arithmetic: str, function: Callable[..., torch.Tensor], weights: tuple[torch.Tensor, ...],
             expected: Callable[[], torch.Tensor], tolerance: float, other_bytes: int) -> Variant:  # fmt: skip
    """``function`` of copies of ``weights``, so many that they fill any cache."""

    def call_with(copies: tuple[torch.Tensor, ...]) -> Callable[[], torch.Tensor]:
        return lambda: function(*copies)

    size = sum(weight.nbytes for weight in weights)
    calls = [call_with(tuple(weight.clone() for weight in weights)) for _ in range(copies_for(size))]
    return Variant(name, arithmetic, calls, expected, tolerance, size + other_bytes)


def _pack_problems(quick: bool) -> Iterator[PackProblem]:
    for k, n in _SHAPES[:1] if quick else _SHAPES:
        yield PackProblem(k, n)


def _pack_variants(problem: PackProblem, device: torch.device) -> Iterator[Variant]:
    weight = problem.weight.to(device)
    packed_bytes = problem.bytes - weight.nbytes
    yield _rotated("anynpu", "int4", anynpu.int4_pack, (weight,), lambda: anynpu.reference.int4_pack(problem.weight), 0,
                   packed_bytes)  # fmt: skip


def _matmul_problems(quick: bool) -> Iterator[MatmulProblem]:
    for k, n in _SHAPES[:1] if quick else _SHAPES:
        for m in (1, 512) if quick else _ROWS:
            yield MatmulProblem(m, k, n, group_size=128, bits=4)
    for m in (1,) if quick else (1, 16, 512):
        yield MatmulProblem(m, *_SHAPES[0], group_size=0, bits=8)


def _matmul_variants(problem: MatmulProblem, device: torch.device) -> Iterator[Variant]:
    x, scale = problem.x.to(device).bfloat16(), problem.scale.to(device).bfloat16()
    integers = problem.weight.to(device)
    pack = anynpu.int4_pack if problem.bits == 4 else lambda weight: weight.to(torch.int8)
    ends = x.nbytes + 2 * problem.m * problem.n

    def expected() -> torch.Tensor:
        return problem.expected(torch.bfloat16)

    def multiply(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return anynpu.weight_quant_matmul(x, weight, scale, group_size=problem.group_size)

    def multiply_along_k(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return multiply(weight.t(), scale)

    arithmetic = f"W{problem.bits}A16"
    yield _rotated("anynpu bf16", arithmetic, multiply, (pack(integers), scale), expected, _BF16, ends)
    along_k = (pack(integers.t().contiguous()), scale)
    yield _rotated("anynpu bf16 along K", arithmetic, multiply_along_k, along_k, expected, _BF16, ends)
    yield from _matmul_peers(problem, x, scale, integers, expected, ends)


def _matmul_peers(
    problem: MatmulProblem,
    x: torch.Tensor,
    scale: torch.Tensor,
    integers: torch.Tensor,
    expected: Callable[[], torch.Tensor],
    ends: int,
) -> Iterator[Variant]:
    dense = problem.dense().to(x.device).t().bfloat16().contiguous()  # [N, K]
    linear = torch.nn.functional.linear
    yield _rotated("torch linear bf16", "dense bf16", lambda weight: linear(x, weight), (dense,), expected, 2 * _BF16,
                   ends)  # fmt: skip

    def eager(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        rows = scale.repeat_interleave(problem.group_size, 0) if problem.group_size else scale
        return x @ (weight * rows)

    weights = (integers.to(torch.int8), scale)
    compiled = torch.compile(eager, dynamic=False)
    yield _rotated("torch.compile of the formula", "int8 weights, bf16", compiled, weights, expected, 2 * _BF16,
                   ends)  # fmt: skip
    if problem.bits == 4 and x.is_cuda:
        unsigned = (integers.t() + 8).to(torch.uint8)  # [N, K]; its zero is 8
        packed = torch.ops.aten._convert_weight_to_int4pack((unsigned[:, ::2] << 4 | unsigned[:, 1::2]).contiguous(), 8)
        parameters = torch.stack([scale, torch.zeros_like(scale)], -1).contiguous()

        def int4pack(weight: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
            return torch.ops.aten._weight_int4pack_mm(x, weight, problem.group_size, parameters)

        yield _rotated("torch int4pack bf16", "W4A16", int4pack, (packed, parameters), expected, 2 * _BF16, ends)


@dataclass(frozen=True)
class Int8Problem(Product):
    """x [M, K] times weight [K, N], both int8, to bfloat16 with a scale for each row and column."""

    @cached_property
    def arguments(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x, weight = (
            torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)
            for shape in ((self.m, self.k), (self.n, self.k))
        )
        scale, rows = torch.rand(self.n, generator=generator) * 1e-3, torch.rand(self.m, generator=generator)
        return {"x1": x, "x2": weight, "scale": scale, "pertoken_scale": rows}

    def expected(self) -> torch.Tensor:
        args = self.arguments
        sums = args["x1"].float() @ args["x2"].float().t()
        return sums * args["scale"] * args["pertoken_scale"].unsqueeze(1)


def _int8_problems(quick: bool) -> Iterator[Int8Problem]:
    for k, n in _SHAPES[:1] if quick else _SHAPES:
        for m in (512,) if quick else (32, 512, 4096):
            yield Int8Problem(m, k, n)


def _int8_variants(problem: Int8Problem, device: torch.device) -> Iterator[Variant]:
    args = {name: value.to(device) for name, value in problem.arguments.items()}
    weight = args.pop("x2")  # [N, K]
    ends = problem.m * (problem.k + 2 * problem.n)

    def ours(weight: torch.Tensor) -> torch.Tensor:
        return anynpu.quant_matmul(**args, x2=weight.t(), output_dtype=torch.bfloat16)

    def scaled(weight: torch.Tensor) -> torch.Tensor:
        sums = torch._int_mm(args["x1"], weight.t())
        return (sums * args["scale"] * args["pertoken_scale"].unsqueeze(1)).bfloat16()

    yield _rotated("anynpu bf16", "W8A8", ours, (weight,), problem.expected, _BF16, ends)
    yield _rotated("torch _int_mm, torch.compile", "W8A8", torch.compile(scaled, dynamic=False), (weight,),
                   problem.expected, _BF16, ends)  # fmt: skip


@dataclass(frozen=True)
class RopeProblem:
    """So many tokens of 32 query and 8 key and value heads of 128, in bfloat16, into pages."""

    tokens: int
    operations = 0

    @property
    def name(self) -> str:
        return f"tokens{self.tokens}_bf16"

    @cached_property
    def arguments(self) -> dict[str, Any]:
        places = torch.randperm(self.tokens, generator=torch.Generator().manual_seed(0)).tolist()
        pages = (-(-self.tokens // 128), 128)
        dtypes = (torch.bfloat16, torch.bfloat16)
        return sample_arguments((self.tokens,), (32, 8), 128, *dtypes, pages, places)


def _rope_problems(quick: bool) -> Iterator[RopeProblem]:
    for tokens in (4096,) if quick else (16, 256, 4096):
        yield RopeProblem(tokens)


def _rope_variants(problem: RopeProblem, device: torch.device) -> Iterator[Variant]:
    args = {key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in problem.arguments.items()}  # fmt: skip
    x = args.pop("x")

    def expected() -> torch.Tensor:
        caches = {name: problem.arguments[name].clone() for name in ("k_cache", "v_cache")}
        return anynpu.reference.rope_kv_cache(**{**problem.arguments, **caches}, cache_mode="page")[0]

    ends = 2 * args["cos"].nbytes + problem.tokens * 128 * (2 * 32 + 2 * 8)
    yield _rotated("anynpu", "bf16 to int8", lambda x: anynpu.rope_kv_cache(x, **args, cache_mode="page")[0], (x,),
                   expected, _BF16, ends)  # fmt: skip


def _attention_problems(quick: bool) -> Iterator[AttentionProblem]:
    yield AttentionProblem(8, 1, (32, 8), 8192)
    if not quick:
        yield AttentionProblem(1, 1, (32, 8), 8192)
        yield AttentionProblem(1, 512, (32, 8), 2048)


def _attention_variants(problem: AttentionProblem, device: torch.device) -> Iterator[Variant]:
    args = {name: value.to(device) for name, value in problem.arguments.items()}
    k, v = args.pop("k_cache"), args.pop("v_cache")

    def ours(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return anynpu.kv_cache_attention(k_cache=k, v_cache=v, **args)

    def expected() -> torch.Tensor:
        return anynpu.reference.kv_cache_attention(**problem.arguments)

    yield _rotated("anynpu", "int8 cache", ours, (k, v), expected, 2.0**-10, 2 * args["q"].nbytes)
    q = args["q"].transpose(1, 2)
    k, v = (
        (codes * args[scale]).half().transpose(1, 2).contiguous() for codes, scale in ((k, "scale_k"), (v, "scale_v"))
    )
    causal = problem.length > 1
    mask = torch.ones(problem.length, problem.context, dtype=torch.bool, device=device)
    mask = mask.tril(problem.context - problem.length) if causal else None

    def fused(k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        attention = torch.nn.functional.scaled_dot_product_attention
        return attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    yield _rotated("torch SDPA fp16", "fp16 cache", fused, (k, v), expected, 0.01, 2 * args["q"].nbytes)


@dataclass(frozen=True)
class ExpertsProblem:
    """Rows of 64 experts, top 8, so that each of ``tokens`` has 8 rows; K = 2048 and N = 7168 unless made smaller."""

    tokens: int
    k: int = 2048
    n: int = 7168
    experts: int = 64

    @property
    def name(self) -> str:
        return f"rows{8 * self.tokens}_e{self.experts}_k{self.k}_n{self.n}"

    @property
    def operations(self) -> int:
        return 2 * 8 * self.tokens * self.k * self.n

    @cached_property
    def arguments(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        rows = 8 * self.tokens
        codes = torch.randint(-128, 128, (rows, self.k), dtype=torch.int8, generator=generator)
        weight = torch.randint(-128, 128, (self.experts, self.n, self.k), dtype=torch.int8, generator=generator)
        chosen = torch.randint(0, self.experts, (rows,), generator=generator)
        return {
            "x": codes,
            "weight": weight,
            "scale": torch.rand(self.experts, self.n, generator=generator) * 1e-4,
            "group_list": torch.bincount(chosen, minlength=self.experts),
            "row_index": torch.arange(rows)[torch.argsort(chosen, stable=True)] // 8,
            "logit": torch.rand(rows, generator=generator),
        }

    def expected(self) -> torch.Tensor:
        args = self.arguments
        y, first = torch.zeros(self.tokens, self.n), 0
        for expert, count in enumerate(args["group_list"].tolist()):
            rows = slice(first, first + count)
            value = args["x"][rows].float() @ args["weight"][expert].float().t() * args["scale"][expert]
            y.index_add_(0, args["row_index"][rows], value * args["logit"][rows].unsqueeze(1))
            first += count
        return y


def _experts_problems(quick: bool) -> Iterator[ExpertsProblem]:
    for tokens in (8,) if quick else (8, 64, 1024):
        yield ExpertsProblem(tokens)


def _experts_variants(problem: ExpertsProblem, device: torch.device) -> Iterator[Variant]:
    args = {name: value.to(device) for name, value in problem.arguments.items()}
    weight, scale = args.pop("weight"), args.pop("scale")
    idle = int((problem.arguments["group_list"] == 0).sum())  # experts whose weights nobody has to read
    ends = args["x"].nbytes + 4 * problem.tokens * problem.n - idle * weight[0].nbytes

    def ours(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return anynpu.grouped_matmul_combine(
            **args, weight=weight.transpose(1, 2), scale=scale, output_bs=problem.tokens
        )

    yield _rotated("anynpu", "W8A8", ours, (weight, scale), problem.expected, 1e-5, ends)


@dataclass(frozen=True)
class GroupedProblem(ExpertsProblem):
    """The products alone, rounded to bfloat16."""

    def expected(self) -> torch.Tensor:
        args = self.arguments
        rows = args["x"].float().split(args["group_list"].tolist())
        experts = zip(rows, args["weight"], args["scale"], strict=True)
        return torch.cat([own @ weight.float().t() * scale for own, weight, scale in experts])


def _grouped_problems(quick: bool) -> Iterator[GroupedProblem]:
    for tokens in (8,) if quick else (8, 64, 1024):
        yield GroupedProblem(tokens)


def _grouped_variants(problem: GroupedProblem, device: torch.device) -> Iterator[Variant]:
    args = {name: value.to(device) for name, value in problem.arguments.items()}
    idle = int((problem.arguments["group_list"] == 0).sum())
    ends = args["x"].nbytes + 2 * 8 * problem.tokens * problem.n - idle * args["weight"][0].nbytes
    options = {"split_item": 2, "group_type": 0, "group_list_type": 1, "output_dtype": torch.bfloat16}

    def ours(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        weights = [weight.transpose(1, 2)]
        return anynpu.grouped_matmul([args["x"]], weights, args["group_list"], scale=[scale], **options)[0]

    yield _rotated("anynpu bf16", "W8A8", ours, (args["weight"], args["scale"]), problem.expected, _BF16, ends)


def _routing_problems(quick: bool) -> Iterator[RoutingProblem]:
    for m in (512,) if quick else (8, 512, 4096):
        yield RoutingProblem(m, 4096, 64, 8)


def _routing_variants(problem: RoutingProblem, device: torch.device) -> Iterator[Variant]:
    args = {key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in problem.arguments.items()}  # fmt: skip
    yield _rotated("anynpu", "bf16 to int8", lambda x: anynpu.moe_init_routing(x, **args)[0], (problem.x.to(device),),
                   problem.expected, TOLERANCE, problem.moved)  # fmt: skip


def _activation_problems(quick: bool) -> Iterator[ActivationProblem]:
    for rows in (4096,) if quick else (64, 4096):
        yield ActivationProblem(rows, 2048)


def _activation_variants(problem: ActivationProblem, device: torch.device) -> Iterator[Variant]:
    args = {key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in problem.arguments.items()}  # fmt: skip
    compiled = torch.compile(activation_formula, dynamic=False)
    functions = {"anynpu": lambda x: anynpu.dequant_swiglu_quant(x, **args)[0],
                 "torch.compile of the formula": lambda x: compiled(x, **args)}  # fmt: skip
    for name, function in functions.items():
        yield _rotated(name, "int32 to int8", function, (problem.x.to(device),), problem.expected, TOLERANCE,
                       problem.moved)  # fmt: skip


def _compressed_problems(quick: bool) -> Iterator[CompressedProblem]:
    yield CompressedProblem(1, 4096, 4096)
    if not quick:
        yield CompressedProblem(1, 4096, 14336)


def _compressed_variants(problem: CompressedProblem, device: torch.device) -> Iterator[Variant]:
    """The bytes are those of the decoded weight."""
    weight = compress_weight(problem.weight)
    x, index, scale = problem.x.to(device), weight.index.to(device), problem.scale.to(device)

    def ours(stream: torch.Tensor) -> torch.Tensor:
        return anynpu.compressed_matmul(x, stream, index, None, scale)

    decoded = problem.k * problem.n - weight.stream.nbytes
    yield _rotated("anynpu", "W8A8", ours, (weight.stream.to(device),), problem.expected, 2.0**-11, decoded)


CASES = {
    "int4_pack": Case(_pack_problems, _pack_variants, ("copy",)),
    "weight_quant_matmul": Case(_matmul_problems, _matmul_variants, ("copy", "bf16")),
    "quant_matmul": Case(_int8_problems, _int8_variants, ("copy", "int8")),
    "rope_kv_cache": Case(_rope_problems, _rope_variants, ("copy",)),
    "kv_cache_attention": Case(_attention_problems, _attention_variants, ("copy", "bf16")),
    "compressed_matmul": Case(_compressed_problems, _compressed_variants, ("copy",)),
    "moe_init_routing": Case(_routing_problems, _routing_variants, ("copy",)),
    "dequant_swiglu_quant": Case(_activation_problems, _activation_variants, ("copy",)),
    "grouped_matmul": Case(_grouped_problems, _grouped_variants, ("copy", "int8")),
    "grouped_matmul_combine": Case(_experts_problems, _experts_variants, ("copy", "int8")),
}
