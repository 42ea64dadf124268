# SPDX-License-Identifier: Apache-2.0
"""An INT8 KV cache for transformers models: calibration of its scales, the cache, and the attention that reads it.

Importing this module imports transformers; ``import anynpu`` alone does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask
except ImportError as error:
    raise ImportError("anynpu.kv_cache: needs the package transformers: pip install 'anynpu[demo]'") from error

from anynpu._check import path_of, require, require_module, require_type
from anynpu._read import read_tensors
from anynpu.ops.kv_cache_attention import kv_cache_attention
from anynpu.ops.rope_kv_cache import rope_kv_cache

ATTENTION = "anynpu_int8"
SCALES_FILE = "kv_cache_scales.safetensors"
_FIRST_ROWS = 256  # of a layer; doubled whenever they are full


@dataclass(frozen=True)
class KVScales:
    """Static scales of an INT8 KV cache: ``k`` and ``v`` are float32 ``[layers, Nkv, D]``."""

    k: torch.Tensor
    v: torch.Tensor

    def save(self, folder: str | Path) -> Path:
        """Writes them as a file beside the model in ``folder``; returns its path."""
        path = path_of("KVScales.save", "folder", folder) / SCALES_FILE
        safetensors.torch.save_file({"k": self.k, "v": self.v}, path)
        return path

    @classmethod
    def load(cls, folder: str | Path) -> KVScales:
        """Reads what :meth:`save` wrote."""
        op = "KVScales.load"
        tensors = read_tensors(op, path_of(op, "folder", folder) / SCALES_FILE)
        require(op, tensors.keys() == {"k", "v"}, f"the file must hold k and v, got {sorted(tensors)}")
        scales = cls(**tensors)
        shapes = f"{tuple(scales.k.shape)} and {tuple(scales.v.shape)}"
        same = scales.k.dim() == 3 and scales.k.shape == scales.v.shape
        require(op, same, f"k and v must have the same shape [layers, Nkv, D], got {shapes}")
        return scales


class _Recorder(DynamicCache):
    """A float cache that notes the largest magnitude of every layer, head and channel."""

    def __init__(self, largest: dict[tuple[str, int], torch.Tensor]) -> None:
        super().__init__()
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


@torch.inference_mode()
def calibrate_kv(
    model: torch.nn.Module, texts: Iterable[str | torch.Tensor], tokenizer: Any = None, *, window: int = 512
) -> KVScales:
    """Runs a transformers model over sample texts and derives the scales of its INT8 KV cache.

    Each scale is the largest magnitude that a channel of a head reached, over 127: within the sample nothing saturates.

    Args:
        model: a causal language model.
        texts: strings, which need the ``tokenizer``, or tensors of token ids.
        tokenizer: of the model.
        window: how many tokens the model sees at once.

    Raises:
        ValueError: no text at all, or strings without a tokenizer.
    """
    op = "calibrate_kv"
    require_module(op, model)
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"{op}: texts must be an iterable of strings or tensors, got {type(texts).__name__}")
    largest: dict[tuple[str, int], torch.Tensor] = {}
    for tokens in _windows(texts, tokenizer, window):
        model(tokens[None].to(model.device), past_key_values=_Recorder(largest), use_cache=True)
    if not largest:
        raise ValueError(f"{op}: texts must hold at least one token, got none")
    layers = 1 + max(layer for _, layer in largest)
    stacked = {name: torch.stack([largest[name, layer] for layer in range(layers)]) for name in "kv"}
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
        expected = tuple(self._scales["keys"].shape)
        if (heads, size) != expected:
            raise ValueError(f"Int8Layer: key_states must have Nkv, D of the scales, {expected}, got {(heads, size)}")
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

    def reset(self) -> None:
        self._length = 0

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
    does with any other cache what ``"sdpa"`` does. Under other attention functions the cache gives dequantised tensors.

    Args:
        model: a causal language model of full attention layers.
        scales: of :func:`calibrate_kv`.

    Raises:
        ValueError: the scales are those of a model with another number of layers.
    """

    def __init__(self, model: Any, scales: KVScales) -> None:
        config = model.config
        layers = config.num_hidden_layers
        if scales.k.shape[0] != layers:
            raise ValueError(f"Int8Cache: scales must be of {layers} layers, as the model, got {scales.k.shape[0]}")
        if config._attn_implementation != ATTENTION:
            model.set_attn_implementation(ATTENTION)
        super().__init__(layers=[Int8Layer(config, k, v) for k, v in zip(scales.k, scales.v, strict=True)])

    def bytes_per_token(self) -> int:
        """Of one sequence, all layers."""
        return sum(2 * layer._scales["keys"].numel() for layer in self.layers)


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


def _starts(mask: torch.Tensor | None) -> torch.Tensor | None:
    """The first row that each sequence sees; ``mask``: bool ``[B, 1, S, rows]`` of transformers, None: no padding."""
    if mask is None:
        return None
    known = getattr(mask, "_anynpu_starts", None)  # every layer gets the same mask
    if known is not None:
        return known
    queries, rows = mask.shape[-2:]
    starts = mask[:, 0, -1].int().argmax(-1)
    row = torch.arange(rows, device=mask.device)
    position = row[rows - queries :, None]
    expected = (row >= starts[:, None, None]) & (row <= position)
    padding = position < starts[:, None, None]  # queries that are padding may see anything
    if not ((mask[:, 0] == expected) | padding).all():
        raise NotImplementedError(
            f"{ATTENTION}: the attention mask must be causal with padding on the left only, got another one"
        )
    mask._anynpu_starts = starts.int()
    return mask._anynpu_starts


def int8_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Int8Layer,
    value: torch.Tensor | Int8Layer,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls; ``key`` is a layer of an :class:`Int8Cache`, or a tensor."""
    if not isinstance(key, Int8Layer):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    starts = _starts(attention_mask)
    if starts is not None and starts.shape[0] != query.shape[0]:
        starts = starts.expand(query.shape[0]).contiguous()
    return key.attend(query, starts, scaling), None


AttentionInterface.register(ATTENTION, int8_attention_forward)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
