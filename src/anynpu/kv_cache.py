# SPDX-License-Identifier: Apache-2.0
"""An INT8 KV cache for transformers models: calibration of its scales, the cache, and the attention that reads it.

Importing this module imports transformers; ``import anynpu`` alone does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

try:
    from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
    from transformers.cache_utils import (
        Cache,
        CacheLayerMixin,
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
    )
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask
except ImportError as error:
    raise ImportError("anynpu.kv_cache: needs the package transformers: pip install 'anynpu[demo]'") from error

from anynpu._check import require_module, require_type
from anynpu.kv_scales import KVScales
from anynpu.ops.kv_cache_attention import kv_cache_attention
from anynpu.ops.rope_kv_cache import rope_kv_cache

ATTENTION = "anynpu_int8"
_FIRST_ROWS = 256  # of a layer; doubled whenever they are full
# Arguments with which models change what attention computes, and that neither kernels nor "sdpa" take.
_NOT_TAKEN = ("softcap", "s_aux", "sinks", "indices", "block_indices")


class _Recorder(DynamicCache):
    """A float cache that notes the largest magnitude of every layer, head and channel."""

    def __init__(self, config: Any, largest: dict[tuple[str, int], torch.Tensor]) -> None:
        super().__init__(config=config)
        self._largest = largest

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for name, states in (("k", key_states), ("v", value_states)):  # [B, Nkv, S, D]
            seen = states.detach().abs().amax((0, 2)).float()
            before = self._largest.get((name, layer_idx), seen)
            self._largest[name, layer_idx] = torch.maximum(before, seen)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _windows(texts: Iterable[str | torch.Tensor], tokenizer: Any, window: int) -> Iterator[torch.Tensor]:
    op = "calibrate_kv"
    for text in texts:
        require_type(op, "each of texts", text, (str, torch.Tensor), "a string or a tensor of token ids")
        if isinstance(text, str):
            if tokenizer is None:
                raise ValueError(f"{op}: tokenizer is required for texts that are strings, got none")
            text = torch.tensor(tokenizer(text, add_special_tokens=False).input_ids)
        yield from text.flatten().split(window)


def _decoder_config(op: str, model: Any) -> Any:
    """The configuration of the layers that cache keys and values."""
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise TypeError(f"{op}: model must be a language model of transformers, got {type(model).__name__}")
    if config.is_encoder_decoder:
        raise NotImplementedError(f"{op}: {type(model).__name__} must be a decoder alone, it has an encoder")
    return config.get_text_config(decoder=True)


@torch.inference_mode()
def calibrate_kv(
    model: torch.nn.Module, texts: Iterable[str | torch.Tensor], tokenizer: Any = None, *, window: int = 512
) -> KVScales:
    """Runs a transformers model over sample texts and derives the scales of its INT8 KV cache.

    Each scale is the largest magnitude that a channel of a head reached, over 127: within the sample nothing saturates.
    Layers without keys and values, of linear attention, get none.

    Args:
        model: a causal language model.
        texts: strings, which need the ``tokenizer``, or tensors of token ids.
        tokenizer: of the model.
        window: how many tokens the model sees at once.

    Raises:
        ValueError: no text at all, or strings without a tokenizer.
        TypeError: no model of transformers, or texts of another kind.
        NotImplementedError: the model has an encoder, or caches no keys and values, or some of several sizes.
    """
    op = "calibrate_kv"
    require_module(op, model)
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"{op}: texts must be an iterable of strings or tensors, got {type(texts).__name__}")
    largest: dict[tuple[str, int], torch.Tensor] = {}
    for tokens in _windows(texts, tokenizer, window):
        cache = _Recorder(_decoder_config(op, model), largest)
        model(tokens[None].to(model.device), past_key_values=cache, use_cache=True)
        if not largest:
            raise NotImplementedError(f"{op}: {type(model).__name__} caches no keys and values")
    if not largest:
        raise ValueError(f"{op}: texts must hold at least one token, got none")
    shapes = sorted({tuple(seen.shape) for seen in largest.values()})
    if len(shapes) > 1:
        raise NotImplementedError(f"{op}: keys and values of all layers must have the same [Nkv, D], got {shapes}")
    layers = sorted({layer for _, layer in largest})
    stacked = {name: torch.stack([largest[name, layer] for layer in layers]) for name in "kv"}
    return KVScales(**{name: torch.where(seen > 0, seen, 1.0) / 127 for name, seen in stacked.items()})


class Int8Layer(CacheLayerMixin):
    """Codes of one layer: ``keys`` and ``values`` are int8 ``[B, rows, Nkv, D]``, the first ``length`` rows in use."""

    is_croppable = True

    def __init__(self, config: Any, scale_k: torch.Tensor, scale_v: torch.Tensor) -> None:
        super().__init__()
        self._config = config
        self._scales = {"keys": scale_k.float().contiguous(), "values": scale_v.float().contiguous()}
        self._length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates rows for the batch at hand."""
        batch, heads, _, size = key_states.shape
        for name, states in (("keys", key_states), ("values", value_states)):
            expected, got = tuple(self._scales[name].shape), (states.shape[1], states.shape[3])
            if got != expected:
                raise ValueError(f"Int8Layer: {name} must have Nkv, D of the scales, {expected}, got {got}")
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (key_states.new_empty(batch, _FIRST_ROWS, heads, size, dtype=torch.int8) for _ in "kv")
        self._identity = key_states.new_ones(size), key_states.new_zeros(size)
        self._scales = {name: scale.to(self.device) for name, scale in self._scales.items()}
        self.is_initialized = True

    def _reserve(self, rows: int) -> None:
        capacity = self.keys.shape[1]
        if rows <= capacity:
            return
        while capacity < rows:
            capacity *= 2
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(old.shape[0], capacity, *old.shape[2:])
            new[:, : self._length] = old[:, : self._length]
            setattr(self, name, new)

    def _per_batch(self, value: int) -> torch.Tensor:
        return self.keys.new_full((self.keys.shape[0],), value, dtype=torch.int32)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | Int8Layer, torch.Tensor | Int8Layer]:
        """Quantises and appends; returns itself for the attention function, or dequantised tensors for any other."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        batch, heads, length, size = key_states.shape
        self._reserve(self._length + length)
        x = torch.cat([states.transpose(1, 2).flatten(2) for states in (key_states, value_states)], dim=-1)
        # transformers has rotated the keys: a rotation by nothing, and no query heads.
        cos, sin = (angle.expand(batch, length, 1, size) for angle in self._identity)
        splits = [0, heads * size, heads * size]
        first = self._per_batch(self._length)
        rope_kv_cache(x, cos, sin, self.keys, self.values, first, *self._scales.values(), splits)
        self._length += length
        if self._config._attn_implementation == ATTENTION:
            return self, self
        return self.dequantised("keys"), self.dequantised("values")

    def dequantised(self, name: str) -> torch.Tensor:
        """``keys`` or ``values`` as transformers keeps them: ``[B, Nkv, length, D]`` floats."""
        codes = getattr(self, name)[:, : self._length]
        return (codes * self._scales[name]).to(self.dtype).transpose(1, 2)

    def attend(self, query: torch.Tensor, starts: torch.Tensor | None, scaling: float | None) -> torch.Tensor:
        """``[B, S, Nq, D]`` of ``query`` ``[B, Nq, S, D]``, whose positions are the last ones of the layer."""
        rows = self._per_batch(self._length)
        q = query.transpose(1, 2)
        scales = self._scales.values()
        return kv_cache_attention(q, self.keys, self.values, rows, *scales, starts=starts, softmax_scale=scaling)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in older releases of transformers

    def reset(self) -> None:
        self._length = 0
        self.is_initialized = False  # the next batch may have another size

    def crop(self, tokens_to_remove: int) -> None:
        """Drops the last ``-tokens_to_remove`` tokens."""
        if not -self._length <= tokens_to_remove <= 0:
            raise ValueError(f"Int8Layer: crop wants a number in [-{self._length}, 0], got {tokens_to_remove}")
        self._length += tokens_to_remove

    def _select(self, indices: torch.Tensor) -> None:
        if self.is_initialized:
            self.keys, self.values = self.keys[indices], self.values[indices]

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._select(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._select(torch.arange(self.keys.shape[0], device=self.device).repeat_interleave(repeats))


class Int8Cache(Cache):
    """An INT8 KV cache of a transformers model, for one sequence of calls, as ``past_key_values``.

    Creating it switches the model to the attention function ``"anynpu_int8"``, which reads the codes as they are and
    does with any other cache what ``"sdpa"`` does. It also does what ``"sdpa"`` does, on dequantised tensors, where a
    mask is more than causal with padding on the left: several queries of a sliding window, say. Under other attention
    functions the cache gives dequantised tensors; a model that has no ``"sdpa"`` keeps its own function so.
    Layers of linear attention keep their float states; those with a sliding window keep all rows. Codes have no
    gradients: train without a cache.

    Args:
        model: a causal language model.
        scales: of :func:`calibrate_kv`.

    Raises:
        ValueError: the scales are those of a model with another number of layers.
        TypeError: no model of transformers.
        NotImplementedError: a model with an encoder, or with layers that cache more than keys and values.
    """

    def __init__(self, model: Any, scales: KVScales) -> None:
        config = _decoder_config("Int8Cache", model)
        layers = DynamicCache(config=config).layers
        places = [i for i, layer in enumerate(layers) if isinstance(layer, CacheLayerMixin)]
        for kind in {type(layers[i]) for i in places} - {DynamicLayer, DynamicSlidingWindowLayer}:
            raise NotImplementedError(
                f"Int8Cache: {type(model).__name__} must cache keys and values, has {kind.__name__}"
            )
        if scales.k.shape[0] != len(places):
            raise ValueError(
                f"Int8Cache: scales must be of {len(places)} layers, as the model, got {scales.k.shape[0]}"
            )
        for i, k, v in zip(places, scales.k, scales.v, strict=True):
            layers[i] = Int8Layer(config, k, v)
        if config._attn_implementation != ATTENTION and model._supports_sdpa:
            model.set_attn_implementation(ATTENTION)
        super().__init__(layers=layers)

    def bytes_per_token(self) -> int:
        """Of one sequence, all layers."""
        return sum(2 * layer._scales["keys"].numel() for layer in self.layers if isinstance(layer, Int8Layer))


class Int8CacheModel(torch.nn.Module):
    """A causal language model whose ``forward`` and ``generate`` use a fresh INT8 KV cache unless given another."""

    def __init__(self, model: Any, scales: KVScales) -> None:
        super().__init__()
        self.model = model
        self.scales = scales

    def _with_cache(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if arguments.get("past_key_values") is None:
            arguments["past_key_values"] = Int8Cache(self.model, self.scales)
        return arguments

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **self._with_cache(kwargs))

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``model.generate`` with the cache."""
        return self.model.generate(*args, **self._with_cache(kwargs))


