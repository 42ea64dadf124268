# SPDX-License-Identifier: Apache-2.0
"""How each producer names and describes the tensors of a quantised linear layer, and the layer that they make."""

from __future__ import annotations

import abc
from typing import Any

import torch

from anynpu._check import require, require_dtype
from anynpu.formats._words import FLOAT_DTYPES, order_of_groups, require_finite, require_matrix
from anynpu.formats.awq import from_awq
from anynpu.formats.compressed_tensors import from_compressed_tensors
from anynpu.formats.gptq import from_gptq
from anynpu.formats.quantized_weight import QuantizedWeight
from anynpu.nn import Int4Linear, QuantizedLinear, QuantLinear, StaticQuantLinear, WeightQuantLinear
from anynpu.quantization.checkpoint import METHOD

Shape = tuple[int, int]


class Producer(abc.ABC):
    """Reads the linear layers of one kind of checkpoint; :meth:`is_quantized` says which layers are quantised.

    Args:
        config: the object ``quantization_config`` of the model's configuration.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def is_of_model(self, tensor: str) -> bool:
        """Whether the tensor of this name belongs to the model, and not to its KV cache."""
        return True

    @abc.abstractmethod
    def is_quantized(self, name: str, own: set[str]) -> bool:
        """Whether the module ``name``, whose tensors are called ``own``, is a quantised layer."""

    @abc.abstractmethod
    def layer(self, name: str, tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
        """The layer ``name`` of ``shape`` (N, K).

        Raises:
            TypeError, ValueError: tensors or a configuration that make no such layer.
        """

    def int8_activations(self, name: str) -> bool:
        """Whether the activations of the int4 layer ``name``, one of an expert, are int8."""
        return False

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of the configuration, of type ``kind``."""
        return typed(self.config, key, kind, default)


