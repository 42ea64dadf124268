// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx512vnni
#include "ops/dynamic_quant/kernel.inc"
