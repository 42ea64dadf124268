// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx2
constexpr int kWide = 4;
#include "ops/quantize/kernel.inc"
