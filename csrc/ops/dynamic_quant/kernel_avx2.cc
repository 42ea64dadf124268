// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx2
#include "ops/dynamic_quant/kernel.inc"