def typed(config: dict[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """``config[key]``, or ``default`` where it is absent or null, of type ``kind`` exactly."""
    value = config.get(key)
    value = default if value is None else value
    require("quantization_config", type(value) is kind, f"{key} must be of type {kind.__name__}, got {value!r:.80}")
    return value


def take(tensors: dict[str, torch.Tensor], required: tuple[str, ...], optional: tuple[str, ...] = ()) -> tuple:
    """The tensors of a layer in this order, None for optional ones that are absent; no others may be there."""
    missing, unknown = sorted(set(required) - set(tensors)), sorted(set(tensors) - {*required, *optional})
    require("layer", not missing, f"tensors must be {', '.join(required)}, missing {', '.join(missing)}")
    require("layer", not unknown, f"tensors must be among {', '.join((*required, *optional))}, got {unknown}")
    return tuple(tensors.get(key) for key in (*required, *optional))


def weight_layer(
    weight: QuantizedWeight, bias: torch.Tensor | None, kind: type[WeightQuantLinear] = WeightQuantLinear
) -> WeightQuantLinear:
    """The layer of a weight; an offset that is zero everywhere is left out, which changes no value."""
    if weight.offset is not None and not bool(weight.offset.any()):
        weight = QuantizedWeight(weight.weight, weight.scale, None, weight.group_size, weight.input_order)
    return kind.from_quantized(weight, require_bias(bias, weight.shape[1]))


def require_bias(bias: torch.Tensor | None, n: int) -> torch.Tensor | None:
    """None, or floats ``[n]``."""
    if bias is not None:
        require_dtype("layer", "bias", bias, FLOAT_DTYPES)
        require("layer", tuple(bias.shape) == (n,), f"bias must have shape ({n},), got {tuple(bias.shape)}")
    return bias


def require_groups(weight: QuantizedWeight, group_size: int) -> None:
    """The groups of the tensors are those of the configuration; -1 and 0 stand for one group."""
    k = weight.shape[0]
    expected = 0 if group_size < 1 or group_size >= k else group_size
    require(
        "layer", weight.group_size == expected, f"group_size must be {expected}, got tensors of {weight.group_size}"
    )


class Gptq(Producer):
    """GPTQ: ``qweight``, ``qzeros``, ``scales``, ``g_idx``."""

    def is_quantized(self, name: str, own: set[str]) -> bool:
        return "qweight" in own

    def layer(self, name: str, tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
        qweight, qzeros, scales, g_idx, bias = take(tensors, ("qweight", "qzeros", "scales"), ("g_idx", "bias"))
        group_size = self.value("group_size", int, -1)
        weight = from_gptq(
            qweight,
            qzeros,
            scales,
            g_idx,
            self.value("bits", int),
            self.value("checkpoint_format", str, "gptq"),
            group_size if group_size > 0 else None,
        )
        require_groups(weight, group_size)
        return weight_layer(weight, bias)


class Awq(Producer):
    """AWQ: ``qweight``, ``qzeros``, ``scales``."""

    def is_quantized(self, name: str, own: set[str]) -> bool:
        return "qweight" in own

    def layer(self, name: str, tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
        qweight, qzeros, scales, bias = take(tensors, ("qweight", "qzeros", "scales"), ("bias",))
        bits, version = self.value("bits", int, 4), self.value("version", str, "gemm").lower()
        require("quantization_config", bits == 4, f"bits of AWQ must be 4, got {bits}")
        require("quantization_config", version == "gemm", f"version of AWQ must be gemm, got {version!r}")
        weight = from_awq(qweight, qzeros, scales)
        require_groups(weight, self.value("group_size", int, -1))
        return weight_layer(weight, bias)


class CompressedTensors(Producer):
    """compressed-tensors: ``pack-quantized`` and, one code a byte, ``int-quantized`` and ``naive-quantized``."""

    _FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "mixed-precision")

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        known = self.value("format", str) in self._FORMATS
        require("quantization_config", known, f"format must be one of {self._FORMATS}, got {config['format']!r}")
        status = self.value("quantization_status", str, "compressed")
        sentence = f"quantization_status must be compressed, got {status!r}"
        require("quantization_config", status == "compressed", sentence)
        groups = self.value("config_groups", dict)
        self._groups = [typed(groups, key, dict) for key in groups]

    def is_quantized(self, name: str, own: set[str]) -> bool:
        return "weight_packed" in own or "weight_scale" in own

    def layer(self, name: str, tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
        group = self._group(name)
        weights = typed(group, "weights", dict)
        bits, kind = typed(weights, "num_bits", int), typed(weights, "type", str, "int")
        codes_known = kind == "int" and bits in (4, 8)
        require("quantization_config", codes_known, f"weights must be int of 4 or 8 bits, got {kind} of {bits}")
        if group.get("input_activations") is None:
            return weight_layer(*self._weight(tensors, weights, bits, shape))
        activations = typed(group, "input_activations", dict)
        if bits == 8:
            return self._int8_layer(tensors, activations)
        dynamic = _is_dynamic(activations)
        require("quantization_config", dynamic, "input_activations of int4 weights must be dynamic, got static")
        kind = WeightQuantLinear if ".experts." in name else Int4Linear  # experts are joined when all are there
        return weight_layer(*self._weight(tensors, weights, bits, shape), kind)

    def int8_activations(self, name: str) -> bool:
        group = self._group(name)
        int4 = typed(typed(group, "weights", dict), "num_bits", int) == 4
        return int4 and ".experts." in name and group.get("input_activations") is not None

    def _group(self, name: str) -> dict[str, Any]:
        fitting = [
            group for group in self._groups if any(_is_target(name, each) for each in typed(group, "targets", list))
        ]
        require("quantization_config", len(fitting) > 0, f"config_groups must name a target for {name}, got none")
        return fitting[0]

    def _weight(
        self, tensors: dict[str, torch.Tensor], weights: dict[str, Any], bits: int, shape: Shape
    ) -> tuple[QuantizedWeight, torch.Tensor | None]:
        group_size = typed(weights, "group_size", int, -1)
        optional = ("weight_zero_point", "weight_g_idx", "bias")
        if "weight_packed" in tensors:
            packed, scale, sizes, zero_point, g_idx, bias = take(
                tensors, ("weight_packed", "weight_scale", "weight_shape"), optional
            )
            require("layer", sizes.tolist() == list(shape), f"weight_shape must be {list(shape)}, got {sizes.tolist()}")
            scale, zero_point = (_expand_rows(each, shape[0]) for each in (scale, zero_point))
            known = group_size if group_size > 0 else None
            weight = from_compressed_tensors(packed, scale, zero_point, sizes, g_idx, known, bits)
        else:
            codes, scale, zero_point, g_idx, bias = take(tensors, ("weight", "weight_scale"), optional)
            weight = _weight_of_bytes(codes, scale, zero_point, g_idx, group_size, bits)
        require_groups(weight, group_size)
        return weight, bias

    def _int8_layer(self, tensors: dict[str, torch.Tensor], activations: dict[str, Any]) -> QuantizedLinear:
        dynamic = _is_dynamic(activations)
        optional = ("weight_zero_point", "bias")
        if dynamic:
            codes, scale, zero_point, bias = take(tensors, ("weight", "weight_scale"), optional)
            input_scale = input_zero = None
        else:
            codes, scale, input_scale, zero_point, bias, input_zero = take(
                tensors, ("weight", "weight_scale", "input_scale"), (*optional, "input_zero_point")
            )
        require_zero("weight_zero_point", zero_point)
        return int8_layer(codes, scale, bias, input_scale, input_zero)


def _is_dynamic(activations: dict[str, Any]) -> bool:
    """Whether int8 activations get their scale at run time, one for each token; else there is one for all."""
    op = "quantization_config"
    kind = (typed(activations, "type", str, "int"), typed(activations, "num_bits", int))
    require(op, kind == ("int", 8), f"input_activations must be int8, got {kind}")
    dynamic, symmetric = typed(activations, "dynamic", bool, False), typed(activations, "symmetric", bool, True)
    strategy = typed(activations, "strategy", str, "tensor")
    expected = "token" if dynamic else "tensor"
    require(op, strategy == expected, f"strategy of input_activations must be {expected}, got {strategy!r}")
    require(op, symmetric or not dynamic, "dynamic input_activations must be symmetric, got symmetric false")
    return dynamic


def _is_target(name: str, target: object) -> bool:
    """Whether a target of a group means the linear layer: its class, its name, or a pattern."""
    if not isinstance(target, str):
        return False
    if target.startswith("re:"):
        return _matches(target[3:], name)
    return target in ("Linear", name)


def _matches(pattern: str, name: str) -> bool:
    """As re.match, which a pattern of somebody else may keep busy for years."""
    import regex  # transformers needs it as well

    try:
        return regex.match(pattern, name, timeout=1.0) is not None
    except regex.error as error:
        raise ValueError(f"targets: {pattern!r:.80} must be a regular expression: {error}") from error
    except TimeoutError as error:
        raise ValueError(f"targets: {pattern!r:.80} takes more than a second to match {name}") from error


def _expand_rows(parameter: torch.Tensor | None, n: int) -> torch.Tensor | None:
    """One scale of a whole weight as one of each row; others as they are."""
    return parameter.reshape(1, 1).expand(n, 1) if parameter is not None and parameter.numel() == 1 else parameter


def _weight_of_bytes(codes, scale, zero_point, g_idx, group_size: int, bits: int) -> QuantizedWeight:
    """A weight of one code a byte, scale and zero point ``[N, G]`` (or one for all)."""
    op = "layer"
    require_matrix(op, "weight", codes, (torch.int8,), (None, None))
    n, k = codes.shape
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    inside = bool(((codes >= lowest) & (codes <= highest)).all())
    require(op, inside, f"weight must be in [{lowest}, {highest}], got {int(codes.min())} to {int(codes.max())}")
    groups = -(-k // group_size) if group_size > 0 else 1
    scale = _expand_rows(scale, n)
    require_matrix(op, "weight_scale", scale, FLOAT_DTYPES, (n, groups))
    require_finite(op, "weight_scale", scale)
    offset = None
    if zero_point is not None:
        zero_point = _expand_rows(zero_point, n)
        require_matrix(op, "weight_zero_point", zero_point, (torch.int8,), (n, groups))
        offset = -zero_point.float()
    order = None
    if g_idx is not None and groups > 1 and not bool((g_idx == -1).all()):
        order = order_of_groups(op, g_idx, k, group_size)
        if order is not None:
            codes = codes[:, order]
    return QuantizedWeight.from_codes(codes, scale, offset, group_size if group_size > 0 else k, order, bits)


def require_zero(name: str, tensor: torch.Tensor | None) -> None:
    """None, or zero everywhere: what int8 products have no place for."""
    zero = tensor is None or not bool(tensor.any())
    require("layer", zero, f"{name} of a layer with int8 activations must be 0 everywhere, got other values")


def int8_layer(
    codes: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    input_scale: torch.Tensor | None = None,
    input_zero: torch.Tensor | None = None,
) -> QuantLinear | StaticQuantLinear:
    """The layer of int8 codes ``[N, K]`` with one scale, or one for each row; dynamic without ``input_scale``.

    Raises:
        TypeError, ValueError: tensors that do not fit, or a float bias beside a zero point of the activations: their
            sum would have to be rounded.
    """
    op = "layer"
    require_matrix(op, "weight", codes, (torch.int8,), (None, None))
    n = codes.shape[0]
    require_dtype(op, "weight_scale", weight_scale, FLOAT_DTYPES)
    fits = weight_scale.numel() == 1 or tuple(weight_scale.shape) in ((n,), (n, 1))
    require(op, fits, f"weight_scale must have shape ({n}, 1) or one value, got {tuple(weight_scale.shape)}")
    require_finite(op, "weight_scale", weight_scale)
    scale = weight_scale.float().reshape(-1).expand(n).contiguous()
    codes, bias = codes.contiguous(), require_bias(bias, n)
    if input_scale is None:
        return QuantLinear.from_codes(codes, scale, bias)
    step = one_value("input_scale", input_scale, FLOAT_DTYPES)
    zero = None if input_zero is None else one_value("input_zero_point", input_zero, (torch.int8, *FLOAT_DTYPES))
    if zero is None or not bool(zero):
        return QuantLinear.from_codes(codes, scale, bias, step)
    require(op, bias is None, f"bias must be absent beside input_zero_point = {float(zero):g}, got a bias")
    quant_bias = (-zero.double() * codes.sum(1, dtype=torch.int64)).to(torch.int32)
    return StaticQuantLinear.from_codes(codes, quant_bias, step * scale, step, zero)


def one_value(name: str, tensor: torch.Tensor, dtypes: tuple[torch.dtype, ...]) -> torch.Tensor:
    """float32 ``[1]`` of a tensor with one value."""
    require_dtype("layer", name, tensor, dtypes)
    require("layer", tensor.numel() == 1, f"{name} must have one value, got shape {tuple(tensor.shape)}")
    return tensor.float().reshape(1)


PRODUCERS: dict[str, type[Producer]] = {"gptq": Gptq, "awq": Awq, "compressed-tensors": CompressedTensors}


def is_saved(config: dict[str, Any]) -> bool:
    """Whether a configuration says that ``save_pretrained`` wrote layers of this package."""
    described = config.get("quantization_config")
    return isinstance(described, dict) and described.get("quant_method") == METHOD


def producer_of(config: dict[str, Any]) -> Producer:
    """The producer that a model's configuration names."""
    described = config.get("quantization_config")
    op = "load_checkpoint"
    require(op, isinstance(described, dict), f"quantization_config must be an object, got {described!r:.80}")
    method = described.get("quant_method")
    known = isinstance(method, str) and method in PRODUCERS
    require(op, known, f"quant_method must be one of {', '.join(PRODUCERS)}, got {method!r:.80}")
    return PRODUCERS[method](described)
