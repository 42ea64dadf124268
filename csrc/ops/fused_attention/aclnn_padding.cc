// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/aclnn_padding.h"

#include <algorithm>

namespace anynpu::attention {
namespace {

// Where a sequence begins in its rows, which may be before the first, and how long it is.
struct Place {
  int64_t begin, count;
};

Place place_of(int64_t rows, const std::vector<int64_t>& lengths, const anynpu_tensor& padding, int64_t batch) {
  if (lengths.empty()) return {0, rows};
  const int64_t count = lengths[batch];
  if (!present(padding)) return {0, count};
  const int64_t behind = padding.dtype == ANYNPU_INT64 ? *static_cast<const int64_t*>(padding.data)
                                                       : *static_cast<const int32_t*>(padding.data);
  return {rows - std::min(std::max<int64_t>(behind, 0), rows) - count, count};
}

// Hides from a row what is not in the columns that it sees, or hidden by `given`.
void fill_row(const Args& args, const Place& q, const Place& k, int64_t row, const uint8_t* given, uint8_t* mask) {
  const int64_t columns = args.k.shape[1], own = row - q.begin, at = own + (args.from_end ? k.count - q.count : 0);
  int64_t first = std::max<int64_t>(0, k.begin), last = std::min(columns, k.begin + k.count);
  if (args.before < kAll) first = std::max(first, k.begin + at - std::max(args.before, -kAll));
  if (args.after < kAll) last = std::min(last, k.begin + at + std::max(args.after, -kAll) + 1);
  std::fill_n(mask, columns, uint8_t{1});
  if (own < 0 || own >= q.count) return;
  for (int64_t column = first; column < last; ++column) {
    mask[column] = given == nullptr ? 0 : given[column * args.mask.strides[3]] != 0;
  }
}

}  // namespace

anynpu_tensor padded_mask(const Args& args) {
  const int64_t heads = present(args.mask) ? args.mask.shape[1] : 1;
  anynpu_tensor made{nullptr, ANYNPU_BOOL, ANYNPU_ND, 4, 0, {args.q.shape[0], heads, args.q.shape[1], args.k.shape[1]},
                     {}};
  make_contiguous(made);
  return made;
}

void fill_padded_mask(const Args& args, uint8_t* mask) {
  const anynpu_tensor made = padded_mask(args), &given = args.mask;
  for (int64_t batch = 0; batch < made.shape[0]; ++batch) {
    const Place q = place_of(made.shape[2], args.q_values, args.q_padding, batch),
                k = place_of(made.shape[3], args.kv_values, args.kv_padding, batch);
    for (int64_t head = 0; head < made.shape[1]; ++head) {
      for (int64_t row = 0; row < made.shape[2]; ++row, mask += made.shape[3]) {
        const uint8_t* hidden = nullptr;
        if (present(given)) {
          hidden = static_cast<const uint8_t*>(given.data) + row * given.strides[2] + head * given.strides[1] +
                   (given.shape[0] == 1 ? 0 : batch * given.strides[0]);
        }
        fill_row(args, q, k, row, hidden, mask);
      }
    }
  }
}

}  // namespace anynpu::attention
