# SPDX-License-Identifier: Apache-2.0
"""Oracle of compressed_matmul: a decoder written from docs/formats.md for reading, and exact integer sums."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.compressed_matmul.spec import Arguments, output_shape
from anynpu.ops.quant_matmul.reference import error_bound as quant_matmul_bound
from anynpu.ops.quant_matmul.reference import quant_matmul, scale_values

BLOCK_K, BLOCK_N, PANEL = 256, 128, 64
MARKS = (0xC8, 0xC9)  # of versions 1 and 2


def _rotate_multiply(value: torch.Tensor) -> torch.Tensor:
    return ((value << 13 | value >> 19) & 0xFFFFFFFF) * 0x9E3779B1 & 0xFFFFFFFF


def checksum(payload: torch.Tensor, seed: int) -> int:
    """The hash of a payload (uint8): 64 lanes, then one lane over the lanes."""
    pieces = payload.numel() // 256 + 1
    padded = torch.zeros(pieces * 256, dtype=torch.int64)
    padded[: payload.numel()] = payload.long()
    words = (padded.reshape(pieces, 64, 4) << torch.tensor([0, 8, 16, 24])).sum(-1)
    lanes = (torch.arange(64) + seed) & 0xFFFFFFFF
    for piece in words:
        lanes = _rotate_multiply(lanes ^ piece)
    value = seed ^ payload.numel()
    for lane in lanes.tolist():
        value = ((value ^ lane) << 13 | (value ^ lane) >> 19) & 0xFFFFFFFF
        value = value * 0x9E3779B1 & 0xFFFFFFFF
    return value ^ value >> 16


def block_seed(k: int, n: int, block: int, kind: int) -> int:
    """Binds a checksum to the matrix, the place and the kind of a block."""
    seed = MARKS[0]
    for part in (k, n, block, kind):
        seed = (seed ^ part) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        seed ^= seed >> 32
    return seed & 0xFFFFFFFF


def _nibbles(data: torch.Tensor) -> torch.Tensor:
    return torch.stack([data & 15, data >> 4], dim=-1).flatten().long()


def _codes(base: torch.Tensor, bits: torch.Tensor, extras: torch.Tensor) -> torch.Tensor:
    """base + the next bits of the bit string, for every code."""
    string = (extras.long().unsqueeze(-1) >> torch.arange(8) & 1).flatten()
    ends = bits.cumsum(0)
    if (int(ends[-1]) + 7) // 8 != extras.numel():
        raise ValueError("a level needs more or fewer extra bits than it has")
    string = torch.cat([string, torch.zeros(8, dtype=torch.int64)])
    places = (ends - bits).unsqueeze(-1) + torch.arange(7)
    wanted = torch.arange(7) < bits.unsqueeze(-1)
    return (
        base + (torch.where(wanted, string[places.clamp(max=string.numel() - 1)], 0) << torch.arange(7)).sum(-1)
    ) & 255


def _bits(data: torch.Tensor) -> torch.Tensor:
    bits = _nibbles(data)
    if bool((bits > 7).any()):
        raise ValueError("a table holds a bit count above 7")
    return bits


def _ranks_to_bytes(order: torch.Tensor) -> torch.Tensor:
    """The bytes of two nibbles by the sum of their weights, then by themselves."""
    return torch.tensor(sorted(range(256), key=lambda byte: (int(order[byte & 15] + order[byte >> 4]), byte)))


def _boxes(base: torch.Tensor, mask: torch.Tensor, extras: torch.Tensor) -> torch.Tensor:
    """Bytes of two nibbles: a base, and extra bits first for the low nibble, then for the high one."""
    low, high = mask & 15, mask >> 4
    if bool(((low & (low + 1)) | (high & (high + 1)) | (mask == 255)).any()):
        raise ValueError("a table holds a mask that is none")
    low_bits, high_bits = (low + 1).log2().long(), (high + 1).log2().long()
    bits = _codes(torch.zeros_like(base), low_bits + high_bits, extras)
    return (base + (bits & low) + (bits >> low_bits << 4)) & 255


def _coded_values(payload: torch.Tensor, panels: int, steps: int) -> torch.Tensor:
    values = panels * steps * 256
    levels, folded, tables_log2, boxes = payload[:4].tolist()
    sizes = (payload[4:16].long().reshape(6, 2) << torch.tensor([0, 8])).sum(-1).tolist()
    at = 16 + (24 << tables_log2)
    level_tables = {}
    for level in range(2, levels + 1):
        size = 32 if boxes >> (level - 2) & 1 else 24
        level_tables[level] = payload[at : at + size]
        at += size
    extras = {}
    for level in range(levels, 0, -1):
        extras[level] = payload[at : at + sizes[level - 1]]
        at += sizes[level - 1]
    classes = _nibbles(payload[at : at + (values >> levels)])
    for level in range(levels, 1, -1):
        first, second = level_tables[level][:16].long(), level_tables[level][16:]
        if boxes >> (level - 2) & 1:
            classes = _nibbles(_boxes(first[classes], second.long()[classes], extras[level]))
            continue
        bits = _bits(second)
        base = (1 << bits).cumsum(0) - (1 << bits)
        ranks = _codes(base[classes], bits[classes], extras[level])
        classes = _nibbles(_ranks_to_bytes(first)[ranks])
    tables = payload[16 : 16 + (24 << tables_log2)].reshape(-1, 24)
    base, bits = tables[:, :16].long(), torch.stack([_bits(table[16:]) for table in tables])
    column = torch.arange(panels).reshape(-1, 1, 1, 1) * PANEL + torch.arange(PANEL).reshape(1, 1, -1, 1)
    table = (column * len(tables) // BLOCK_N).expand(panels, steps, PANEL, 4).flatten()
    codes = _codes(base[table, classes], bits[table, classes], extras[1])
    if not folded:
        return codes - 128
    return torch.where(codes % 2 == 0, codes // 2, -(codes + 1) // 2)


def decompress(stream: torch.Tensor, index: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """The int8 weight ``(n, k)`` of a compressed one."""
    entries = index.view(torch.uint8).reshape(-1, 8).long()
    k_blocks = -(-k // BLOCK_K)
    weight = torch.zeros((n + BLOCK_N, k + BLOCK_K), dtype=torch.int64)
    data, at = stream.view(torch.uint8), 0
    for block, entry in enumerate(entries):
        first_k, first_n = block % k_blocks * BLOCK_K, block // k_blocks * BLOCK_N
        steps, panels = -(-min(BLOCK_K, k - first_k) // 4), -(-min(BLOCK_N, n - first_n) // PANEL)
        length, kind = 8 * int(entry[4] + (entry[5] << 8)), int(entry[6])
        payload = data[at : at + length]
        at += length
        expected = int((entry[:4] << torch.tensor([0, 8, 16, 24])).sum())
        if int(entry[7]) not in MARKS or checksum(payload, block_seed(k, n, block, kind)) != expected:
            raise ValueError(f"compressed_matmul: block {block} of the compressed weight is damaged or foreign")
        if kind == 0:
            values = payload.long() - 128
        elif kind == 1:
            values = torch.full((panels * steps * 256,), int(payload[0]) - 128)
        else:
            values = _coded_values(payload, panels, steps)
        tile = values.reshape(panels, steps, PANEL, 4).permute(0, 2, 1, 3).reshape(panels * PANEL, steps * 4)
        weight[first_n : first_n + panels * PANEL, first_k : first_k + steps * 4] = tile
    return weight[:n, :k].to(torch.int8)


def factors(scale: torch.Tensor, scale_19_bits: bool) -> torch.Tensor:
    """The float32 scales of either encoding, ``(1,)`` or ``(N,)``."""
    factor = scale_values(scale.reshape(-1))[0].float()
    return (factor.view(torch.int32) & -8192).view(torch.float32) if scale_19_bits else factor


def _decompressed(a: Arguments) -> dict[str, torch.Tensor | torch.dtype | None]:
    """The arguments of the same product by quant_matmul."""
    _, n = output_shape(a)
    return {
        "x1": a.x,
        "x2": decompress(a.stream, a.index, n, a.x.shape[1]).t(),
        "scale": factors(a.scale, a.scale_19_bits),
        "pertoken_scale": a.pertoken_scale,
        "bias": None if a.bias is None else a.bias.reshape(-1),
        "output_dtype": a.output_dtype,
    }


@takes(Arguments)
def compressed_matmul(a: Arguments) -> torch.Tensor:
    """(x @ W.T + int32 bias) * scale * pertoken_scale + float bias, rounded once."""
    return quant_matmul(**_decompressed(a))


@takes(Arguments)
def error_bound(a: Arguments) -> torch.Tensor:
    """How far an element may be from the reference: as far as one of quant_matmul, by the same epilogue."""
    return quant_matmul_bound(**_decompressed(a))
