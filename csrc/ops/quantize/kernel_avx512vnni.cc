// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx512vnni
constexpr int kWide = 8;
#include "ops/quantize/kernel.inc"
