# SPDX-License-Identifier: Apache-2.0
"""The operators: a folder each, all of the same shape. Importing this package registers them with torch."""

from anynpu.ops import (
    anti_quant,
    cast,
    compressed_matmul,
    dynamic_quant,
    format_cast,
    int4_pack,
    kv_cache_attention,
    quant_matmul,
    quantize,
    rope_kv_cache,
    trans_quant_param,
    weight_quant_matmul,
)

__all__ = [
    "anti_quant",
    "cast",
    "compressed_matmul",
    "dynamic_quant",
    "format_cast",
    "int4_pack",
    "kv_cache_attention",
    "quant_matmul",
    "quantize",
    "rope_kv_cache",
    "trans_quant_param",
    "weight_quant_matmul",
]
