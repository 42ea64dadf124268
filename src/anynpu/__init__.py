# SPDX-License-Identifier: Apache-2.0
"""Ascend NPU quantised operators on ordinary CPUs and GPUs."""

import importlib
from typing import Any

from anynpu import formats, nn, reference
from anynpu._after_import import extend_when_imported
from anynpu._device_errors import check_device_errors
from anynpu._strict import strict
from anynpu._version import __version__
from anynpu.checkpoints import convert_checkpoint, load_checkpoint
from anynpu.compat import install
from anynpu.ops.anti_quant import anti_quant
from anynpu.ops.cast import cast
from anynpu.ops.compressed_matmul import compressed_matmul
from anynpu.ops.dequant_swiglu_quant import dequant_swiglu_quant
from anynpu.ops.dynamic_quant import dynamic_quant
from anynpu.ops.format_cast import nd_to_nz, nz_to_nd
from anynpu.ops.fused_attention import fused_attention
from anynpu.ops.grouped_matmul import grouped_matmul
from anynpu.ops.grouped_matmul_combine import grouped_matmul_combine, make_w4a8_bias, pack_scale
from anynpu.ops.int4_pack import int4_pack, int4_unpack
from anynpu.ops.kv_cache_attention import kv_cache_attention
from anynpu.ops.moe_finalize_routing import moe_finalize_routing
from anynpu.ops.moe_gating_topk import moe_gating_topk
from anynpu.ops.moe_gating_topk_softmax import moe_gating_topk_softmax
from anynpu.ops.moe_init_routing import moe_init_routing
from anynpu.ops.quant_matmul import quant_matmul
from anynpu.ops.quantize import quantize
from anynpu.ops.rope_kv_cache import rope_kv_cache
from anynpu.ops.swiglu import swiglu
from anynpu.ops.trans_quant_param import trans_quant_param
from anynpu.ops.weight_quant_matmul import (
    weight_quant_matmul,
    weight_quant_prepack,
    weight_quant_unprepack,
)
from anynpu.quantization import (
    W4A8,
    W4A16,
    W8A8,
    W8A16,
    ActivationScales,
    W8A8Compressed,
    calibrate_activations,
    load_quantized,
    quantize_,
    save_quantized,
)

__all__ = [
    "W4A8",
    "W4A16",
    "W8A8",
    "W8A16",
    "ActivationScales",
    "AnynpuConfig",
    "W8A8Compressed",
    "__version__",
    "anti_quant",
    "calibrate_activations",
    "calibrate_kv",
    "cast",
    "check_device_errors",
    "convert_checkpoint",
    "compressed_matmul",
    "dequant_swiglu_quant",
    "dynamic_quant",
    "formats",
    "fused_attention",
    "grouped_matmul",
    "grouped_matmul_combine",
    "install",
    "int4_pack",
    "int4_unpack",
    "kv_cache",
    "kv_cache_attention",
    "load_checkpoint",
    "load_quantized",
    "make_w4a8_bias",
    "moe_finalize_routing",
    "moe_gating_topk",
    "moe_gating_topk_softmax",
    "moe_init_routing",
    "nd_to_nz",
    "nn",
    "nz_to_nd",
    "pack_scale",
    "quant_matmul",
    "quantize",
    "quantize_",
    "reference",
    "rope_kv_cache",
    "save_quantized",
    "strict",
    "swiglu",
    "trans_quant_param",
    "weight_quant_matmul",
    "weight_quant_prepack",
    "weight_quant_unprepack",
]


# These import transformers, so they are loaded when they are asked for.
_LAZY = {
    "AnynpuConfig": "anynpu.checkpoints.hf_quantizer",
    "calibrate_kv": "anynpu.kv_cache",
    "kv_cache": "anynpu.kv_cache",
}

extend_when_imported()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'anynpu' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if name == "kv_cache" else getattr(module, name)
