# SPDX-License-Identifier: Apache-2.0
"""The oracles: plain PyTorch in float64 or exact integers, one for every operator, with the operator's arguments."""

from anynpu.ops.anti_quant.reference import anti_quant
from anynpu.ops.cast.reference import cast
from anynpu.ops.compressed_matmul.reference import compressed_matmul
from anynpu.ops.dequant_swiglu_quant.reference import dequant_swiglu_quant
from anynpu.ops.dynamic_quant.reference import dynamic_quant
from anynpu.ops.format_cast.reference import nd_to_nz, nz_to_nd
from anynpu.ops.fused_attention.reference import fused_attention
from anynpu.ops.grouped_matmul.reference import grouped_matmul
from anynpu.ops.grouped_matmul_combine.reference import grouped_matmul_combine
from anynpu.ops.int4_pack.reference import int4_pack, int4_unpack
from anynpu.ops.kv_cache_attention.reference import kv_cache_attention
from anynpu.ops.moe_finalize_routing.reference import moe_finalize_routing
from anynpu.ops.moe_gating_topk.reference import moe_gating_topk
from anynpu.ops.moe_gating_topk_softmax.reference import moe_gating_topk_softmax
from anynpu.ops.moe_init_routing.reference import moe_init_routing
from anynpu.ops.quant_matmul.reference import quant_matmul
from anynpu.ops.quantize.reference import quantize
from anynpu.ops.rope_kv_cache.reference import rope_kv_cache
from anynpu.ops.swiglu.reference import swiglu
from anynpu.ops.trans_quant_param.reference import decode_quant_param, trans_quant_param
from anynpu.ops.weight_quant_matmul.reference import weight_quant_matmul, weight_quant_prepack

__all__ = [
    "anti_quant",
    "cast",
    "compressed_matmul",
    "decode_quant_param",
    "dequant_swiglu_quant",
    "dynamic_quant",
    "fused_attention",
    "grouped_matmul",
    "grouped_matmul_combine",
    "int4_pack",
    "int4_unpack",
    "kv_cache_attention",
    "moe_finalize_routing",
    "moe_gating_topk",
    "moe_gating_topk_softmax",
    "moe_init_routing",
    "nd_to_nz",
    "nz_to_nd",
    "quant_matmul",
    "quantize",
    "rope_kv_cache",
    "swiglu",
    "trans_quant_param",
    "weight_quant_matmul",
    "weight_quant_prepack",
]
