// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER neon
#include "simd/vec_neon.h"
#include "simd/words_neon.h"

#include "ops/kv_cache_attention/kernel.inc"
