# SPDX-License-Identifier: Apache-2.0
"""Gated feed-forward networks with int8 activations and int8 or int4 weights, many of them in one operand."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import require, require_ints
from anynpu.nn.float32_buffers import Float32Buffers
from anynpu.ops.dequant_swiglu_quant import dequant_swiglu_quant
from anynpu.ops.grouped_matmul_combine import grouped_matmul_combine, make_w4a8_bias, pack_scale
from anynpu.ops.grouped_matmul_combine.weights import unpack_scale
from anynpu.ops.int4_pack import int4_pack, int4_unpack

_OP = "QuantExperts"


class QuantExperts(Float32Buffers):
    """``down(silu(gate(x)) * up(x))`` for E experts, in the operands of :func:`anynpu.grouped_matmul_combine`.

    A state dict holds ``gate_up`` (the gate's columns first) and ``down``, int8 ``[E, K, N]`` or int32
    ``[E, K, N / 8]`` of :func:`anynpu.int4_pack`; their scales, float32 ``[E, N]`` or int64 ``[E, G, N]`` of
    :func:`anynpu.pack_scale`; and for int4 their ``bias`` of :func:`anynpu.make_w4a8_bias`. Float buffers stay float32
    when the module is cast.

    Args:
        experts, hidden, intermediate: E, and the sizes of a token and of what lies between the products.
        bits: 8 or 4.
        group_size: 0, or for 4 bits how many inputs share a row of scale; it divides both sizes.
        device: of the buffers, which are zero until they are loaded.
    """

    def __init__(
        self,
        experts: int,
        hidden: int,
        intermediate: int,
        bits: int = 8,
        group_size: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        _require_sizes(experts, hidden, intermediate, bits, group_size)
        self.experts, self.hidden, self.intermediate = experts, hidden, intermediate
        self.bits, self.group_size = bits, group_size
        for name, k, n in (("gate_up", hidden, 2 * intermediate), ("down", intermediate, hidden)):
            for key, (shape, dtype) in _operand_shapes(experts, k, n, bits, group_size).items():
                self.register_buffer(_joined(name, key), torch.zeros(shape, dtype=dtype, device=device))

    @classmethod
    def from_codes(
        cls,
        gate_up: tuple[torch.Tensor, torch.Tensor],
        down: tuple[torch.Tensor, torch.Tensor],
        bits: int,
        group_size: int,
    ) -> QuantExperts:
        """Experts with the codes int8 ``[E, N, K]`` and scales float32 ``[E, N, G]`` of both matrices."""
        experts, width, hidden = gate_up[0].shape
        made = cls(experts, hidden, width // 2, bits, group_size, device="meta")
        for name, (codes, scale) in (("gate_up", gate_up), ("down", down)):
            for key, value in _operands(codes, scale, bits).items():
                buffer = getattr(made, _joined(name, key))
                fits = (buffer.shape, buffer.dtype) == (value.shape, value.dtype)
                require(_OP, fits, f"{name} must have {tuple(buffer.shape)} as {key}, got {tuple(value.shape)}")
                setattr(made, _joined(name, key), value)
        return made

    @classmethod
    def joined(cls, parts: Sequence[QuantExperts]) -> QuantExperts:
        """The experts of all parts, which agree in everything but their number."""
        first, count = parts[0], sum(part.experts for part in parts)
        made = cls(count, first.hidden, first.intermediate, first.bits, first.group_size, device="meta")
        for name in made._buffers:
            setattr(made, name, torch.cat([getattr(part, name) for part in parts]))
        return made

    def part(self, first: int, last: int) -> QuantExperts:
        """The experts [first, last), in memory of their own."""
        made = QuantExperts(last - first, self.hidden, self.intermediate, self.bits, self.group_size, device="meta")
        for name, buffer in self._buffers.items():
            setattr(made, name, buffer[first:last].clone())
        return made

    def codes(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes int8 ``[E N, K]`` and scales float32 ``[E N, G]`` of ``"gate_up"`` or ``"down"``."""
        matrix, scale = getattr(self, name), getattr(self, f"{name}_scale")
        if self.bits == 4:
            matrix, scale = int4_unpack(matrix, torch.int8), unpack_scale(scale)
        scale = scale.reshape(self.experts, -1, scale.shape[-1])
        return tuple(each.transpose(1, 2).flatten(0, 1).contiguous() for each in (matrix, scale))

    def forward(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        counts: torch.Tensor,
        row_index: torch.Tensor,
        logit: torch.Tensor | None,
        tokens: int,
        shared_input: torch.Tensor | None = None,
        shared_input_offset: int = 0,
    ) -> torch.Tensor:
        """float32 ``[tokens, hidden]``: the results of rows sorted by expert, added up by token.

        Args:
            codes, scale: int8 ``[M, hidden]`` and float32 ``[M]``, rows of quantised tokens, by expert.
            counts: int64 ``[E]``, the rows of each expert; rows beyond them do not count.
            row_index: int64 ``[M]``, the token of each row.
            logit: float32 ``[M]``, the weight of each row.
            shared_input, shared_input_offset: bfloat16 rows to add, and the token of the first.
        """
        own = torch.arange(codes.shape[0], device=codes.device)
        projected = grouped_matmul_combine(codes, *self._operands_of("gate_up", counts, own), pertoken_scale=scale)
        active, active_scale = dequant_swiglu_quant(projected, group_index=counts, activate_left=True, quant_mode=1)
        return grouped_matmul_combine(
            active,
            *self._operands_of("down", counts, row_index),
            pertoken_scale=active_scale,
            logit=logit,
            shared_input=shared_input,
            shared_input_offset=shared_input_offset,
            output_bs=tokens,
        )

    def of_floats(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """What one expert makes of float32 rows ``[M, hidden]`` where none is quantised, by torch's operators."""
        own = self.part(expert, expert + 1)
        gate_up, down = (own._dequantized(name) for name in ("gate_up", "down"))
        gate, up = torch.nn.functional.linear(x, gate_up).chunk(2, -1)
        return torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down)

    def _dequantized(self, name: str) -> torch.Tensor:
        codes, scale = self.codes(name)
        return codes * scale.repeat_interleave(codes.shape[1] // scale.shape[1], 1)

    def _operands_of(self, name: str, counts: torch.Tensor, row_index: torch.Tensor) -> tuple:
        buffers = self._buffers
        return buffers[name], buffers[f"{name}_scale"], counts, row_index, buffers.get(f"{name}_bias")

    def extra_repr(self) -> str:
        sizes = f"{self.experts}, hidden={self.hidden}, intermediate={self.intermediate}"
        return f"{sizes}, bits={self.bits}, group_size={self.group_size}"


def _joined(name: str, key: str) -> str:
    return f"{name}_{key}" if key != "weight" else name


def _require_sizes(experts: int, hidden: int, intermediate: int, bits: int, group_size: int) -> None:
    require_ints(_OP, experts=experts, hidden=hidden, intermediate=intermediate, bits=bits, group_size=group_size)
    sizes = (experts, hidden, intermediate)
    require(_OP, min(sizes) > 0, f"sizes must be positive, got {sizes}")
    require(_OP, bits in (4, 8), f"bits must be 4 or 8, got {bits}")
    require(_OP, bits == 4 or group_size == 0, f"group_size must be 0 with 8 bits, got {group_size}")
    if bits == 8:
        return
    whole = hidden % 8 == 0 and intermediate % 4 == 0
    require(_OP, whole, f"4 bits want hidden % 8 == 0 and intermediate % 4 == 0, got {hidden} and {intermediate}")
    divides = group_size == 0 or (group_size > 0 and hidden % group_size == intermediate % group_size == 0)
    sentence = f"group_size must divide hidden and intermediate, {hidden} and {intermediate}, got {group_size}"
    require(_OP, divides, sentence)


def _operand_shapes(experts: int, k: int, n: int, bits: int, group_size: int) -> dict[str, tuple[tuple, torch.dtype]]:
    if bits == 8:
        return {"weight": ((experts, k, n), torch.int8), "scale": ((experts, n), torch.float32)}
    groups = k // group_size if group_size else 1
    return {
        "weight": ((experts, k, n // 8), torch.int32),
        "scale": ((experts, groups, n), torch.int64),
        "bias": ((experts, n), torch.float32),
    }


def _operands(codes: torch.Tensor, scale: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """What the operator reads of codes [E, N, K] and scales [E, N, G]."""
    matrix = codes.transpose(1, 2).contiguous()
    if bits == 8:
        return {"weight": matrix, "scale": scale.squeeze(-1).contiguous()}
    words, by_group = int4_pack(matrix.int()), scale.transpose(1, 2).contiguous()
    return {"weight": words, "scale": pack_scale(by_group), "bias": make_w4a8_bias(words, by_group)}
