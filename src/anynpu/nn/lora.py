# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters of PEFT on quantised linear layers.

Importing this module imports PEFT, which from then on puts its adapters on them.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import model as lora
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer

from anynpu.nn.quantized_linear import QuantizedLinear

_dispatch_default = lora.dispatch_default


class LoraLinear(Linear):
    """A quantised layer with adapters beside it."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], None]:
        return {(): None}  # the others, of which DoRA is one, compute with the weight

    def _get_in_out_features(self, module: torch.nn.Module) -> tuple[int, int]:
        return module.in_features, module.out_features  # PEFT's own warns of layers that it does not know

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: integer codes do not take up an adapter."""
        kind = type(self.get_base_layer()).__name__
        raise ValueError(
            f"merge: adapters cannot be merged into a {kind}, whose weight is quantised; they run beside it"
        )


def _dispatch(target: torch.nn.Module, adapter_name: str, **options: Any) -> torch.nn.Module | None:
    """The layer with adapters for a layer of the model."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if isinstance(base, QuantizedLinear):
        return LoraLinear(target, adapter_name, **options)
    return _dispatch_default(target, adapter_name, **options)


lora.dispatch_default = _dispatch
