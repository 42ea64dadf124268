# SPDX-License-Identifier: Apache-2.0
"""Model folders of other producers as transformers models with anynpu's layers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from anynpu._check import path_of, require, require_type
from anynpu._read import open_tensors, read_object
from anynpu.checkpoints.experts import join_experts, name_in_model, split_experts, stack_float_experts
from anynpu.checkpoints.folder import CONFIG, OP, Tensors, open_folder
from anynpu.checkpoints.gguf import load_gguf
from anynpu.checkpoints.model import cast, compute_buffers, empty_model, fill, install, is_left_out, require_linear
from anynpu.checkpoints.msmodelslim import MsModelSlim, description_of
from anynpu.checkpoints.producers import Producer, is_saved, producer_of
from anynpu.nn import QuantizedLinear
from anynpu.quantization.checkpoint import DESCRIPTION as OWN_DESCRIPTION
from anynpu.quantization.checkpoint import is_own_tensors, read_saved, restore
from anynpu.quantization.read_by_parent import is_read_by_parent

Progress = Callable[[str], None]


def load_checkpoint(path: str | os.PathLike, dtype: torch.dtype | None = None) -> torch.nn.Module:
    """A language model out of the folder that its producer wrote, with the codes of the files as they are.

    Reads folders of Hugging Face models: float, GPTQ, AWQ and compressed-tensors, as ``quantization_config`` says;
    those of msModelSlim (Ascend), which have a ``quant_model_description.json``; :func:`anynpu.save_quantized`'s
    beside a ``config.json``; and what ``save_pretrained`` of transformers writes of a quantised model.
    Quantised linear layers become :class:`anynpu.nn.WeightQuantLinear`, :class:`anynpu.nn.QuantLinear` or
    :class:`anynpu.nn.StaticQuantLinear`; which ones they are is what the files hold. Experts with int8 activations
    become :class:`anynpu.nn.RoutedExperts`, others :class:`anynpu.nn.LinearExperts` of such layers. Every tensor of the
    files must have its place in the model, and every place its tensor. Only safetensors files are read, and no code of
    the folder is run. The package transformers builds the model.

    Args:
        path: the folder, or a GGUF file of Llama, Qwen2, Qwen3, Qwen2-MoE or Qwen3-MoE, with Q4_0, Q4_1, Q8_0 or float
            weights.
        dtype: of everything that is not quantised; None: as the configuration says.

    Returns:
        The model on the CPU, in ``eval()`` mode.

    Raises:
        ImportError: transformers is not installed.
        FileNotFoundError: a file is missing.
        TypeError, ValueError: files that are damaged, or hold what anynpu cannot represent; the error names the tensor
            or the layer.
    """
    path = path_of(OP, "path", path)
    require_type(OP, "dtype", dtype, (torch.dtype, type(None)), "a dtype or None")
    model = load(path, dtype)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.prepack()
    return model


def load(path: Path, dtype: torch.dtype | None, progress: Progress = lambda name: None) -> torch.nn.Module:
    """:func:`load_checkpoint` without rearranged weights; ``progress`` hears of every module."""
    if path.is_file() and path.suffix == ".gguf":
        return load_gguf(path, dtype, progress).eval()
    if not path.is_dir():
        raise FileNotFoundError(f"{OP}: {path} is no folder and no .gguf file; models of a hub are downloaded first")
    config = read_object(OP, path / CONFIG)
    if (path / OWN_DESCRIPTION).exists():
        return _load_own(path, config, dtype).eval()
    described = description_of(path)
    if is_saved(config) or (described is None and config.get("quantization_config") is None):
        return _load_by_transformers(path, config, dtype)
    producer = producer_of(config) if described is None else MsModelSlim.of(described)
    with open_folder(path) as opened:
        tensors = opened.only(producer.is_of_model)
        quantized = {name: own for name, own in tensors.by_module().items() if producer.is_quantized(name, own)}
        model = empty_model(config, dtype, "lm_head" in quantized, len(tensors.files))
        layers = {name_in_model(model, name): name for name in quantized if not is_left_out(model, name)}
        experts = split_experts(model, layers)
        for place, name in layers.items():
            install(model, place, _layer(model, place, producer, tensors, name, quantized[name]))
            progress(place)
        for name in experts:
            join_experts(model, name, lambda place: place in layers and producer.int8_activations(layers[place]))
        names = [name for name in tensors.files if name.rpartition(".")[0] not in quantized]
        floats = {name_in_model(model, name): tensors.read(name) for name in names if not is_left_out(model, name)}
        stack_float_experts(model, floats)
        fill(model, floats)
    return model.eval()


def _load_own(path: Path, config: dict[str, Any], dtype: torch.dtype | None) -> torch.nn.Module:
    """A folder of :func:`anynpu.save_quantized` beside a configuration."""
    layers, state = read_saved(path)
    _require_no_other_model(path, state)
    empty = empty_model(config, None, "lm_head" in layers, len(state))
    split_experts(empty, [name for name in layers if ".experts." in name])
    model = restore(empty, layers, state)
    model.tie_weights()
    compute_buffers(model)
    return model if dtype is None else cast(model, dtype)


def _require_no_other_model(path: Path, state: dict[str, torch.Tensor]) -> None:
    """Refuses a folder whose other files, which may be newer, hold the tensors of the model too."""
    for other in sorted(path.glob("*.safetensors")):
        if is_own_tensors(other):
            continue  # older, or of a save that was stopped
        with open_tensors(OP, other) as opened:
            names = sorted(state.keys() & opened.keys())
        sentence = f"{path} must hold one model, got that of {OWN_DESCRIPTION} and {names[:1]} in {other.name}"
        require(OP, not names, sentence)


def _load_by_transformers(path: Path, config: dict[str, Any], dtype: torch.dtype | None) -> torch.nn.Module:
    """A folder of floats, whose names transformers knows best, or that its ``save_pretrained`` wrote of our layers."""
    with open_folder(path) as tensors:
        empty_model(config, dtype, False, len(tensors.files))  # refuses what is no model
        if not is_saved(config):
            tensors.require_float_weights()
    from transformers import AutoModelForCausalLM

    options = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # which names what is refused below
    try:
        model, found = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or "auto", **options)
    except Exception as error:  # whatever damaged files make transformers raise
        raise ValueError(f"{OP}: {path} cannot be loaded: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        names = sorted(map(str, found[kind]))
        require(OP, not names, f"{path} must hold the model's tensors, got {len(names)} {kind}: {names[:1]}")
    return model


def _layer(
    model: torch.nn.Module, place: str, producer: Producer, tensors: Tensors, name: str, own: set[str]
) -> QuantizedLinear:
    """The layer ``name`` of the files for the ``place`` in the model."""
    try:
        present = model.get_submodule(place)
    except AttributeError as error:
        raise ValueError(f"{OP}: the files have a layer {name!r:.80} that the model lacks") from error
    linear = type(present) is torch.nn.Linear
    require(OP, linear, f"layer {name} of the files must be a Linear in the model, got {type(present).__name__}")
    read = f"layer {name} must be float, since the module that holds it reads its weight"
    require(OP, not is_read_by_parent(model, place), read)
    want = (present.out_features, present.in_features)
    try:
        layer = producer.layer(name, tensors.of_module(name, own), want)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{OP}: layer {name}: {error}") from error
    require_linear(model, place, layer)
    return layer
