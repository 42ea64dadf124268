# SPDX-License-Identifier: Apache-2.0
"""Empty transformers models, and how they get layers and tensors."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import torch

from anynpu._check import dtype_name, require
from anynpu.checkpoints.folder import CONFIG, OP
from anynpu.nn import QuantizedLinear

# Of a configuration: how weights are stored, code, and how many labels a classifier has, which transformers then names.
_LEFT_OUT = ("quantization_config", "auto_map", "num_labels")


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
    for part in (config, config.get("text_config")):  # before it is parsed, which may make a list of them
        _require_few_layers(part.get("num_hidden_layers", 0) if isinstance(part, dict) else 0, tensors)
    plain = {key: value for key, value in config.items() if key not in _LEFT_OUT}
    try:
        parsed = kinds[kind].from_dict(plain)
        layers = getattr(parsed.get_text_config(), "num_hidden_layers", 0)  # which kinds call by other names, too
    except Exception as error:  # whatever a configuration makes transformers raise
        raise ValueError(f"{OP}: {CONFIG} describes no language model: {error}") from error
    _require_few_layers(layers, tensors)
    try:
        if own_head:
            parsed.tie_word_embeddings = False
        with torch.device("meta"):
            model = package.AutoModelForCausalLM.from_config(parsed, dtype=dtype or parsed.dtype or torch.float32)
    except Exception as error:
        raise ValueError(f"{OP}: {CONFIG} describes no language model: {error}") from error
    for name, tensor in float32_tensors(model):
        _set(model, name, tensor.float())
    return model


def _require_few_layers(layers: object, tensors: int) -> None:
    few = isinstance(layers, int) and layers <= tensors
    require(
        OP, few, f"num_hidden_layers of {CONFIG} must be at most the number of tensors, {tensors}, got {layers!r:.80}"
    )


def float32_tensors(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers that stay float32 in a model of another dtype, such as the biases of routers."""
    kept = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [(name, tensor) for name, tensor in tensors if any(f".{part}." in f".{name}." for part in kept)]


def cast(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The model with the floats of its unquantised parts in another dtype."""
    kept = float32_tensors(model)
    model = model.to(dtype)
    for name, tensor in kept:
        _set(model, name, tensor)
    return model


def _set(model: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    module, _, own = name.rpartition(".")
    store = model.get_submodule(module)
    as_parameter = own in store._parameters
    setattr(store, own, torch.nn.Parameter(tensor, requires_grad=False) if as_parameter else tensor)


def is_ignored(model: torch.nn.Module, name: str) -> bool:
    """Whether files may have a tensor that the model lacks: of a layer that drafts further tokens, say."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    return any(re.search(each, name) for each in (r"\.rotary_emb\.inv_freq$", *patterns))


def is_left_out(model: torch.nn.Module, name: str) -> bool:
    """Whether a tensor or layer belongs to a block that the model lacks and that files may have."""
    parts = name.split(".")
    blocks = (".".join(parts[:count]) for count in range(1, len(parts)))
    return is_ignored(model, name) and any(not has(model, block) for block in blocks if block[-1].isdigit())


def has(model: torch.nn.Module, name: str) -> bool:
    """Whether the model has a module of this name."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(f"{OP}: needs the package transformers: pip install 'anynpu[demo]'") from error
    return transformers


def require_linear(model: torch.nn.Module, name: str, layer: QuantizedLinear) -> None:
    """A layer has the sizes, and where it is wanted the bias, of the model's linear layer ``name``."""
    present = model.get_submodule(name)
    want = (present.out_features, present.in_features)
    got = (layer.out_features, layer.in_features)
    require(OP, want == got, f"layer {name} must have shape (N, K) = {want} by {CONFIG}, got {got}")
    lacks = present.bias is not None and getattr(layer, "bias", layer) is None
    require(OP, not lacks, f"layer {name} must have a bias by {CONFIG}, the files have none")


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
    unknown = sorted(name for name in tensors.keys() - expected.keys() if not is_ignored(model, name))
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
    compute_buffers(model)


def _value(name: str, tensor: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """What goes to a place of the model: of its shape and dtype, a parameter where that is one."""
    want, got = tuple(place.shape), tuple(tensor.shape)
    require(OP, want == got, f"{name} must have shape {want} by {CONFIG}, got {got}")
    if tensor.is_floating_point() != place.is_floating_point():
        raise TypeError(f"{OP}: {name} must be {dtype_name(place.dtype)}, got {dtype_name(tensor.dtype)}")
    value = tensor.to(place.dtype)
    return torch.nn.Parameter(value, requires_grad=False) if isinstance(place, torch.nn.Parameter) else value


def compute_buffers(model: torch.nn.Module) -> None:
    """Buffers that are in no file, such as the frequencies of rotary embeddings: made anew by their module's class."""
    for name, module in model.named_modules():
        own = {key: buffer for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
        if own and hasattr(module, "config"):
            try:
                fresh = type(module)(module.config)
            except RuntimeError as error:  # there is not so much memory
                raise ValueError(f"{OP}: {CONFIG} makes no buffers of {name}: {error}") from error
            for key in own:
                module.register_buffer(key, getattr(fresh, key), persistent=False)
        elif own:
            _initialise(model, name, module, own)


def _initialise(model: torch.nn.Module, name: str, module: torch.nn.Module, own: dict[str, torch.Tensor]) -> None:
    """Buffers of a module that has no configuration, as the model's class initialises them."""
    for key, buffer in own.items():
        nothing = torch.nan if buffer.is_floating_point() else 0
        module.register_buffer(key, torch.full_like(buffer, nothing, device="cpu"), persistent=False)
    for parameter in module.parameters(recurse=False):
        parameter._is_hf_initialized = True  # transformers then leaves it
    model._init_weights(module)
    for key, buffer in own.items():
        known = buffer.is_floating_point() and not bool(getattr(module, key).isnan().any())
        require(OP, known, f"{name}.{key} is in no file and its module cannot compute it")
