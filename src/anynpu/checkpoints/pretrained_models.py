# SPDX-License-Identifier: Apache-2.0
"""What models of transformers do with quantised layers: describe them when they are saved, and keep their sizes.

Importing this module imports transformers, whose ``PreTrainedModel`` it changes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from anynpu._check import require
from anynpu.nn import QuantizedLinear
from anynpu.quantization.checkpoint import METHOD, described_layers

_save_pretrained = PreTrainedModel.save_pretrained
_resize_token_embeddings = PreTrainedModel.resize_token_embeddings


def _describe_in_config(model: PreTrainedModel) -> None:
    """Makes the configuration, which ``save_pretrained`` writes, name the quantised layers that the model has now."""
    layers = described_layers(model)
    present = getattr(model.config, "quantization_config", None)
    method = METHOD if present is None else dict(present).get("quant_method")
    if layers:
        sentence = f"a folder has layers of one method, the model has anynpu's beside those of {method}"
        require("save_pretrained", method == METHOD, sentence)
        model.config.quantization_config = {"quant_method": METHOD, "layers": layers}
    elif present is not None and method == METHOD:
        del model.config.quantization_config


@functools.wraps(_save_pretrained)
def save_pretrained(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
    """As that of transformers; ``config.json`` names the quantised layers, whoever put them into the model."""
    _describe_in_config(self)
    return _save_pretrained(self, *args, **kwargs)


@functools.wraps(_resize_token_embeddings)
def resize_token_embeddings(
    self: PreTrainedModel,
    new_num_tokens: int | None = None,
    pad_to_multiple_of: int | None = None,
    mean_resizing: bool = True,
) -> torch.nn.Embedding:
    """As that of transformers, but for a quantised output layer, which has the codes of its rows and no others."""
    head = self.get_output_embeddings()
    if not isinstance(head, QuantizedLinear):
        return _resize_token_embeddings(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
    embeddings = self.get_input_embeddings()
    tokens, multiple = new_num_tokens or embeddings.num_embeddings, pad_to_multiple_of or 1
    same = -(-tokens // multiple) * multiple == embeddings.num_embeddings
    sentence = f"must stay {embeddings.num_embeddings}, since the output layer is quantised, got {tokens}"
    require("resize_token_embeddings", same, f"new_num_tokens {sentence}; resize before quantize_, or skip that layer")
    return embeddings


PreTrainedModel.save_pretrained = save_pretrained
PreTrainedModel.resize_token_embeddings = resize_token_embeddings
