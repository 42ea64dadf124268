# SPDX-License-Identifier: Apache-2.0
"""``torch_npu`` on a CPU or CUDA machine: published names over anynpu."""

from __future__ import annotations

from anynpu.compat import vllm_ascend_operators as _vllm_ascend_operators  # noqa: F401  registers them
from anynpu.compat.attention_operators import (
    npu_fusion_attention,
    npu_fusion_attention_v2,
    npu_incre_flash_attention,
    npu_prompt_flash_attention,
)
from anynpu.compat.cache_operators import (
    _npu_reshape_and_cache,
    npu_kv_rmsnorm_rope_cache,
    npu_quant_scatter,
    npu_quant_scatter_,
    npu_scatter_pa_kv_cache,
    scatter_update,
    scatter_update_,
)
from anynpu.compat.chunked_operators import _npu_flash_attention_qlens, _npu_paged_attention_splitfuse
from anynpu.compat.collective_operators import (
    npu_all_gather_base_mm,
    npu_mm_all_reduce_base,
    npu_mm_reduce_scatter_base,
)
from anynpu.compat.decoding_operators import npu_attention_update, npu_top_k_top_p
from anynpu.compat.dispatch_operators import (
    npu_moe_distribute_combine,
    npu_moe_distribute_combine_v2,
    npu_moe_distribute_dispatch,
    npu_moe_distribute_dispatch_v2,
)
from anynpu.compat.errors import module_getattr, public_names
from anynpu.compat.ffn_operators import npu_ffn
from anynpu.compat.float_operators import (
    fast_gelu,
    npu_add_rms_norm,
    npu_apply_rotary_pos_emb,
    npu_fast_gelu,
    npu_geglu,
    npu_gelu,
    npu_gemma_rms_norm,
    npu_interleave_rope,
    npu_rms_norm,
    npu_rotary_mul,
    npu_scatter_nd_update,
    npu_scatter_nd_update_,
    npu_silu,
)
from anynpu.compat.format_operators import empty_with_format, get_npu_format, npu_format_cast, npu_format_cast_
from anynpu.compat.formats import Format
from anynpu.compat.fused_float_operators import (
    npu_add_rms_norm_cast,
    npu_clipped_swiglu,
    npu_gelu_mul,
    npu_group_norm_silu,
    npu_group_norm_swish,
    npu_scaled_masked_softmax,
)
from anynpu.compat.fused_infer_operators import (
    _npu_fused_infer_attention_score_get_max_workspace,
    _npu_fused_infer_attention_score_v2_get_max_workspace,
    npu_fused_infer_attention_score,
    npu_fused_infer_attention_score_v2,
)
from anynpu.compat.fused_quant_operators import (
    npu_add_rms_norm_dynamic_quant,
    npu_add_rms_norm_quant,
    npu_dequant_bias,
    npu_dynamic_quant_asymmetric,
    npu_grouped_matmul_swiglu_quant,
    npu_grouped_matmul_swiglu_quant_v2,
    npu_kronecker_quant,
)
from anynpu.compat.grouped_operators import (
    npu_grouped_matmul,
    npu_grouped_matmul_finalize_routing,
    npu_quant_grouped_matmul_dequant,
)
from anynpu.compat.mla_operators import npu_mla_prolog, npu_mla_prolog_v2, npu_mla_prolog_v3
from anynpu.compat.paged_operators import (
    _npu_flash_attention,
    _npu_flash_attention_unpad,
    _npu_paged_attention,
    _npu_paged_attention_get_workspace,
    _npu_paged_attention_mla,
    npu_gather_pa_kv_cache,
)
from anynpu.compat.published import INT4 as int4
from anynpu.compat.quant_operators import (
    npu_anti_quant,
    npu_convert_weight_to_int4pack,
    npu_dynamic_quant,
    npu_matmul_compress_dequant,
    npu_quant_matmul,
    npu_quantize,
    npu_trans_quant_param,
    npu_weight_quant_batchmatmul,
)
from anynpu.compat.rope_kv_cache_operators import npu_dequant_rope_quant_kvcache, npu_rope_quant_kvcache
from anynpu.compat.rotary_operators import _npu_rotary_embedding, npu_mrope
from anynpu.compat.routing_operators import (
    npu_dequant_swiglu_quant,
    npu_moe_finalize_routing,
    npu_moe_gating_top_k,
    npu_moe_gating_top_k_softmax,
    npu_moe_gating_top_k_softmax_v2,
    npu_moe_init_routing_v2,
    npu_moe_token_unpermute,
    npu_swiglu,
)
from anynpu.compat.sparse_attention_operators import (
    npu_kv_quant_sparse_flash_attention,
    npu_lightning_indexer,
    npu_quant_lightning_indexer,
    npu_sparse_flash_attention,
)
from anynpu.compat.tensor_operators import (
    _npu_dtype_cast,
    _npu_matmul_add_fp32,
    npu_confusion_transpose,
    npu_dtype_cast,
    npu_linear,
    npu_prefetch,
    npu_transpose,
    npu_transpose_batchmatmul,
)
from anynpu.compat.token_operators import (
    npu_moe_compute_expert_tokens,
    npu_moe_init_routing,
    npu_moe_re_routing,
    npu_moe_token_permute,
)
from torch_npu import (
    _install,  # before the others
    atb,
    contrib,
    dynamo,
    npu,
    optim,
    profiler,
    testing,
    utils,
    version,
)
from torch_npu.version import __version__

__all__ = public_names(__name__, globals())

__getattr__ = module_getattr(__name__, globals())