def _starts(mask: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor | None:
    """The first row that each sequence sees by a mask of transformers, None unless that and causality are all it is.

    Every layer gets the same mask, and the first one looks at it. Inference tensors have no versions: that layer looks
    at them again.
    """
    first, version, starts = getattr(mask, "_anynpu_starts", (None, None, None))
    changed = first == id(layer) if mask.is_inference() else version != mask._version
    if first is None or changed:
        starts = _first_rows(mask)
        mask._anynpu_starts = id(layer), None if mask.is_inference() else mask._version, starts
    return starts


def _first_rows(mask: torch.Tensor) -> torch.Tensor | None:
    """:func:`_starts`; ``mask``: bool ``[B, 1, S, rows]`` or anything else."""
    if mask.dtype != torch.bool or mask.shape[1] != 1:
        return None
    queries, rows = mask.shape[-2:]
    seen = mask[:, 0]
    starts = seen[:, -1].int().argmax(-1)
    row = torch.arange(rows, device=mask.device)
    position = row[rows - queries :, None]
    expected = (row >= starts[:, None, None]) & (row <= position)
    # Queries that are padding see nothing, or everything: transformers has had both.
    padding = (position < starts[:, None, None]) & seen.all(-1, keepdim=True)
    return starts.int() if bool(((seen == expected) | padding).all()) else None


def int8_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Int8Layer,
    value: torch.Tensor | Int8Layer,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls; ``key`` is a layer of an :class:`Int8Cache`, or a tensor."""
    for name in _NOT_TAKEN:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{ATTENTION}: {name} is not implemented; 'eager' reads an Int8Cache too")
    if isinstance(key, Int8Layer):
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        starts = None if attention_mask is None else _starts(attention_mask, module)
        known = causal if attention_mask is None else starts is not None and attention_mask.shape[-1] == key._length
        if known and not dropout and kwargs.get("position_bias") is None:
            if starts is not None and starts.shape[0] != query.shape[0]:
                starts = starts.expand(query.shape[0]).contiguous()
            return key.attend(query, starts, scaling), None
        key, value = key.dequantised("keys"), value.dequantised("values")
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs)


AttentionInterface.register(ATTENTION, int8_attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
