# SPDX-License-Identifier: Apache-2.0
"""Quantised linear layers that can keep their weight in the form that the CPU kernels read fastest."""

from __future__ import annotations

from collections.abc import Callable

import torch

from anynpu.nn.quantized_linear import QuantizedLinear
from anynpu.ops.quant_matmul.int8_linear import reads_prepacked
from anynpu.ops.weight_quant_matmul import weight_quant_prepack, weight_quant_unprepack


class PrepackedLinear(QuantizedLinear):
    """A layer whose buffer ``weight`` :meth:`prepack` rearranges into ``prepacked``, the only one from then on.

    State dicts hold the plain weight only. It is a buffer again where the layer is moved off the CPU.
    """

    weight: torch.Tensor | None
    prepacked: torch.Tensor | None

    def _register_weight(self, weight: torch.Tensor) -> None:
        self.register_buffer("weight", weight)
        self.register_buffer("prepacked", None, persistent=False)

    def matrix(self) -> torch.Tensor:
        """The plain weight as the argument ``[K, N]`` of the layer's product."""
        return self._plain_weight().t()

    def codes(self) -> torch.Tensor:
        """The signed codes, int8 ``[N, K]``, in the order of K in which the layer keeps them."""
        return self._plain_weight()

    def prepack(self) -> None:
        """Keeps the weight in the form that the CPU kernels read fastest, and only there.

        ``weight`` is None from then on. Nothing where the plain weight is read: on other devices, and
        without AVX-512 int8 weights beside int8 activations.
        """
        if self.weight is not None and self.weight.device.type == "cpu" and reads_prepacked():
            self.prepacked = weight_quant_prepack(self.matrix())
            self.weight = None

    def _stored(self, codes: torch.Tensor) -> torch.Tensor:
        """int8 codes ``[N, K]``, of any strides, as ``weight`` holds them."""
        return codes.contiguous()

    def _plain_weight(self) -> torch.Tensor:
        return self._stored(weight_quant_unprepack(self.prepacked).t()) if self.weight is None else self.weight

    def _drop_prepacked(self) -> None:
        self.weight = self._plain_weight()
        self.prepacked = None

    def _operand(self) -> torch.Tensor:
        weight = self._buffers["weight"]  # attributes through Module.__getattr__ take as long as a small product
        return self._buffers["prepacked"] if weight is None else weight.t()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> PrepackedLinear:
        if self.prepacked is not None:
            probe = self.prepacked.new_empty(0)
            if fn(probe) is not probe:  # more than a cast of floats
                self._drop_prepacked()
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self._plain_weight()

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        prepacked = self.weight is None
        self._drop_prepacked()
        super()._load_from_state_dict(*args, **kwargs)
        if prepacked:
            self.prepack()
