# SPDX-License-Identifier: Apache-2.0
"""Random calls of the operators that are no products of matrices."""

from __future__ import annotations

import torch

from random_calls.draw import FLOATS, Draw


def kv_cache_attention(draw: Draw) -> dict:
    batch, queries, kv_heads = draw.number(0, 3), draw.rows(0, 1, 1, 1, 2, 3, 7, 16, 33), draw.one_of(1, 1, 2, 3, 4)
    heads, size = kv_heads * draw.one_of(1, 2, 3, 4, 7, 8), draw.one_of(8, 16, 20, 32, 40, 64, 72, 96, 128, 192, 256)
    size = draw.number(1, 140) if draw.chance(0.2) else size
    rows = max(queries, draw.rows(1, 17, 64, 128, 129, 255, 256, 257, 300, 515, 700))
    causal = draw.chance(0.8)
    lengths = [draw.number(max(1, queries if causal else 0), rows) for _ in range(batch)]
    args = {
        "q": draw.laid_out(draw.floats([batch, queries, heads, size], draw.one_of(*FLOATS))),
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "causal": causal,
        "softmax_scale": draw.maybe(lambda: draw.real(0.5)),
    }
    planes = [batch, rows + draw.number(0, 5)]
    if draw.chance(0.4):
        block = draw.one_of(1, 8, 16, 64, 128)
        blocks = -(-rows // block)
        planes = [batch * blocks + draw.number(0, 3), block]
        args["block_table"] = draw.permutation(planes[0])[: batch * blocks].reshape(batch, blocks).int()
    if draw.chance(0.3):
        args["starts"] = torch.tensor([draw.number(0, length) for length in lengths], dtype=torch.int32)
    offsets = draw.chance(0.4)
    for name in "kv":
        args[f"{name}_cache"] = draw.codes([*planes, kv_heads, size])
        args[f"scale_{name}"] = draw.laid_out(draw.positive([kv_heads, size]))
        if offsets:
            args[f"offset_{name}"] = draw.laid_out(draw.floats([kv_heads, size], torch.float32, 5))
    return args


def fused_attention(draw: Draw) -> dict:
    batch, kv_heads, packed = draw.number(1, 3), draw.one_of(1, 2, 3), draw.chance(0.3)
    heads, size = kv_heads * draw.one_of(1, 2, 4, 7), draw.one_of(8, 16, 20, 32, 64, 72, 128, draw.number(1, 140))
    value_size = draw.one_of(size, size, draw.number(1, 80))
    rows = [draw.rows(1, 1, 1, 2, 5, 17, 70) for _ in range(batch)]
    columns = [draw.rows(0, 1, 17, 63, 64, 65, 129, 300, 700) for _ in range(batch)]
    most, capacity, paged = max(rows), max(1, *columns), draw.chance(0.4)
    dtype, codes, int4 = draw.one_of(*FLOATS), draw.chance(0.5), draw.chance(0.4)
    if codes and int4:
        size, value_size = -(-size // 8) * 8, -(-value_size // 8) * 8
    planes, block = [batch, capacity], draw.one_of(1, 8, 16, 64)
    args = {
        "softmax_scale": draw.maybe(lambda: draw.real(0.5)),
        "before": draw.one_of(2147483647, draw.number(-3, 80)),
        "after": draw.one_of(2147483647, 0, draw.number(-3, 80)),
        "from_end": draw.chance(0.6),
        "packed": packed,
        "with_lse": draw.chance(0.4),
        "sink": draw.maybe(lambda: draw.floats([heads], draw.one_of(*FLOATS)), 0.3),
    }
    sums = {"q": torch.tensor(rows).cumsum(0) if packed else torch.tensor(rows)}
    sums["kv"] = torch.tensor(columns).cumsum(0) if packed and not paged else torch.tensor(columns)
    if packed:
        planes = [1, max(1, sum(columns))]
        sums["kv"][-1] = sums["kv"][-1] if paged else planes[1]
    if paged:
        blocks = -(-capacity // block)
        planes = [batch * blocks + draw.number(0, 3), block]
        args["block_table"] = draw.permutation(planes[0])[: batch * blocks].reshape(batch, blocks).int()
    leading = [1, sum(rows)] if packed else [batch, most]
    args |= {f"{name}_lengths": each for name, each in sums.items() if packed or paged or draw.chance(0.7)}
    args["q"] = draw.floats([*leading, heads, size], dtype)
    for name, width in (("k", size), ("v", value_size)):
        shape = [*planes, kv_heads, width]
        args[name] = draw.codes(shape) if codes else draw.floats(shape, dtype)
        if codes and int4:
            args[name] = draw.integers([*shape[:3], width // 8], -(2**31), 2**31 - 1, torch.int32)
        factors = draw.one_of([1, 1, kv_heads, width], [1, 1, 1, 1], [*planes, 1, 1], [*planes, kv_heads, 1])
        if codes:
            args[f"{name}_scale"] = draw.positive(factors, draw.one_of(*FLOATS))
            args[f"{name}_offset"] = draw.maybe(lambda like=factors: draw.floats(like, torch.float32, 5))
    if not codes and draw.chance(0.3):
        width = draw.number(1, 40)
        args |= {
            "q_rope": draw.floats([*leading, heads, width], dtype),
            "k_rope": draw.floats([*planes, kv_heads, width], dtype),
        }
    if codes and not int4 and draw.chance(0.3):
        args["q"], args["p_scale"] = draw.codes(args["q"].shape), draw.positive([1], torch.float32) * 100
        for name, factor in (("k", 1e-3), ("v", 0.03)):
            by_head = [1, 1, draw.one_of(1, kv_heads), 1]
            args |= {f"{name}_scale": draw.positive(by_head, torch.float32) * factor, f"{name}_offset": None}
    if draw.chance(0.3):
        like = [draw.one_of(1, heads), draw.one_of(1, value_size)]
        args["out_scale"] = draw.floats(like, draw.one_of(*FLOATS), 50)
        args["out_offset"] = draw.maybe(lambda: draw.floats(like, draw.one_of(*FLOATS), 5))
    if not packed and draw.chance(0.4):
        shape = [draw.one_of(1, batch), draw.one_of(1, heads), most + draw.number(0, 2), capacity + draw.number(0, 9)]
        shape[3] = max(shape[3], planes[1]) if not paged else max(shape[3], -(-capacity // block) * block)
        args["mask"] = draw.integers(shape, 0, 1, draw.one_of(torch.bool, torch.int8, torch.uint8))
        args["bias"] = draw.maybe(lambda: draw.floats(shape, draw.one_of(*FLOATS)))
    return args


def rope_kv_cache(draw: Draw) -> dict:
    batch, length, half = (
        draw.number(1, 4),
        draw.one_of(1, 1, 2, 5, 17),
        draw.one_of(1, 2, 3, 4, 8, 16, 20, 32, 64, 128),
    )
    q_heads, kv_heads, size = draw.one_of(0, 1, 2, 3, 4, 8, 32), draw.one_of(1, 1, 2, 3, 8), 2 * half
    width, two_axes, paged = (q_heads + 2 * kv_heads) * size, draw.chance(0.3), draw.chance(0.4)
    length = 1 if two_axes else length
    leading = [batch] if two_axes else [batch, length]
    dtype = draw.one_of(torch.int32, *FLOATS)
    angles = [*leading, size] if two_axes else [*leading, 1, size]
    angle_dtype = draw.one_of(*FLOATS[:2]) if dtype == torch.int32 else dtype
    planes = [batch + draw.number(0, 2), length + draw.number(0, 9)]
    first = torch.tensor([draw.number(0, planes[1] - length) for _ in range(batch)], dtype=torch.int32)
    if paged:
        first = draw.permutation(planes[0] * planes[1])[: batch * length].int()
        first[0] = -1 if draw.chance(0.2) else first[0]
    args = {
        "x": draw.laid_out(draw.integers([*leading, width], -20000, 20000, dtype)
                           if dtype == torch.int32 else draw.floats([*leading, width], dtype)),
        "cos": draw.laid_out(draw.uniform(angles, -1, 1).to(angle_dtype)),
        "sin": draw.laid_out(draw.uniform(angles, -1, 1).to(angle_dtype)),
        "indices": first,
        "size_splits": [q_heads * size, kv_heads * size, kv_heads * size],
        "kv_output": draw.chance(0.5),
        "cache_mode": "page" if paged else "contiguous",
    }  # fmt: skip
    offsets = draw.chance(0.4)
    for name in "kv":
        args[f"{name}_cache"] = torch.full([*planes, kv_heads, size], 6, dtype=torch.int8)
        args[f"scale_{name}"] = draw.positive([kv_heads, size])
        args[f"offset_{name}"] = draw.floats([kv_heads, size], torch.float32, 5) if offsets else None
    if dtype == torch.int32:
        args["weight_scale"] = draw.positive([width], size=1e-3)
        args["activation_scale"] = draw.maybe(lambda: draw.positive([batch * length], size=2))
        args["bias"] = draw.one_of(
            None, draw.integers([width], -999, 999, torch.int32), draw.floats([width], draw.one_of(*FLOATS))
        )
    return args


def dynamic_quant(draw: Draw) -> dict:
    mode = draw.one_of("pertoken", "pertoken", "perchannel", "pertensor")
    shape = [draw.size(40) for _ in range(draw.number(1, 3))] + [draw.size(2000)]
    dtype, channels = draw.one_of(*FLOATS), shape[-2] if mode == "perchannel" else shape[-1]
    return {
        "x": draw.laid_out(draw.floats(shape, dtype)),
        "smooth_scales": draw.maybe(lambda: draw.uniform([channels], 0.5, 1.5).to(dtype)),
        "dtype": torch.int32 if shape[-1] % 8 == 0 and draw.chance(0.5) else torch.int8,
        "quant_mode": mode,
    }


def dequant_swiglu_quant(draw: Draw) -> dict:
    rows, half = draw.size(60), draw.size(300)
    dtype, grouped = draw.one_of(torch.int32, *FLOATS), draw.chance(0.5)
    groups = draw.number(1, 4)
    args = {
        "x": draw.laid_out(draw.floats([rows, 2 * half], torch.float32, 9000).clamp(-30000, 30000).to(dtype)
                           if dtype == torch.int32 else draw.floats([rows, 2 * half], dtype)),
        "quant_scale": draw.maybe(lambda: draw.uniform([groups, half] if grouped else [half], 0.1, 1.1)),
        "activate_left": draw.chance(0.5),
        "quant_mode": draw.number(0, 1),
        "swiglu_mode": draw.one_of(0, 0, 1, 2),
    }  # fmt: skip
    if grouped:
        args["group_index"] = draw.group_list(groups, rows, 1)
    if dtype == torch.int32:
        args["weight_scale"] = draw.positive([groups, 2 * half] if grouped else [2 * half], size=2e-4)
        args["activation_scale"] = draw.maybe(lambda: draw.positive([rows], size=1))
        args["bias"] = None if grouped else draw.maybe(lambda: draw.integers([2 * half], -99, 99, torch.int32))
    return args


def moe_init_routing(draw: Draw) -> dict:
    tokens, chosen, width = draw.size(60), draw.number(1, 5), draw.size(200)
    experts, mode = draw.number(chosen, 20), draw.one_of(-1, 0, 1)
    first = draw.number(0, experts - 1) if draw.chance(0.4) else 0
    last = draw.number(first + 1, experts) if first else experts
    args = {
        "x": draw.laid_out(draw.floats([tokens, width], draw.one_of(*FLOATS))),
        "expert_idx": torch.stack([draw.permutation(experts)[:chosen] for _ in range(tokens)]).int(),
        "active_num": draw.one_of(-1, 0, draw.number(1, tokens * chosen)),
        "expert_num": experts,
        "expert_tokens_num_type": draw.number(0, 2),
        "quant_mode": mode,
        "active_expert_range": [first, last],
        "row_idx_type": draw.number(0, 1),
    }
    if mode == 0:
        args |= {"scale": draw.positive([1], size=2), "offset": draw.floats([1], torch.float32, 4)}
    elif mode == 1:
        args["scale"] = draw.maybe(lambda: draw.uniform([last - first, width], 0.5, 1.5))
    return args


def moe_finalize_routing(draw: Draw) -> dict:
    tokens, chosen, width, rows = draw.size(60), draw.number(1, 9), draw.size(300), draw.size(90)
    dtype, experts, column_major = draw.one_of(*FLOATS), draw.number(1, 8), draw.chance(0.5)
    skips = [draw.maybe(lambda: draw.laid_out(draw.floats([tokens, width], dtype))) for _ in range(2)]
    biased = draw.chance(0.4)
    return {
        "expanded_rows": draw.laid_out(draw.floats([rows, width], dtype)),
        "skip1": skips[0],
        "skip2": skips[1],
        "bias": draw.floats([experts, width], dtype) if biased else None,
        "scales": draw.maybe(lambda: draw.laid_out(draw.floats([tokens, chosen], draw.one_of(dtype, *FLOATS))), 0.8),
        "row_idx": draw.integers([tokens * chosen], -1, rows - 1, torch.int32),
        "expert_idx": draw.integers([tokens, chosen], 0, experts - 1, torch.int32) if biased else None,
        "drop_pad_mode": draw.number(0, 1) if column_major else draw.number(2, 3),
        "k": chosen,
    }


def moe_gating_topk_softmax(draw: Draw) -> dict:
    tokens, experts = draw.size(60), draw.size(300)
    return {
        "x": draw.laid_out(draw.uniform([tokens, experts], -9, 9).to(draw.one_of(*FLOATS))),
        "finished": draw.maybe(lambda: draw.integers([tokens], 0, 1, torch.bool)),
        "k": draw.number(1, min(experts, 12)),
        "renorm": draw.number(0, 1),
        "output_softmax": draw.chance(0.3),
    }


def moe_gating_topk(draw: Draw) -> dict:
    """Logits, and what decides between experts, lie too far apart for float32 to order them another way."""
    groups, size, tokens = draw.number(1, 6), draw.number(2, 12), draw.size(40)
    experts, k_group, dtype = groups * size, draw.number(1, groups), draw.one_of(*FLOATS)
    x = torch.stack([draw.permutation(experts) for _ in range(tokens)]) / 8 - draw.real(experts / 8)
    bias = draw.maybe(lambda: draw.permutation(experts).to(dtype) * 2)
    return {
        "x": draw.laid_out(x.to(dtype)),
        "k": draw.number(1, size * k_group),
        "bias": bias,
        "k_group": k_group,
        "group_count": groups,
        "group_select_mode": draw.number(0, 1) if bias is None else 0,
        "norm_type": draw.number(0, 1),
        "routed_scaling_factor": 1 + draw.real(2),
    }


def quantize(draw: Draw) -> dict:
    shape = [draw.size(30) for _ in range(draw.number(1, 3))]
    rank, div_mode = len(shape), draw.chance(0.5)
    axis = draw.number(-rank, rank - 1) if div_mode else draw.one_of(-1, -min(rank, 2))
    channels = draw.one_of([1], [size if at == axis % rank else 1 for at, size in enumerate(shape)])
    return {
        "x": draw.laid_out(draw.floats(shape, draw.one_of(*FLOATS), 5)),
        "scales": draw.positive(channels, size=0.2),
        "zero_points": draw.maybe(lambda: draw.integers(channels, -5, 5, torch.float32)),
        "dtype": torch.int8,
        "axis": axis,
        "div_mode": div_mode,
    }


def anti_quant(draw: Draw) -> dict:
    rows, columns = draw.size(30), draw.size(300)
    channels = draw.one_of(1, columns)
    return {
        "x": draw.codes([rows, columns]),
        "scale": draw.positive([channels]),
        "offset": draw.maybe(lambda: draw.floats([channels], torch.float32)),
        "dtype": draw.one_of(*FLOATS[:2]),
    }


def int4_pack(draw: Draw) -> dict:
    return {"weight": draw.laid_out(draw.nibbles([draw.size(70), 8 * draw.size(60)])).contiguous()}


def nd_to_nz(draw: Draw) -> dict:
    shape = [draw.size(70) for _ in range(draw.number(2, 3))]
    return {"x": draw.laid_out(draw.codes(shape) if draw.chance(0.4) else draw.floats(shape, draw.one_of(*FLOATS)))}


def swiglu(draw: Draw) -> dict:
    shape = [2 * draw.size(30) for _ in range(draw.number(1, 3))]
    return {
        "x": draw.laid_out(draw.floats(shape, draw.one_of(*FLOATS), 3)),
        "dim": draw.number(-len(shape), len(shape) - 1),
    }
