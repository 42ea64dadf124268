// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER portable
#include "simd/vec_portable.h"

#include "ops/moe_gating_topk_softmax/kernel.inc"
