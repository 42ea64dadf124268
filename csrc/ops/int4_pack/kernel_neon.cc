// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER neon
#include "ops/int4_pack/kernel.inc"
