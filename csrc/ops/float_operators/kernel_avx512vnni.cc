// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx512vnni
#include "simd/vec_avx512vnni.h"

#include "ops/float_operators/kernel.inc"
