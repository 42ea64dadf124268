# SPDX-License-Identifier: Apache-2.0
"""A linear layer with int4 or int8 weights and float activations."""

from __future__ import annotations

from typing import ClassVar

import torch

from anynpu._check import require, require_ints
from anynpu.formats.quantized_weight import QuantizedWeight, packed, packing_axis
from anynpu.nn.prepacked_linear import PrepackedLinear
from anynpu.ops.int4_pack import int4_pack, int4_unpack
from anynpu.ops.weight_quant_matmul import weight_quant_matmul, weight_quant_prepack
from anynpu.ops.weight_quant_matmul.spec import is_transposed


class WeightQuantLinear(PrepackedLinear):
    """``y = x @ ((weight + offset) * scale) + bias`` in the dtype of x.

    A state dict holds the buffers ``weight``, ``scale``, ``offset``, ``bias`` and ``input_order`` in the plain layouts
    of :func:`anynpu.weight_quant_matmul`; see ``docs/quantization.md``. Scale, offset and bias are float32 and stay so
    when the module is cast (``half()``, ``bfloat16()``, ``to(dtype)``): they are valid with every dtype of x.
    On CPU the first call makes a rearranged copy of the weight. :meth:`prepack` makes it too and keeps it alone: then
    ``weight`` is None, and :meth:`codes` and ``state_dict()`` compute it. The rearranged form is never saved. Compiled
    layers read it where it is alone.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``.
        bits: 4 or 8.
        group_size: 0, or how many inputs share a row of scale.
        symmetric: without an offset.
        bias: with a bias.
        reordered: with ``input_order``, which weights of GPTQ with act-order need.
        device: of the buffers, which are zero until they are loaded.

    >>> import torch, anynpu
    >>> linear = torch.nn.Linear(64, 8)
    >>> quantized = anynpu.W4A16(group_size=32).quantize(linear.weight)
    >>> layer = anynpu.nn.WeightQuantLinear.from_quantized(quantized, linear.bias)
    >>> layer
    WeightQuantLinear(in_features=64, out_features=8, bits=4, group_size=32, symmetric=True, bias=True, reordered=False)
    >>> layer(torch.randn(3, 64)).shape
    torch.Size([3, 8])
    """

    FIELDS: ClassVar = {
        "in_features": int,
        "out_features": int,
        "bits": int,
        "group_size": int,
        "symmetric": bool,
        "bias": bool,
        "reordered": bool,
    }

    scale: torch.Tensor
    offset: torch.Tensor | None
    bias: torch.Tensor | None
    input_order: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bits: int = 4,
        group_size: int = 0,
        symmetric: bool = True,
        bias: bool = True,
        reordered: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        op = "WeightQuantLinear"
        require_ints(op, bits=bits, group_size=group_size)
        require(op, bits in (4, 8), f"bits must be 4 or 8, got {bits}")
        require(
            op,
            group_size == 0 or (group_size % 32 == 0 and 32 <= group_size < in_features),
            f"group_size must be 0 or a multiple of 32 in [32, in_features - 1] = [32, {in_features - 1}], "
            f"got {group_size}",
        )
        self.bits = bits
        self.group_size = group_size
        channels = (-(-in_features // group_size), out_features) if group_size else (out_features,)
        shape, dtype = _stored_weight(in_features, out_features, bits)
        self._register_weight(torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("scale", torch.zeros(channels, dtype=torch.float32, device=device))
        self.register_buffer("offset", None if symmetric else torch.zeros(channels, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None)
        self.register_buffer("input_order", torch.arange(in_features, device=device) if reordered else None)
        self._prepacked_from: tuple[torch.Tensor, int] | None = None
        self._keeps_weight = True

    @classmethod
    def from_quantized(cls, quantized: QuantizedWeight, bias: torch.Tensor | None = None) -> WeightQuantLinear:
        """A layer with the weight of a converter of :mod:`anynpu.formats`, on its device."""
        k, n = quantized.shape
        layer = cls(
            k,
            n,
            bits=4 if quantized.weight.dtype == torch.int32 else 8,
            group_size=quantized.group_size,
            symmetric=quantized.offset is None,
            bias=bias is not None,
            reordered=quantized.input_order is not None,
            device="meta",
        )
        layer._take(quantized, bias)
        return layer

    def _take(self, quantized: QuantizedWeight, bias: torch.Tensor | None) -> None:
        self._set("weight", _stored(quantized.weight, self.in_features, self.out_features))
        self._set("scale", quantized.scale)
        if quantized.offset is not None:
            self._set("offset", quantized.offset)
        if bias is not None:
            self._set("bias", bias.detach().to(torch.float32))
        if quantized.input_order is not None:
            self._set("input_order", quantized.input_order)

    def fields(self) -> dict[str, int | bool]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.offset is None,
            "bias": self.bias is not None,
            "reordered": self.input_order is not None,
        }

    def require_sound(self) -> None:
        if self.input_order is not None:
            every = torch.arange(self.in_features, device=self.input_order.device)
            whole = torch.equal(self.input_order.sort().values, every)
            require("WeightQuantLinear", whole, f"input_order must be an order of {self.in_features} inputs")

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        buffers = self._buffers  # attributes through Module.__getattr__ take as long as a small product
        order = buffers["input_order"]
        if order is not None:
            x = x.index_select(-1, order)
        y = weight_quant_matmul(
            x if x.dim() > 1 else x.unsqueeze(0),
            self._operand(),
            buffers["scale"],
            buffers["offset"],
            buffers["bias"],
            group_size=self.group_size,
            n=self.out_features,
        )
        return y if x.dim() > 1 else y.squeeze(0)

    def matrix(self) -> torch.Tensor:
        weight = self._plain_weight()
        packed_along_n = self.bits == 4 and packing_axis(self.in_features, self.out_features) == "n"
        return weight if packed_along_n else weight.t()

    def codes(self) -> torch.Tensor:
        if self.bits == 8:
            return super().codes()
        codes = int4_unpack(self._plain_weight(), torch.int8)
        return codes if packing_axis(self.in_features, self.out_features) == "k" else codes.t().contiguous()

    def dequantized(self) -> torch.Tensor:
        weight = self.codes().float()
        if self.offset is not None:
            weight += self._by_code(self.offset)
        weight *= self._by_code(self.scale)
        return weight if self.input_order is None else weight[:, self.input_order.argsort()]

    def _by_code(self, parameter: torch.Tensor) -> torch.Tensor:
        """A scale or offset, which inputs share, for the codes ``[N, K]``."""
        if not self.group_size:
            return parameter[:, None]
        return parameter.repeat_interleave(self.group_size, 0)[: self.in_features].t()

    def prepack(self) -> None:
        """As that of any layer, and again in the first call after the weight was replaced or moved."""
        self._keeps_weight = False
        self._rearrange()

    def _rearrange(self) -> None:
        weight = self.weight
        if weight is None:
            return
        if weight.device.type != "cpu":
            self._drop_prepacked()
            return
        self.prepacked = weight_quant_prepack(self.matrix())
        self._prepacked_from = (weight, _version(weight))
        if not self._keeps_weight:
            self.weight = self._prepacked_from = None

    def _drop_prepacked(self) -> None:
        super()._drop_prepacked()
        self._prepacked_from = None

    def _stored(self, codes: torch.Tensor) -> torch.Tensor:
        return _stored(packed(codes, self.bits), self.in_features, self.out_features)

    def _operand(self) -> torch.Tensor:
        # In this order: another thread writes the copy, then what it is of, then no weight.
        weight, source, prepacked = self._buffers["weight"], self._prepacked_from, self._buffers["prepacked"]
        if weight is None:
            return prepacked
        if torch.compiler.is_compiling():  # a graph would not see the weight change: prepack() leaves it the copy alone
            return self.matrix()
        if source is not None and source[0] is weight and source[1] == _version(weight):
            return prepacked
        self._rearrange()
        return self.matrix() if self.prepacked is None else self.prepacked

    def __getstate__(self) -> dict:
        """Copies and pickles hold the weight once: in the rearranged form if the layer has no other."""
        state = self.__dict__.copy()
        if self.weight is not None:
            state["_buffers"] = {**self._buffers, "prepacked": None}
            state["_prepacked_from"] = None
        return state


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _stored_weight(k: int, n: int, bits: int) -> tuple[tuple[int, int], torch.dtype]:
    """Shape and dtype of the buffer ``weight``."""
    axis = packing_axis(k, n) if bits == 4 else None
    if axis == "k":
        return (n, k // 8), torch.int32
    if axis == "n":
        return (k, n // 8), torch.int32
    return (n, k), torch.int8


def _stored(weight: torch.Tensor, k: int, n: int) -> torch.Tensor:
    """The argument ``[K, N]`` of weight_quant_matmul as the contiguous buffer."""
    transposed = is_transposed(weight, k)
    if weight.dtype == torch.int32 and transposed != (packing_axis(k, n) == "k"):
        words = (weight.t() if transposed else weight).contiguous()
        return int4_pack(int4_unpack(words).t().contiguous())
    plain = weight.dtype == torch.int32 and not transposed
    return (weight if plain else weight.t()).contiguous()
