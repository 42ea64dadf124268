// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx512vnni
#include "simd/vec_avx512vnni.h"

#include "ops/anti_quant/kernel.inc"
