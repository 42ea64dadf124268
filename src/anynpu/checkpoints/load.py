# SPDX-License-Identifier: Apache-2.0
"""Model folders of other producers as transformers models with anynpu's layers."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from anynpu._check import dtype_name, require
from anynpu._read import read_object
from anynpu.checkpoints.folder import CONFIG, OP, Tensors, open_folder
from anynpu.checkpoints.msmodelslim import MsModelSlim, description_of
from anynpu.checkpoints.producers import Producer, producer_of
from anynpu.nn import QuantizedLinear
from anynpu.quantization.checkpoint import DESCRIPTION as OWN_DESCRIPTION
from anynpu.quantization.checkpoint import load_quantized

Progress = Callable[[str], None]


def load_checkpoint(path: str | os.PathLike, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A language model out of the folder that its producer wrote, with the codes of the files as they are.

    Reads folders of Hugging Face models: float, GPTQ, AWQ and compressed-tensors, as ``quantization_config`` says;
    those of msModelSlim (Ascend), which have a ``quant_model_description.json``; and :func:`anynpu.save_quantized`'s
    beside a ``config.json``.
    Quantised linear layers become :class:`anynpu.nn.WeightQuantLinear`, :class:`anynpu.nn.QuantLinear` or
    :class:`anynpu.nn.StaticQuantLinear`; which ones they are is what the files hold. Every tensor of the files must
    have its place in the model, and every place its tensor. Only safetensors files are read, and no code of the folder
    is run. The package transformers builds the model.

    Args:
        path: the folder.
        dtype: of everything that is not quantised; None: as the configuration says.

    Returns:
        The model on the CPU, in ``eval()`` mode.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: a file is missing.
        TypeError, ValueError: files that are damaged, or hold what anynpu cannot represent; the error names the tensor
            or the layer.
    """
    model = load(Path(path), dtype)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.prepack()
    return model


def load(path: Path, dtype: torch.dtype | None, progress: Progress = lambda name: None) -> torch.nn.Module:
    """:func:`load_checkpoint` without rearranged weights; ``progress`` hears of every module."""
    if not path.is_dir():
        raise FileNotFoundError(f"{OP}: {path} is no folder")
    config = read_object(OP, path / CONFIG)
    if (path / OWN_DESCRIPTION).exists():
        return _load_own(path, config, dtype).eval()
    described = description_of(path)
    producer = producer_of(config) if described is None else MsModelSlim.of(described)
    with open_folder(path) as tensors:
        quantized = {name: own for name, own in tensors.by_module().items() if producer.is_quantized(name, own)}
        model = empty_model(config, dtype, "lm_head" in quantized, len(tensors.files))
        for name, own in quantized.items():
            install(model, name, _layer(model, producer, tensors, name, own))
            progress(name)
        names = [name for name in tensors.files if name.rpartition(".")[0] not in quantized]
        fill(model, {name: tensors.read(name) for name in names})
    return model.eval()


def _load_own(path: Path, config: dict[str, Any], dtype: torch.dtype | None) -> torch.nn.Module:
    """A folder of :func:`anynpu.save_quantized` beside a configuration."""
    layers = read_object(OP, path / OWN_DESCRIPTION).get("layers")
    with open_folder(path) as tensors:
        count = len(tensors.files)
    own_head = isinstance(layers, dict) and "lm_head" in layers
    model = load_quantized(empty_model(config, None, own_head, count), path)
    model.tie_weights()
    _compute_buffers(model)
    return model if dtype is None else model.to(dtype)


