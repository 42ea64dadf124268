// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "core/parallel.h"
#include "gemm/weight_view.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "weight_quant_prepack";

int32_t check_prepack(const anynpu_weight_quant_prepack_args& args, WeightView* view, int64_t* bytes) {
  ANYNPU_TRY(check_required(kOp, "weight", args.weight));
  if (args.weight.ndim != 2) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight must have two axes, got shape %s", kOp, shape_text(args.weight));
  }
  ANYNPU_TRY(view_weight(kOp, "weight", args.weight, -1, view));
  *bytes = packed32_bytes(view->source.bits, view->source.k, view->source.n);
  return ANYNPU_OK;
}

int32_t check_packed(const anynpu_tensor& packed, int64_t bytes) {
  ANYNPU_TRY(check_required(kOp, "packed", packed));
  ANYNPU_TRY(check_dtype(kOp, "packed", packed, {ANYNPU_UINT8}));
  if (packed.ndim == 1 && packed.shape[0] == bytes && packed.format == ANYNPU_ND && is_contiguous(packed))
    return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: packed must be ND, contiguous and of shape (%lld,), got %s", kOp, wide(bytes),
              shape_text(packed));
}

// Two blocks of 32 outputs are the four vectors of 16 outputs of one panel.
void pack_columns(const GemmKernel& kernel, const WeightSource& weight, int64_t first, uint8_t* cells) {
  uint8_t panel[kPanelColumns * kSpan];
  const int64_t steps = (weight.k + 3) / 4, cell_bytes = weight.bits * 16;
  const int64_t columns = std::min(kPanelColumns, weight.n - first);
  for (int64_t k = 0; k < weight.k; k += kSpan) {
    const int64_t k_count = std::min(kSpan, weight.k - k);
    kernel.unpack(weight, {k, k_count, first, columns}, panel);
    for (int64_t step = 0; step < (k_count + 3) / 4; ++step) {
      for (int64_t block = 0; block * 32 < columns; ++block) {
        const uint8_t* from = panel + step * kPanelColumns * 4 + block * 128;
        uint8_t* to = cells + ((first / 32 + block) * steps + k / 4 + step) * cell_bytes;
        if (weight.bits == 8) {
          std::memcpy(to, from, 128);
        } else {
          for (int i = 0; i < 64; ++i) to[i] = static_cast<uint8_t>(from[i] | from[64 + i] << 4);
        }
      }
    }
  }
}

}  // namespace
}  // namespace anynpu

using anynpu::fail;

extern "C" int32_t anynpu_weight_quant_prepack_check(const anynpu_weight_quant_prepack_args* args,
                                                     size_t* packed_bytes) {
  if (args == nullptr || packed_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "weight_quant_prepack: null argument");
  *packed_bytes = 0;
  anynpu::WeightView view = {};
  int64_t bytes = 0;
  ANYNPU_TRY(anynpu::check_prepack(*args, &view, &bytes));
  *packed_bytes = static_cast<size_t>(bytes);
  return ANYNPU_OK;
}

extern "C" int32_t anynpu_weight_quant_prepack(const anynpu_weight_quant_prepack_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "weight_quant_prepack: null argument");
  anynpu::WeightView view = {};
  int64_t bytes = 0;
  ANYNPU_TRY(anynpu::check_prepack(*args, &view, &bytes));
  ANYNPU_TRY(anynpu::check_packed(args->packed, bytes));
  ANYNPU_TRY(anynpu::check_data("weight_quant_prepack", "weight", args->weight));
  ANYNPU_TRY(anynpu::check_data("weight_quant_prepack", "packed", args->packed));
  uint8_t* blob = static_cast<uint8_t*>(args->packed.data);
  const anynpu::WeightSource& weight = view.source;
  anynpu::write_packed32_header(weight.bits, weight.k, weight.n, blob);
  const anynpu::GemmKernel& kernel = anynpu::gemm_kernel();
  anynpu::parallel_for(
      (weight.n + anynpu::kPanelColumns - 1) / anynpu::kPanelColumns, 4, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          anynpu::pack_columns(kernel, weight, panel * anynpu::kPanelColumns, blob + anynpu::kPackedHeaderBytes);
        }
      });
  return ANYNPU_OK;
}
