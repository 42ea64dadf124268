// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER neon
constexpr int kWide = 2;
#include "ops/quantize/kernel.inc"
