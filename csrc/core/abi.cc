// SPDX-License-Identifier: Apache-2.0
// Struct sizes for bindings that mirror anynpu.h in another language and want to check their mirror at load time.
#include <cstring>

#include "anynpu.h"

extern "C" int64_t anynpu_sizeof(const char* name) {
  static const struct {
    const char* name;
    int64_t size;
  } kSizes[] = {
      {"tensor", sizeof(anynpu_tensor)},
      {"int4_pack_args", sizeof(anynpu_int4_pack_args)},
      {"int4_unpack_args", sizeof(anynpu_int4_unpack_args)},
      {"weight_quant_matmul_args", sizeof(anynpu_weight_quant_matmul_args)},
      {"weight_quant_prepack_args", sizeof(anynpu_weight_quant_prepack_args)},
      {"cast_args", sizeof(anynpu_cast_args)},
      {"trans_quant_param_args", sizeof(anynpu_trans_quant_param_args)},
      {"quantize_args", sizeof(anynpu_quantize_args)},
      {"format_cast_args", sizeof(anynpu_format_cast_args)},
      {"rope_kv_cache_args", sizeof(anynpu_rope_kv_cache_args)},
      {"kv_cache_attention_args", sizeof(anynpu_kv_cache_attention_args)},
      {"fused_attention_args", sizeof(anynpu_fused_attention_args)},
      {"float_elementwise_args", sizeof(anynpu_float_elementwise_args)},
      {"rms_norm_args", sizeof(anynpu_rms_norm_args)},
      {"float_matmul_args", sizeof(anynpu_float_matmul_args)},
      {"anti_quant_args", sizeof(anynpu_anti_quant_args)},
      {"moe_gating_topk_args", sizeof(anynpu_moe_gating_topk_args)},
      {"weight_compress_args", sizeof(anynpu_weight_compress_args)},
      {"weight_decompress_args", sizeof(anynpu_weight_decompress_args)},
      {"quant_matmul_args", sizeof(anynpu_quant_matmul_args)},
      {"compressed_matmul_args", sizeof(anynpu_compressed_matmul_args)},
      {"int8_linear_args", sizeof(anynpu_int8_linear_args)},
      {"dynamic_quant_args", sizeof(anynpu_dynamic_quant_args)},
      {"grouped_matmul_combine_args", sizeof(anynpu_grouped_matmul_combine_args)},
      {"dequant_swiglu_quant_args", sizeof(anynpu_dequant_swiglu_quant_args)},
      {"moe_init_routing_args", sizeof(anynpu_moe_init_routing_args)},
      {"swiglu_args", sizeof(anynpu_swiglu_args)},
      {"moe_finalize_routing_args", sizeof(anynpu_moe_finalize_routing_args)},
      {"moe_gating_topk_softmax_args", sizeof(anynpu_moe_gating_topk_softmax_args)},
  };
  if (name == nullptr) return 0;
  for (const auto& entry : kSizes) {
    if (std::strcmp(entry.name, name) == 0) return entry.size;
  }
  return 0;
}
