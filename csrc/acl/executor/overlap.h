// SPDX-License-Identifier: Apache-2.0
// How two views whose memory overlaps go together.
#pragma once

#include "anynpu.h"

namespace anynpu::acl {

// Whether both are the same elements, of types of one size.
bool same_view(const anynpu_tensor& a, const anynpu_tensor& b);
// Whether both are columns of the same rows, as q and k are in the product of one matrix, and do not meet.
bool interleaved(const anynpu_tensor& a, const anynpu_tensor& b);

}  // namespace anynpu::acl
