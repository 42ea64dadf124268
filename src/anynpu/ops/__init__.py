# SPDX-License-Identifier: Apache-2.0
"""The operators: a folder each, all of the same shape. Importing this package registers them with torch."""

from anynpu.ops import (
    anti_quant,
    cast,
    compressed_matmul,
    dequant_swiglu_quant,
    dynamic_quant,
    format_cast,
    int4_pack,
    kv_cache_attention,
    moe_finalize_routing,
    moe_gating_topk,
    moe_gating_topk_softmax,
    moe_init_routing,
    quant_matmul,
    quantize,
    rope_kv_cache,
    swiglu,
    trans_quant_param,
    weight_quant_matmul,
)

__all__ = [
    "anti_quant",
    "cast",
    "compressed_matmul",
    "dequant_swiglu_quant",
    "dynamic_quant",
    "format_cast",
    "int4_pack",
    "kv_cache_attention",
    "moe_finalize_routing",
    "moe_gating_topk",
    "moe_gating_topk_softmax",
    "moe_init_routing",
    "quant_matmul",
    "quantize",
    "rope_kv_cache",
    "swiglu",
    "trans_quant_param",
    "weight_quant_matmul",
]
