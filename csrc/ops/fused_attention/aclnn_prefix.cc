// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/aclnn_prefix.h"

#include "acl/executor/executor.h"
#include "acl/executor/tensor.h"

namespace anynpu::attention {

anynpu_tensor joined(const anynpu_tensor& own, int64_t count) {
  anynpu_tensor made = own;
  made.data = nullptr;
  made.shape[1] += count;
  make_contiguous(made);
  return made;
}

int32_t join(const anynpu_tensor& prefix, const anynpu_tensor& own, int64_t count, anynpu_tensor* made,
             std::unique_ptr<uint8_t[]>* memory) {
  const int64_t size = dtype_bits(own.dtype) / 8;
  *made = joined(own, count);
  memory->reset(new uint8_t[element_count(*made) * size]);
  made->data = memory->get();
  anynpu_tensor shared = prefix, first = *made, rest = *made;
  shared.shape[0] = own.shape[0];
  shared.strides[0] = 0;
  shared.shape[1] = first.shape[1] = count;
  rest.shape[1] = own.shape[1];
  rest.data = acl::advanced(made->data, count * made->strides[1] * size);
  ANYNPU_TRY(acl::copy_view(shared, first));
  return acl::copy_view(own, rest);
}

}  // namespace anynpu::attention
