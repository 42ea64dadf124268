# SPDX-License-Identifier: Apache-2.0
"""GGUF files (llama.cpp) as transformers models: block types that a layer holds stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anynpu._check import require
from anynpu.checkpoints.folder import OP
from anynpu.checkpoints.model import empty_model, fill, install, require_linear
from anynpu.checkpoints.producers import weight_layer
from anynpu.formats.gguf import BLOCK_TYPES, from_gguf

ARCHITECTURES = ("llama", "qwen2", "qwen3")  # whose tensors are those of transformers but for llama's order of rows
_FLOAT_TYPES = ("F32", "F16", "BF16")


def load_gguf(path: Path, dtype: torch.dtype | None, progress: Callable[[str], None]) -> torch.nn.Module:
    """The model of a file.

    Raises:
        ImportError: transformers or gguf is not installed.
        TypeError, ValueError: a damaged file, another architecture, or a block type that no layer holds.
    """
    try:
        import gguf
        from transformers import modeling_gguf_pytorch_utils as reading
    except ImportError as error:
        raise ImportError(f"{OP}: GGUF files need transformers and gguf: pip install transformers gguf") from error
    try:
        reader = gguf.GGUFReader(path)
        config = reading.load_gguf_checkpoint(str(path))["config"]
        architecture = reader.fields["general.architecture"].contents()
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{OP}: {path} is no GGUF file that can be read: {error}") from error
    known = architecture in ARCHITECTURES
    require(OP, known, f"architecture of {path} must be one of {', '.join(ARCHITECTURES)}, got {architecture!r:.80}")
    model = empty_model(config, dtype, False, len(reader.tensors))
    names = reading.get_gguf_hf_weights_map(model, reading.TensorProcessor(config=config))
    floats, layers = {}, {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        require(OP, tensor.name in names, f"{path} has a tensor {tensor.name!r:.80} that the model lacks")
        name = names[tensor.name]
        data = _rows(torch.from_numpy(tensor.data.copy()), name, model.config, architecture)
        module, kind = name.rpartition(".")[0], tensor.tensor_type.name
        linear = type(model.get_submodule(module)) is torch.nn.Linear
        if kind in _FLOAT_TYPES or not linear:
            floats[name] = _floats(data, kind, tensor.tensor_type)
            continue
        known = kind in BLOCK_TYPES
        require(OP, known, f"the type of {tensor.name} must be {', '.join((*BLOCK_TYPES, *_FLOAT_TYPES))}, got {kind}")
        layers[module] = from_gguf(data, kind)
        progress(name)
    for module, weight in layers.items():
        layer = weight_layer(weight, floats.pop(f"{module}.bias", None))
        require_linear(model, module, layer)
        install(model, module, layer)
    fill(model, floats)
    return model


def _rows(data: torch.Tensor, name: str, config: Any, architecture: str) -> torch.Tensor:
    """Rows in the order of transformers: llama's q and k have the two halves of each head's rotation interleaved."""
    own = name.split(".")[-2]
    if architecture != "llama" or own not in ("q_proj", "k_proj"):
        return data
    heads = config.num_attention_heads if own == "q_proj" else config.num_key_value_heads
    rows = data.shape[0]
    require(OP, rows % (2 * heads) == 0, f"rows of {name} must be a multiple of 2 x {heads} heads, got {rows}")
    order = torch.arange(rows).reshape(heads, rows // heads // 2, 2).transpose(1, 2).flatten()
    return data[order]


def _floats(data: torch.Tensor, kind: str, number: Any) -> torch.Tensor:
    """The values of float types, and of blocks of embeddings, which are looked up and not multiplied by."""
    import gguf

    if kind in ("F32", "F16"):
        return data
    return torch.from_numpy(gguf.dequantize(data.numpy(), number))
