// SPDX-License-Identifier: Apache-2.0
// What all versions of aclnnGroupedMatmul compute: the products of groups of rows, or of columns, with a weight each.
#pragma once

#include <cstddef>

#include "anynpu.h"

namespace anynpu::grouped {

constexpr size_t kMostTensors = 128;  // of a list, as documented
constexpr int kNone = -1, kRows = 0, kColumns = 2;
constexpr int kSums = 0, kCounts = 1, kPairs = 2;

struct Args {
  anynpu_tensor x[kMostTensors], weight[kMostTensors], bias[kMostTensors], scale[kMostTensors],
      antiquant_scale[kMostTensors], antiquant_offset[kMostTensors], pertoken_scale[kMostTensors], y[kMostTensors];
  size_t x_count, weight_count, bias_count, scale_count, antiquant_scale_count, antiquant_offset_count,
      pertoken_scale_count, y_count;
  anynpu_tensor group_list;
  int64_t host_list[kMostTensors];  // the running sums of the versions that take them from the host
  int64_t host_count;               // -1: none
  int32_t group_type, group_list_type;
  bool split_result;  // each group has a y of its own
};

int32_t check(const Args* args, size_t* workspace_bytes);
int32_t run(const Args* args, void* workspace, size_t workspace_bytes);

}  // namespace anynpu::grouped
