# SPDX-License-Identifier: Apache-2.0
"""Linear layers that quantise their activations and multiply in int8 (W8A8)."""

from __future__ import annotations

from typing import ClassVar

import torch

from anynpu._check import require, require_ints, require_last_axis
from anynpu.formats.compressed import (
    CompressedWeight,
    compress_weight,
    decompress_weight,
    index_bytes,
    info_of,
    most_bytes,
)
from anynpu.nn.prepacked_linear import PrepackedLinear
from anynpu.nn.quantized_linear import QuantizedLinear
from anynpu.ops.quant_matmul.int8_linear import int8_linear
from anynpu.ops.quant_matmul.spec import MOST_K


class Int8Linear(QuantizedLinear):
    """``y = (x8 @ weight.T) * scale * input_scale + bias`` in the dtype of x, with ``x8 = rint(x / input_scale)``.

    Subclasses hold the int8 weight. The float32 buffers ``scale``, ``bias`` and
    ``input_scale`` stay float32 when the module is cast. Without ``input_scale`` every row of x gets a scale of its
    own, its largest magnitude / 127.
    """

    scale: torch.Tensor
    bias: torch.Tensor | None
    input_scale: torch.Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool, static: bool, device: torch.device | str | None
    ) -> None:
        super().__init__(in_features, out_features)
        op = type(self).__name__
        require(op, in_features <= MOST_K, f"in_features must be at most {MOST_K}, got {in_features}")
        self.register_buffer("scale", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float32, device=device) if bias else None)
        self.register_buffer("input_scale", torch.ones(1, dtype=torch.float32, device=device) if static else None)

    def _set_parameters(self, scale: torch.Tensor, bias: torch.Tensor | None, input_scale: torch.Tensor | None) -> None:
        self._set("scale", scale)
        if bias is not None:
            self._set("bias", bias.detach().to(torch.float32))
        if input_scale is not None:
            self._set("input_scale", input_scale)
        self.require_sound()

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        require_last_axis(type(self).__name__, x, self.in_features)
        buffers = self._buffers
        return int8_linear(
            x,
            self._operand(),
            buffers["scale"],
            buffers["bias"],
            self.out_features,
            input_scale=buffers["input_scale"],
            index=buffers.get("index"),
        )

    def _operand(self) -> torch.Tensor:
        """The weight as :func:`int8_linear` takes it."""
        raise NotImplementedError

    def codes(self) -> torch.Tensor:
        """The codes, int8 ``[N, K]``."""
        raise NotImplementedError

    def dequantized(self) -> torch.Tensor:
        return self.codes() * self.scale[:, None]

    def fields(self) -> dict[str, int | bool]:
        return {
            "in_features": self.in_features,
            "out_features": self.out_features,
            "bias": self.bias is not None,
            "static": self.input_scale is not None,
        }

    def require_sound(self) -> None:
        scale = self.input_scale
        if scale is not None and not scale.is_meta:
            valid = bool(scale.isfinite()) and bool(scale > 0)
            require(type(self).__name__, valid, f"input_scale must be positive and finite, got {float(scale)}")


class QuantLinear(PrepackedLinear, Int8Linear):
    """A linear layer with int8 weights and activations, the product of :func:`anynpu.quant_matmul`.

    A state dict holds ``weight`` int8 ``[N, K]``, ``scale`` ``[N]``, and where the layer has them ``bias`` ``[N]`` and
    ``input_scale`` ``[1]``.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``.
        bias: with a bias.
        static: with one ``input_scale`` for all activations, instead of one found for each row at run time.
        device: of the buffers, which are to be loaded.

    >>> import torch, anynpu
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    >>> anynpu.quantize_(model, anynpu.W8A8())[0]
    QuantLinear(in_features=64, out_features=8, bias=True, static=False)
    """

    FIELDS: ClassVar = {"in_features": int, "out_features": int, "bias": bool, "static": bool}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        static: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, static, device)
        self._register_weight(torch.zeros((out_features, in_features), dtype=torch.int8, device=device))

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> QuantLinear:
        """A layer of int8 codes ``[N, K]``, float32 scale ``[N]``, bias ``[N]`` and input_scale ``[1]``."""
        n, k = codes.shape
        layer = cls(k, n, bias=bias is not None, static=input_scale is not None, device="meta")
        layer._set("weight", codes)
        layer._set_parameters(scale, bias, input_scale)
        return layer


class CompressedLinear(Int8Linear):
    """:class:`QuantLinear` with a losslessly compressed weight, the product of :func:`anynpu.compressed_matmul`.

    Results are bit for bit those of a QuantLinear with the same codes. A state dict holds ``stream`` and ``index`` of
    format c8 (``docs/formats.md``) instead of ``weight``.

    Args:
        in_features, out_features, bias, static, device: as in QuantLinear.
        stream_bytes: length of ``stream``, which depends on the weight.

    >>> import torch, anynpu
    >>> model = torch.nn.Sequential(torch.nn.Linear(512, 128))
    >>> _ = torch.nn.init.normal_(model[0].weight)
    >>> layer = anynpu.quantize_(model, anynpu.W8A8Compressed())[0]
    >>> layer.stream_bytes < 512 * 128
    True
    """

    FIELDS: ClassVar = {**QuantLinear.FIELDS, "stream_bytes": int}

    weight = None  # models look whether there is one, as beside a prepacked weight
    stream: torch.Tensor
    index: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stream_bytes: int,
        bias: bool = True,
        static: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, static, device)
        require_ints("CompressedLinear", stream_bytes=stream_bytes)
        most = most_bytes(out_features, in_features)
        require(
            "CompressedLinear", 0 < stream_bytes <= most, f"stream_bytes must be in [1, {most}], got {stream_bytes}"
        )
        self.register_buffer("stream", torch.zeros(stream_bytes, dtype=torch.int8, device=device))
        entries = index_bytes(out_features, in_features)
        self.register_buffer("index", torch.zeros(entries, dtype=torch.int8, device=device))

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> CompressedLinear:
        """As :meth:`QuantLinear.from_codes`; the codes are compressed."""
        n, k = codes.shape
        weight = compress_weight(codes)
        static = input_scale is not None
        layer = cls(k, n, weight.stream.numel(), bias=bias is not None, static=static, device="meta")
        layer._set("stream", weight.stream)
        layer._set("index", weight.index)
        layer._set_parameters(scale, bias, input_scale)
        return layer

    @property
    def stream_bytes(self) -> int:
        """Length of the compressed weight, without its index."""
        return self.stream.numel()

    def compressed(self) -> CompressedWeight:
        """The weight as :mod:`anynpu.formats` has it."""
        return CompressedWeight(self.stream, self.index, info_of(self.out_features, self.in_features))

    def fields(self) -> dict[str, int | bool]:
        return {**super().fields(), "stream_bytes": self.stream_bytes}

    def require_sound(self) -> None:
        super().require_sound()
        if not self.stream.is_meta:
            self.codes()

    def _operand(self) -> torch.Tensor:
        return self._buffers["stream"]

    def codes(self) -> torch.Tensor:
        return decompress_weight(self.compressed())

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args, **kwargs) -> None:
        stream = state_dict.get(f"{prefix}stream")
        if (
            stream is not None
            and stream.dim() == 1
            and stream.numel() <= most_bytes(self.out_features, self.in_features)
        ):
            self.stream = self.stream.new_zeros(stream.shape)  # another weight compresses to another length
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