def empty_model(config: dict[str, Any], dtype: torch.dtype | None, own_head: bool, tensors: int) -> torch.nn.Module:
    """The model of a configuration on the device meta; with ``own_head``, its output layer shares no weight.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no configuration of a language model, or one with more layers than there are ``tensors``.
    """
    package = _transformers()
    kinds = package.models.auto.configuration_auto.CONFIG_MAPPING
    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in kinds
    require(OP, known, f"model_type of {CONFIG} must be one that transformers knows, got {kind!r:.80}")
    layers = config.get("num_hidden_layers", 0)
    few = isinstance(layers, int) and layers <= tensors
    require(
        OP, few, f"num_hidden_layers of {CONFIG} must be at most the number of tensors, {tensors}, got {layers!r:.80}"
    )
    plain = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    try:
        parsed = kinds[kind].from_dict(plain)
        if own_head:
            parsed.tie_word_embeddings = False
        with torch.device("meta"):
            return package.AutoModelForCausalLM.from_config(parsed, dtype=dtype or parsed.dtype or torch.float32)
    except Exception as error:  # whatever a configuration makes transformers raise
        raise ValueError(f"{OP}: {CONFIG} describes no language model: {error}") from error


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{OP}: needs the package transformers: pip install transformers") from error
    return transformers


def _layer(model: torch.nn.Module, producer: Producer, tensors: Tensors, name: str, own: set[str]) -> QuantizedLinear:
    try:
        present = model.get_submodule(name)
    except AttributeError as error:
        raise ValueError(f"{OP}: the files have a layer {name!r:.80} that the model lacks") from error
    linear = type(present) is torch.nn.Linear
    require(OP, linear, f"layer {name} of the files must be a Linear in the model, got {type(present).__name__}")
    want = (present.out_features, present.in_features)
    try:
        layer = producer.layer(name, tensors.of_module(name, own), want)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{OP}: layer {name}: {error}") from error
    got = (layer.out_features, layer.in_features)
    require(OP, want == got, f"layer {name} must have shape (N, K) = {want} by {CONFIG}, got {got}")
    lacks = present.bias is not None and getattr(layer, "bias", layer) is None
    require(OP, not lacks, f"layer {name} must have a bias by {CONFIG}, the files have none")
    return layer


def install(model: torch.nn.Module, name: str, layer: torch.nn.Module) -> None:
    """Puts a layer in the place of the module ``name``."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def fill(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    """Gives a model on the device meta its float tensors, and the buffers that it computes itself.

    Raises:
        TypeError, ValueError: names, shapes or dtypes that are not the model's; tied tensors that differ.
    """
    expected = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if tensor.is_meta}
    ignored = [r"\.rotary_emb\.inv_freq$", *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or [])]
    unknown = sorted(
        name for name in tensors.keys() - expected.keys() if not any(re.search(each, name) for each in ignored)
    )
    require(OP, not unknown, f"the files have {len(unknown)} tensors that the model lacks, the first is {unknown[:1]}")
    given: dict[torch.Tensor, str] = {expected[name]: name for name in sorted(tensors.keys() & expected.keys())}
    missing = sorted(name for name, place in expected.items() if place not in given)
    require(OP, not missing, f"the files lack {len(missing)} tensors of the model, the first is {missing[:1]}")
    values = {place: _value(name, tensors[name], place) for place, name in given.items()}
    for name in tensors.keys() & expected.keys():
        first = given[expected[name]]
        same = name == first or torch.equal(tensors[name], tensors[first])
        require(OP, same, f"{name} must equal {first}, to which {CONFIG} ties it, got other values")
    model.load_state_dict({name: values[place] for name, place in expected.items()}, strict=False, assign=True)
    _compute_buffers(model)


def _value(name: str, tensor: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """What goes to a place of the model: of its shape and dtype, a parameter where that is one."""
    want, got = tuple(place.shape), tuple(tensor.shape)
    require(OP, want == got, f"{name} must have shape {want} by {CONFIG}, got {got}")
    if tensor.is_floating_point() != place.is_floating_point():
        raise TypeError(f"{OP}: {name} must be {dtype_name(place.dtype)}, got {dtype_name(tensor.dtype)}")
    value = tensor.to(place.dtype)
    return torch.nn.Parameter(value, requires_grad=False) if isinstance(place, torch.nn.Parameter) else value


def _compute_buffers(model: torch.nn.Module) -> None:
    """Buffers that are in no file, such as the frequencies of rotary embeddings: made anew by their module's class."""
    for name, module in model.named_modules():
        own = [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if own:
            require(OP, hasattr(module, "config"), f"{name}.{own[0]} is in no file and its module cannot compute it")
            fresh = type(module)(module.config)
            for key in own:
                module.register_buffer(key, getattr(fresh, key), persistent=False)
