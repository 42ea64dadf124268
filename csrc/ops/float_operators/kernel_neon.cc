// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER neon
#include "simd/vec_neon.h"

#include "ops/float_operators/kernel.inc"
