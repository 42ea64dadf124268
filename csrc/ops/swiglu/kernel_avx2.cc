// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx2
#include "simd/vec_avx2.h"

#include "ops/swiglu/kernel.inc"
