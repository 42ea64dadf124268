// SPDX-License-Identifier: Apache-2.0
// One x and one weight (E, K, N) in int8 or int4 are one call of the kernel of grouped_matmul_combine, as
// src/anynpu/ops/grouped_matmul/composite.py makes it. All else is a loop over the groups.
#include "ops/grouped_matmul/aclnn_groups.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "acl/executor/executor.h"
#include "acl/executor/tensor.h"
#include "core/integer.h"
#include "core/status.h"
#include "core/tensor.h"
#include "ops/grouped_matmul/aclnn_plan.h"

namespace anynpu::grouped {
namespace {

anynpu_tensor shifted(anynpu_tensor tensor, int64_t bytes) {
  tensor.data = acl::advanced(tensor.data, bytes);
  return tensor;
}

// Bytes of `count` steps along an axis; unsigned, since the strides of empty tensors may be anything.
int64_t step_bytes(const anynpu_tensor& tensor, int axis, int64_t count) {
  const uint64_t bits = static_cast<uint64_t>(count) * tensor.strides[axis] * dtype_bits(tensor.dtype);
  return static_cast<int64_t>(bits / 8);
}

anynpu_tensor part(anynpu_tensor tensor, int axis, int64_t first, int64_t count) {
  tensor = shifted(tensor, step_bytes(tensor, axis, first));
  tensor.shape[axis] = count;
  return tensor;
}

// Bytes of one matrix of blocks.
int64_t matrix_bytes(const anynpu_tensor& tensor) {
  const int row = tensor.ndim - 2, column = tensor.ndim - 1;
  int64_t rows = tensor.shape[row], columns = tensor.shape[column];
  const bool swapped = tensor.strides[row] == 1 && tensor.strides[column] == rows && !is_contiguous(tensor);
  if (swapped) std::swap(rows, columns);
  return round_up(rows, 16) * round_up(columns, nz_c0(tensor)) * dtype_bits(tensor.dtype) / 8;
}

// The index-th of the tensors that are stacked along the first axis.
anynpu_tensor member(anynpu_tensor tensor, int64_t index) {
  const bool blocks = tensor.format == ANYNPU_FRACTAL_NZ;
  const int64_t bytes = !blocks                      ? step_bytes(tensor, 0, index)
                        : element_count(tensor) == 0 ? 0
                                                     : index * matrix_bytes(tensor);
  tensor = shifted(tensor, bytes);
  --tensor.ndim;
  std::copy_n(tensor.shape + 1, tensor.ndim, tensor.shape);
  std::copy_n(tensor.strides + 1, tensor.ndim, tensor.strides);
  return tensor;
}

anynpu_tensor parameter(const anynpu_tensor* tensors, size_t count, const Plan& plan, int64_t group) {
  if (count == 0) return {};
  if (!plan.stacked) return tensors[group];
  return tensors[0].ndim == 1 ? tensors[0] : member(tensors[0], group);
}

// Groups of rows: `size` of them from `first` on.
Product row_product(const Args& args, const Plan& plan, int64_t group, int64_t first, int64_t size) {
  Product made = {};
  made.x = plan.paired ? args.x[group] : part(args.x[0], 0, first, size);
  made.y = args.split_result ? args.y[group] : part(args.y[0], 0, first, size);
  made.weight = plan.stacked ? member(args.weight[0], group) : args.weight[group];
  made.bias = parameter(args.bias, args.bias_count, plan, group);
  made.scale = parameter(args.scale, args.scale_count, plan, group);
  made.antiquant_scale = parameter(args.antiquant_scale, args.antiquant_scale_count, plan, group);
  made.antiquant_offset = parameter(args.antiquant_offset, args.antiquant_offset_count, plan, group);
  if (args.pertoken_scale_count > 0) {
    made.pertoken_scale = plan.paired ? args.pertoken_scale[group] : part(args.pertoken_scale[0], 0, first, size);
  }
  return made;
}

// Groups of columns of x, which are rows of weight.
Product column_product(const Args& args, int64_t group, int64_t first, int64_t size) {
  Product made = {};
  made.x = part(args.x[0], 1, first, size);
  made.weight = args.weight_count == 1 ? part(args.weight[0], 0, first, size) : args.weight[group];
  made.y = args.split_result ? args.y[group] : member(args.y[0], group);
  return made;
}

Product product_of(const Args& args, const Plan& plan, int64_t group, int64_t first, int64_t size) {
  return args.group_type == kColumns ? column_product(args, group, first, size)
                                     : row_product(args, plan, group, first, size);
}

// Rows or columns that the tensors of a group say it has; what x has in all where they do not.
int64_t own_size(const Args& args, const Plan& plan, int64_t group) {
  if (args.group_type == kColumns) return args.weight_count == 1 ? args.x[0].shape[1] : args.weight[group].shape[0];
  if (plan.paired) return args.x[group].shape[0];
  return args.split_result ? args.y[group].shape[0] : args.x[0].shape[0];
}

bool has_own_size(const Args& args, const Plan& plan) {
  return args.group_type == kColumns ? args.weight_count > 1 : plan.paired || args.split_result;
}

int64_t entry(const Args& args, int64_t at, int column = 0) {
  if (!present(args.group_list)) return args.host_list[at];
  const anynpu_tensor& list = args.group_list;
  return static_cast<const int64_t*>(list.data)[at * list.strides[0] + (list.ndim == 2 ? column * list.strides[1] : 0)];
}

int32_t read_pairs(const Args& args, int64_t most, std::vector<int64_t>& sizes) {
  const auto groups = static_cast<int64_t>(sizes.size());
  int64_t least = 0, left = most;
  for (int64_t i = 0; i < args.group_list.shape[0]; ++i) {
    const int64_t group = entry(args, i, 0), size = entry(args, i, 1);
    if (size == 0) continue;
    if (group < least || group >= groups) {
      return fail(ANYNPU_BAD_VALUE, "group_list[%lld] must name a group in [%lld, %lld), got %lld", wide(i),
                  wide(least), wide(groups), wide(group));
    }
    if (size < 0 || size > left) {
      return fail(ANYNPU_BAD_VALUE, "group_list[%lld] must have a size in [0, %lld] (x has %lld rows), got %lld",
                  wide(i), wide(left), wide(most), wide(size));
    }
    sizes[group] = size;
    least = group + 1;
    left -= size;
  }
  return ANYNPU_OK;
}

int32_t read_entries(const Args& args, int64_t most, std::vector<int64_t>& sizes) {
  const char* what = args.group_type == kColumns ? "columns" : "rows";
  const bool counts = args.group_list_type == kCounts;
  int64_t end = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t value = entry(args, static_cast<int64_t>(i)), least = counts ? 0 : end;
    const int64_t largest = counts ? most - end : most;
    if (value < least || value > largest) {
      return fail(ANYNPU_BAD_VALUE, "group_list[%zu] must be in [%lld, %lld] (%s, x has %lld %s), got %lld", i,
                  wide(least), wide(largest), counts ? "counts" : "running sums", wide(most), what, wide(value));
    }
    sizes[i] = counts ? value : value - end;
    end += sizes[i];
  }
  return ANYNPU_OK;
}

// Rows, or columns, of each group; 0 without groups.
int32_t read_sizes(const Args& args, const Plan& plan, std::vector<int64_t>& sizes) {
  sizes.assign(plan.groups, 0);
  if (args.group_type == kNone) return ANYNPU_OK;
  int64_t most = args.group_type == kColumns ? args.x[0].shape[1] : 0;
  for (size_t i = 0; i < args.x_count && args.group_type == kRows; ++i) most += args.x[i].shape[0];
  if (has_list(args)) {
    ANYNPU_TRY(args.group_list_type == kPairs ? read_pairs(args, most, sizes) : read_entries(args, most, sizes));
  }
  if (!has_own_size(args, plan)) return ANYNPU_OK;
  for (int64_t group = 0; group < plan.groups; ++group) {
    const int64_t own = own_size(args, plan, group);
    if (has_list(args) && sizes[group] != own) {
      return fail(ANYNPU_BAD_VALUE, "group_list must give group %lld the %lld %s of its tensors, got %lld", wide(group),
                  wide(own), args.group_type == kColumns ? "columns" : "rows", wide(sizes[group]));
    }
    sizes[group] = own;
  }
  return ANYNPU_OK;
}

int32_t in_group(int64_t group, int32_t status) {
  if (status == ANYNPU_OK) return ANYNPU_OK;
  const std::string sentence = anynpu_last_error();
  return fail(static_cast<anynpu_status>(status), "group %lld: %s", wide(group), sentence.c_str());
}

// Whether one call of the kernel does all groups: its scales are those of columns and it adds no bias to int8 products.
bool is_one_call(const Args& args, const Plan& plan) {
  if (!plan.stacked || args.split_result) return false;
  if (plan.mode == Mode::int4) return true;
  return plan.mode == Mode::int8 && args.bias_count == 0 && args.y[0].dtype != ANYNPU_INT8 &&
         (args.scale_count == 0 || has_shape(args.scale[0], {plan.groups, args.y[0].shape[1]}));
}

Product whole(const Args& args) {
  Product made = {};
  made.x = args.x[0];
  made.weight = args.weight[0];
  made.y = args.y[0];
  made.bias = args.bias[0];
  made.scale = args.scale[0];
  made.pertoken_scale = args.pertoken_scale[0];
  return made;
}

// An int32 bias that is too large would be found when groups before it are written.
int32_t check_biases(const Args& args, const Plan& plan) {
  if (args.bias_count == 0 || args.bias[0].dtype != ANYNPU_INT32) return ANYNPU_OK;
  for (int64_t group = 0; group < plan.groups; ++group) {
    const anynpu_tensor bias = parameter(args.bias, args.bias_count, plan, group);
    const anynpu_tensor& x = args.x[plan.paired ? group : 0];
    const int64_t most = INT32_MAX - int64_t{128} * 128 * x.shape[x.ndim - 1], n = bias.shape[bias.ndim - 1];
    for (int64_t i = 0; i < element_count(bias); ++i) {
      const int64_t at = row_elements(bias, i / n) + i % n * bias.strides[bias.ndim - 1];
      const int64_t value = static_cast<const int32_t*>(bias.data)[at];
      if (value >= -most && value <= most) continue;
      return fail(ANYNPU_BAD_VALUE, "group %lld: |bias| must be at most %lld so that int32 sums are exact, got %lld",
                  wide(group), wide(most), wide(value));
    }
  }
  return ANYNPU_OK;
}

// The rows behind the last group are 0.
int32_t clear(const anynpu_tensor& y, int64_t first) {
  anynpu_tensor rest = part(y, 0, first, y.shape[0] - first), zeros = rest;
  static constexpr float kZero = 0;
  zeros.dtype = ANYNPU_FLOAT32;
  zeros.data = const_cast<float*>(&kZero);
  std::fill_n(zeros.strides, zeros.ndim, 0);
  return acl::copy_view(zeros, rest);
}

}  // namespace

