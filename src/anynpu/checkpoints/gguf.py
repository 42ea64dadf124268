# SPDX-License-Identifier: Apache-2.0
"""GGUF files (llama.cpp) as transformers models: block types that a layer holds stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anynpu._check import require
from anynpu.checkpoints.experts import count_experts, split_experts, stack_float_experts
from anynpu.checkpoints.folder import OP
from anynpu.checkpoints.model import empty_model, fill, has, install, require_linear
from anynpu.checkpoints.producers import weight_layer
from anynpu.formats.gguf import BLOCK_TYPES, from_gguf

# Whose tensors are those of transformers but for llama's order of rows and the experts, a 3-D tensor for each matrix.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen2moe", "qwen3moe")
_FLOAT_TYPES = ("F32", "F16", "BF16")
_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")
_EXPERT_SIZES = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}  # which transformers leaves at its defaults


def load_gguf(path: Path, dtype: torch.dtype | None, progress: Callable[[str], None]) -> torch.nn.Module:
    """The model of a file.

    Raises:
        ImportError: transformers or gguf is not installed.
        TypeError, ValueError: a damaged file, another architecture, or a block type that no layer holds.
    """
    tensors, config, architecture = _read(path)
    from transformers import modeling_gguf_pytorch_utils as reading

    model = empty_model(config, dtype, False, len(tensors))
    names = reading.get_gguf_hf_weights_map(model, reading.TensorProcessor(config=config))
    coded = [tensor.name for tensor in tensors if tensor.tensor_type.name not in _FLOAT_TYPES]
    split_experts(model, [f"{_experts_of(name)}." for name in coded if _EXPERTS.fullmatch(name)])
    floats, layers = {}, {}
    for tensor in tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        kind = tensor.tensor_type.name
        for name, data in _matrices(tensor, names, model, path).items():
            data = _rows(data, name, model.config, architecture)
            module = name.rpartition(".")[0]
            if kind in _FLOAT_TYPES or type(model.get_submodule(module)) is not torch.nn.Linear:
                floats[name] = _floats(data, kind, tensor.tensor_type)
                continue
            known = ", ".join((*BLOCK_TYPES, *_FLOAT_TYPES))
            require(OP, kind in BLOCK_TYPES, f"the type of {tensor.name} must be {known}, got {kind}")
            layers[module] = from_gguf(data, kind)
        progress(tensor.name)
    for module, weight in layers.items():
        layer = weight_layer(weight, floats.pop(f"{module}.bias", None))
        require_linear(model, module, layer)
        install(model, module, layer)
    stack_float_experts(model, floats)
    fill(model, floats)
    return model


def _read(path: Path) -> tuple[list[Any], dict[str, Any], str]:
    """The tensors of a file, what transformers takes its configuration for, and the architecture that it names."""
    try:
        import gguf
        from transformers import modeling_gguf_pytorch_utils as reading
    except ImportError as error:
        raise ImportError(f"{OP}: GGUF files need transformers and gguf: pip install 'anynpu[demo]'") from error
    try:
        reader = gguf.GGUFReader(path)
        config = reading.load_gguf_checkpoint(str(path))["config"]
        architecture = reader.fields["general.architecture"].contents()
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{OP}: {path} is no GGUF file that can be read: {error}") from error
    known = architecture in ARCHITECTURES
    require(OP, known, f"architecture of {path} must be one of {', '.join(ARCHITECTURES)}, got {architecture!r:.80}")
    sizes = {own: reader.fields.get(f"{architecture}.{key}") for key, own in _EXPERT_SIZES.items()}
    return (
        reader.tensors,
        config | {own: size.contents() for own, size in sizes.items() if size is not None},
        architecture,
    )


def _experts_of(name: str) -> str:
    """The experts of the model to which a tensor of all experts of a block belongs."""
    return f"model.layers.{_EXPERTS.fullmatch(name)[1]}.mlp.experts"


def _matrices(tensor: Any, names: dict[str, str], model: torch.nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """A tensor of the file by its name in the model; one of experts cut into a matrix for each."""
    data, experts = torch.from_numpy(tensor.data.copy()), _EXPERTS.fullmatch(tensor.name)
    known = has(model, _experts_of(tensor.name)) if experts else tensor.name in names
    require(OP, known, f"{path} has a tensor {tensor.name!r:.80} that the model lacks")
    if experts is None:
        return {names[tensor.name]: data}
    count = count_experts(model.get_submodule(_experts_of(tensor.name)))
    fits = data.dim() == 3 and data.shape[0] == count
    require(OP, fits, f"{tensor.name} must hold {count} matrices, got shape {tuple(data.shape)}")
    return {f"{_experts_of(tensor.name)}.{i}.{experts[2]}_proj.weight": each for i, each in enumerate(data)}


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
