# SPDX-License-Identifier: Apache-2.0
"""anynpu as a quantisation method of transformers: ``from_pretrained`` quantises, and reads what was saved.

Importing this module imports transformers, with which it registers the method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

try:
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin
except ImportError as error:
    raise ImportError("anynpu.AnynpuConfig: needs the package transformers: pip install 'anynpu[demo]'") from error

from anynpu._check import require, require_type
from anynpu.checkpoints.experts import split_experts
from anynpu.checkpoints.model import has, install
from anynpu.nn import CompressedLinear, QuantizedLayer
from anynpu.quantization.checkpoint import METHOD, empty_layers, require_fields
from anynpu.quantization.config import QuantConfig
from anynpu.quantization.quantize import quantize_

_OP = "AnynpuConfig"
_INITIALISED = torch.empty(0)
_INITIALISED._is_hf_initialized = True  # models that initialise the weight of a layer of theirs then leave it


@register_quantization_config(METHOD)
class AnynpuConfig(QuantizationConfigMixin):
    """How ``from_pretrained`` of transformers quantises a float model: as :func:`anynpu.quantize_` does.

    Args:
        config: such as ``anynpu.W4A16()``; None only beside ``layers``.
        skip: layers to leave alone, as for :func:`anynpu.quantize_`.
        layers: what ``config.json`` of a saved model says of its quantised layers, by name.

    Raises:
        TypeError, ValueError: no such configuration, or no layers as anynpu writes them.

    >>> import anynpu
    >>> anynpu.AnynpuConfig(anynpu.W4A16(group_size=64), skip=("lm_head",)).skip
    ('lm_head',)
    """

    def __init__(
        self,
        config: QuantConfig | None = None,
        skip: Sequence[str] = (),
        layers: dict[str, dict[str, Any]] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        require(_OP, quant_method == METHOD, f"quant_method must be {METHOD!r}, got {quant_method!r}")
        if layers is None:
            require_type(_OP, "config", config, QuantConfig, "a configuration such as W4A16(...)")
        else:
            require_type(_OP, "layers", layers, dict, "an object")
            for name, fields in layers.items():
                require_fields(_OP, name, fields)
        self.quant_method = METHOD
        self.config, self.skip, self.layers = config, skip, layers

    def to_dict(self) -> dict[str, Any]:
        """What ``config.json`` holds: the layers of the model, not how they came to be."""
        return {"quant_method": METHOD, "layers": self.layers or {}}

    def __repr__(self) -> str:
        if self.layers is not None:
            return f"AnynpuConfig(layers={self.layers})"
        return f"AnynpuConfig({self.config}, skip={self.skip})"


def _place(model: torch.nn.Module, name: str) -> str | None:
    """The layer ``name`` of the files in a model that may be their base model, or have theirs as its own."""
    prefix = f"{model.base_model_prefix}."
    return next((each for each in (name, prefix + name, name.removeprefix(prefix)) if has(model, each)), None)


def _has_other_outputs(model: torch.nn.Module, place: str, fields: dict[str, Any]) -> bool:
    """Whether a layer of the files is a head for another number of labels, say, than that of the model.

    Of as many labels as inputs the float weight may have the shape of a packed one.
    """
    present, inputs = model.get_submodule(place), fields.get("in_features")
    linear = type(present) is torch.nn.Linear and inputs == present.in_features
    return linear and present.out_features not in (fields["out_features"], inputs)


@register_quantizer(METHOD)
class _Quantizer(HfQuantizer):
    """Quantises a model after its float weights were loaded, or puts empty layers where saved ones are to be loaded."""

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters on its layers can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        return True

    def validate_environment(self, device_map: object = None, **kwargs: Any) -> None:
        """Refuses to quantise what stays on the disk; saved layers may lie there."""
        places = device_map if isinstance(device_map, dict) else {}
        on_disk = [name for name, place in places.items() if place == "disk"]
        sentence = f"device_map must keep float modules off the disk while they are quantised, got {on_disk[:3]} there"
        require(_OP, self.pre_quantized or not on_disk, sentence)

    def _process_model_before_weight_loading(self, model: torch.nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            return
        layers = self.quantization_config.layers
        split_experts(model, [name for name in layers if ".experts." in name])
        layers = {_place(model, name): fields for name, fields in layers.items()}
        layers.pop(None, None)  # of a head that this model lacks: transformers reports its tensors
        others = [place for place, fields in layers.items() if _has_other_outputs(model, place, fields)]
        for place in others:  # stays float: transformers refuses the sizes of its tensors, or initialises it on request
            del layers[place]
        for name, layer in empty_layers(model, layers).items():
            install(model, name, layer)
            if isinstance(layer, CompressedLinear):
                vars(layer)["weight"] = _INITIALISED
        for tied in list(model.all_tied_weights_keys.items()):
            if any(name.rpartition(".")[0] in layers for name in tied):
                del model.all_tied_weights_keys[tied[0]]

    def _process_model_after_weight_loading(self, model: torch.nn.Module, **kwargs: Any) -> None:
        if not self.pre_quantized:
            quantize_(model, self.quantization_config.config, skip=self.quantization_config.skip)
            return
        for module in model.modules():
            if isinstance(module, QuantizedLayer):
                vars(module).pop("weight", None)
                module.require_sound()
                module.prepack()