int32_t check(const Args* args, size_t* workspace_bytes) {
  *workspace_bytes = 0;
  Plan plan = {};
  ANYNPU_TRY(make_plan(*args, &plan));
  std::vector<int64_t> sizes;
  if (!present(args->group_list)) {
    const int32_t status = read_sizes(*args, plan, sizes);
    if (status == ANYNPU_BAD_VALUE) return fail(ANYNPU_BAD_SHAPE, "%s", std::string(anynpu_last_error()).c_str());
    ANYNPU_TRY(status);
  }
  if (is_one_call(*args, plan)) return check_combined(whole(*args), workspace_bytes);
  const bool alike = !args->split_result && args->weight_count == 1;  // slices of the same tensors
  for (int64_t group = 0; group < (alike ? std::min<int64_t>(1, plan.groups) : plan.groups); ++group) {
    const Product product = product_of(*args, plan, group, 0, own_size(*args, plan, group));
    ANYNPU_TRY(in_group(group, multiply(plan.mode, product, false)));
  }
  return ANYNPU_OK;
}

int32_t run(const Args* args, void* workspace, size_t workspace_bytes) {
  Plan plan = {};
  ANYNPU_TRY(make_plan(*args, &plan));
  std::vector<int64_t> sizes;
  ANYNPU_TRY(read_sizes(*args, plan, sizes));
  if (is_one_call(*args, plan)) return run_combined(whole(*args), sizes.data(), workspace, workspace_bytes);
  ANYNPU_TRY(check_biases(*args, plan));
  int64_t first = 0;
  for (int64_t group = 0; group < plan.groups; ++group) {
    const Product product = product_of(*args, plan, group, first, sizes[group]);
    ANYNPU_TRY(in_group(group, multiply(plan.mode, product, true)));
    first += sizes[group];
  }
  return args->split_result || args->group_type == kColumns ? ANYNPU_OK : clear(args->y[0], first);
}

}  // namespace anynpu::grouped
