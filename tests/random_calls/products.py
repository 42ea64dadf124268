# SPDX-License-Identifier: Apache-2.0
"""Random calls of the products of matrices."""

from __future__ import annotations

import torch

import anynpu
from random_calls.draw import FLOATS, Draw


def weight_quant_matmul(draw: Draw) -> dict:
    m, k, n = draw.rows(0, 1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 33, 64, 65, 100), draw.size(700), draw.size(400)
    bits, dtype, along_k = draw.one_of(4, 4, 8), draw.one_of(*FLOATS), draw.chance(0.5)
    if bits == 4 and along_k:
        k, n = -(-k // 8) * 8, max(n, 2)  # one word is eight columns
    elif bits == 4:
        n = -(-n // 8) * 8
    codes = draw.nibbles([n, k] if along_k else [k, n]) if bits == 4 else draw.codes([n, k] if along_k else [k, n])
    weight = anynpu.int4_pack(codes) if bits == 4 else codes
    weight = weight.t() if along_k else weight
    prepacked = draw.chance(0.5)
    group = draw.one_of(0, *(size for size in (32, 64, 96, 128, 256, 320, 512) if size < k))
    shape = [-(-k // group), n] if group else draw.one_of([1], [n], [1, n])
    parameters = draw.one_of(dtype, torch.float32)
    batch = [draw.number(1, 3)] if draw.chance(0.15) else []
    quant_scale = draw.maybe(lambda: draw.positive(draw.one_of([n], [1, n]), size=2), 0.15)
    return {
        "x": draw.laid_out(draw.floats([*batch, m, k], dtype)),
        "weight": anynpu.weight_quant_prepack(weight) if prepacked else weight,
        "scale": draw.laid_out(draw.positive(shape, parameters)),
        # Finite: with infinite offsets results may be infinite that are NaN by the formula.
        "offset": draw.maybe(lambda: draw.laid_out(draw.floats(shape, parameters, 3).clamp(-6e4, 6e4))),
        "bias": draw.maybe(lambda: draw.laid_out(draw.floats(draw.one_of([n], [1, n]), draw.one_of(*FLOATS)))),
        "quant_scale": quant_scale,
        "quant_offset": None
        if quant_scale is None
        else draw.maybe(lambda: draw.integers(quant_scale.shape, -20, 20, torch.float32)),
        "group_size": group,
        "inner_precise": draw.one_of(0, 0, 1),
        "n": n if prepacked else None,
    }


def quant_matmul(draw: Draw) -> dict:
    return _int4_products(draw) if draw.chance(0.5) else _int8_products(draw)


def _int4_products(draw: Draw) -> dict:
    m, k, n = draw.rows(1, 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 16, 25, 64, 100), draw.size(900), draw.size(400)
    dtype, along_k, prepacked = draw.one_of(*FLOATS), draw.chance(0.5), draw.chance(0.5)
    if along_k:
        k, n = -(-k // 8) * 8, max(n, 2)  # one word is eight columns
    else:
        n = -(-n // 8) * 8
    words = anynpu.int4_pack(draw.nibbles([n, k] if along_k else [k, n]))
    words = words.t() if along_k else words
    group = draw.one_of(0, 32, 64, 96, 128, 256, 512)
    scale = draw.laid_out(draw.positive([-(-k // group), n])) if group else draw.positive(draw.one_of([1], [n]))
    token = draw.maybe(lambda: draw.positive([m]))
    integers = None if group else draw.maybe(lambda: draw.integers([n], -1000, 1000, torch.int32))
    return {
        "x1": draw.laid_out(draw.codes([m, k])),
        "x2": anynpu.weight_quant_prepack(words) if prepacked else words,
        "scale": scale,
        "offset": draw.maybe(lambda: draw.floats([n], torch.float32, 4)) if group else None,
        "pertoken_scale": token,
        "bias": draw.maybe(lambda: draw.floats([n], torch.float32), 0.3) if integers is None else integers,
        "output_dtype": dtype,
        "group_size": group,
        "n": n if prepacked else None,
    }


def _int8_products(draw: Draw) -> dict:
    m, k, n = draw.rows(1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33, 64, 70, 130), draw.size(900), draw.size(400)
    dtype = draw.one_of(torch.int8, torch.int32, *FLOATS)
    scale = draw.positive(draw.one_of([1], [n]))
    weight, prepacked = draw.along_either(draw.codes([k, n])), draw.chance(0.3)
    args = {
        "x1": draw.laid_out(draw.codes([m, k])),
        "x2": anynpu.weight_quant_prepack(weight) if prepacked else weight,
        "n": n if prepacked else None,
        "scale": scale,
        "output_dtype": dtype,
        "bias": draw.maybe(lambda: draw.integers([n], -1000, 1000, torch.int32)),
    }
    if dtype == torch.int8:
        args["offset"] = draw.maybe(lambda: draw.floats(scale.shape, torch.float32, 4))
    elif dtype != torch.int32:
        args["pertoken_scale"] = draw.maybe(lambda: draw.positive([m]))
    if dtype in FLOATS[:2] and draw.chance(0.3):
        only_wide = dtype == torch.float16 and args["pertoken_scale"] is None
        args["bias"] = draw.floats([n], torch.float32 if only_wide else draw.one_of(torch.float32, dtype))
    return args


def compressed_matmul(draw: Draw) -> dict:
    m, k, n = draw.rows(1, 1, 2, 5, 16, 33, 100), draw.size(700), draw.size(400)
    spread = draw.one_of(0.3, 3, 10, 33, 80)
    weight = draw.floats([n, k], torch.float32, spread).round().clamp(-128, 127).to(torch.int8)
    compressed = anynpu.formats.compress_weight(draw.codes([n, k]) if draw.chance(0.2) else weight)
    scale = draw.positive(draw.one_of([1, n], [1, 1]))
    return {
        "x": draw.laid_out(draw.codes([m, k])),
        "stream": compressed.stream,
        "index": compressed.index,
        "bias": draw.maybe(lambda: draw.integers([n], -1000, 1000, torch.int32)),
        "scale": anynpu.trans_quant_param(scale.flatten()).reshape(scale.shape) if draw.chance(0.5) else scale,
        "n": n,
        "output_dtype": draw.one_of(*FLOATS),
    }


def _experts(draw: Draw) -> tuple[int, int, int, int]:
    """E, M, K, N."""
    return draw.number(1, 6), draw.rows(1, 2, 3, 5, 8, 13, 32, 70, 150), draw.size(500), draw.size(300)


def _scale_groups(draw: Draw, k: int) -> int:
    return draw.one_of(*(groups for groups in (1, 2, 4, 8, k // 32) if groups and k % groups == 0))


def grouped_matmul_combine(draw: Draw) -> dict:
    experts, m, k, n = _experts(draw)
    tokens, kind = draw.number(1, m + 3), draw.number(0, 1)
    row_index = draw.integers([m], 0, tokens - 1, draw.one_of(torch.int64, torch.int32, torch.float32))
    if draw.chance(0.6):
        n = -(-n // 8) * 8
        if draw.chance(0.5):  # what the kernels of int4 want; others go another way
            k, n = -(-k // 32) * 32, -(-n // 64) * 64
        args = {
            "weight": anynpu.int4_pack(draw.nibbles([experts, k, n])),
            "scale": anynpu.pack_scale(draw.positive([experts, _scale_groups(draw, k), n])),
            "bias": draw.maybe(lambda: draw.floats([experts, n], torch.float32, 5)),
            "offset": draw.maybe(lambda: draw.floats([experts, 1, n], torch.float32, 0.1), 0.3),
        }
    else:
        k, n = _sizes_of_int8(draw, k, n)
        args = {
            "weight": draw.along_either(draw.codes([experts, k, n])),
            "scale": draw.positive([experts, n], draw.one_of(torch.float32, torch.bfloat16)),
        }
    if draw.chance(0.4):
        shared = draw.number(1, tokens)
        args["shared_input"] = draw.floats([shared, n], torch.bfloat16)
        args["shared_input_weight"] = draw.real(1)
        args["shared_input_offset"] = draw.number(0, tokens - shared)
    return args | {
        "x": draw.laid_out(draw.codes([m, k])),
        "group_list": draw.group_list(experts, m, kind),
        "group_list_type": kind,
        "row_index": row_index,
        "pertoken_scale": draw.maybe(lambda: draw.positive([m])),
        "logit": draw.maybe(lambda: draw.floats([m], torch.float32)),
        "output_bs": tokens,
    }


def grouped_matmul(draw: Draw) -> dict:
    experts, m, k, n = _experts(draw)
    kind = draw.number(0, 1)
    make = draw.one_of(_sums, _int8_results, _int8_experts, _int4_experts, _float_x)
    args = make(draw, experts, m, k, -(-n // 8) * 8)
    return args | {
        "group_list": draw.group_list(experts, m, kind),
        "group_list_type": kind,
        "group_type": 0,
        "split_item": draw.one_of(2, 3),
    }


def _sizes_of_int8(draw: Draw, k: int, n: int) -> tuple[int, int]:
    """As they come, or what the kernel of int8 experts wants; others go another way."""
    return (-(-k // 4) * 4, -(-n // 64) * 64) if draw.chance(0.5) else (k, n)


def _int8(draw: Draw, experts: int, m: int, k: int, n: int) -> dict:
    weight = draw.along_either(draw.codes([experts, k, n]))
    return {"x": [draw.laid_out(draw.codes([m, k]))], "weight": [weight]}


def _int32_bias(draw: Draw, experts: int, n: int) -> list[torch.Tensor] | None:
    return draw.maybe(lambda: [draw.integers([experts, n], -1000, 1000, torch.int32)])


def _sums(draw: Draw, experts: int, m: int, k: int, n: int) -> dict:
    return _int8(draw, experts, m, k, n) | {"bias": _int32_bias(draw, experts, n), "output_dtype": torch.int32}


def _int8_results(draw: Draw, experts: int, m: int, k: int, n: int) -> dict:
    return _sums(draw, experts, m, k, n) | {
        "scale": [anynpu.pack_scale(draw.positive([experts, n]))],
        "output_dtype": torch.int8,
    }


def _int8_experts(draw: Draw, experts: int, m: int, k: int, n: int) -> dict:
    dtype = draw.one_of(torch.float16, torch.bfloat16)
    scales = torch.float32 if dtype == torch.float16 else draw.one_of(torch.float32, torch.bfloat16)
    return _int8(draw, experts, m, k, n) | {
        "scale": [draw.positive([experts, n], scales)],
        "per_token_scale": draw.maybe(lambda: [draw.positive([m])]),
        "bias": _int32_bias(draw, experts, n),
        "output_dtype": dtype,
    }


def _int4_experts(draw: Draw, experts: int, m: int, k: int, n: int) -> dict:
    return {
        "x": [draw.laid_out(draw.codes([m, k]))],
        "weight": [anynpu.int4_pack(draw.nibbles([experts, k, n]))],
        "scale": [anynpu.pack_scale(draw.positive([experts, _scale_groups(draw, k), n]))],
        "per_token_scale": draw.maybe(lambda: [draw.positive([m])]),
        "bias": [draw.floats([experts, n], torch.float32)],
        "output_dtype": draw.one_of(torch.float16, torch.bfloat16),
    }


def _float_x(draw: Draw, experts: int, m: int, k: int, n: int) -> dict:
    dtype, int4 = draw.one_of(torch.float16, torch.bfloat16), draw.chance(0.5)
    shape = [experts, k // 32, n] if int4 and k % 32 == 0 and k > 32 else [experts, n]
    weight = anynpu.int4_pack(draw.nibbles([experts, k, n])) if int4 else draw.codes([experts, k, n])
    return {
        "x": [draw.laid_out(draw.floats([m, k], dtype))],
        "weight": [weight],
        "antiquant_scale": [draw.positive(shape, dtype)],
        "antiquant_offset": draw.maybe(lambda: [draw.floats(shape, dtype)]),
        "output_dtype": dtype,
    }
