# SPDX-License-Identifier: Apache-2.0
"""The oracles: plain PyTorch in float64 or exact integers, one for every operator, with the operator's arguments."""

from anynpu.ops.anti_quant.reference import anti_quant
from anynpu.ops.cast.reference import cast
from anynpu.ops.compressed_matmul.reference import compressed_matmul
from anynpu.ops.dynamic_quant.reference import dynamic_quant
from anynpu.ops.format_cast.reference import nd_to_nz, nz_to_nd
from anynpu.ops.grouped_matmul_combine.reference import grouped_matmul_combine
from anynpu.ops.int4_pack.reference import int4_pack, int4_unpack
from anynpu.ops.kv_cache_attention.reference import kv_cache_attention
from anynpu.ops.quant_matmul.reference import quant_matmul
from anynpu.ops.quantize.reference import quantize
from anynpu.ops.rope_kv_cache.reference import rope_kv_cache
from anynpu.ops.trans_quant_param.reference import decode_quant_param, trans_quant_param
from anynpu.ops.weight_quant_matmul.reference import weight_quant_matmul, weight_quant_prepack

__all__ = [
    "anti_quant",
    "cast",
    "compressed_matmul",
    "decode_quant_param",
    "dynamic_quant",
    "grouped_matmul_combine",
    "int4_pack",
    "int4_unpack",
    "kv_cache_attention",
    "nd_to_nz",
    "nz_to_nd",
    "quant_matmul",
    "quantize",
    "rope_kv_cache",
    "trans_quant_param",
    "weight_quant_matmul",
    "weight_quant_prepack",
]
