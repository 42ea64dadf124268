// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER portable
#include "simd/vec_portable.h"

#include "ops/anti_quant/kernel.inc"
