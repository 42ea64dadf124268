// SPDX-License-Identifier: Apache-2.0
// Operators that move values and compute nothing: copies between views, by anynpu_cast, and of rows that an index names.
#include <algorithm>
#include <cstring>

#include "acl/executor/executor.h"
#include "acl/executor/tensor.h"
#include "aclnnop/aclnn_cat.h"
#include "aclnnop/aclnn_copy.h"
#include "aclnnop/aclnn_embedding.h"
#include "aclnnop/aclnn_index_select.h"
#include "aclnnop/aclnn_permute.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;
using anynpu::acl::copy_view;
using anynpu::acl::FirstStage;
using anynpu::acl::Views;

constexpr size_t kParts = 64;

struct Copy {
  anynpu_tensor x, y;
};
struct Concatenation {
  anynpu_tensor x[kParts], y;
  size_t count;
  int64_t axis;
};
struct Selection {
  anynpu_tensor x, index, y;
  int64_t axis;
};

int32_t check_copy(const Copy* args, size_t* workspace_bytes) {
  const anynpu_cast_args cast{args->x, args->y};
  return anynpu_cast_check(&cast, workspace_bytes);
}
int32_t run_copy(const Copy* args, void*, size_t) { return copy_view(args->x, args->y); }

// The place of x[part] in y; the parts before it are in front of it.
Copy place(const Concatenation& args, size_t part) {
  Copy made{args.x[part], args.y};
  uint64_t places = 0;  // unsigned, since the strides of empty tensors may be anything
  for (size_t before = 0; before < part; ++before) places += args.x[before].shape[args.axis];
  const uint64_t bytes = places * made.y.strides[args.axis] * (anynpu::dtype_bits(made.y.dtype) / 8);
  made.y.data = anynpu::acl::advanced(made.y.data, static_cast<int64_t>(bytes));
  made.y.shape[args.axis] = made.x.shape[args.axis];
  return made;
}

int32_t check_parts(const Concatenation* args, size_t* workspace_bytes) {
  int64_t left = args->y.shape[args->axis];
  for (size_t part = 0; part < args->count; ++part) {
    if (args->x[part].ndim != args->y.ndim) {
      return anynpu::fail(ANYNPU_BAD_SHAPE, "every tensor must have the %d axes of out, got %d", args->y.ndim,
                          args->x[part].ndim);
    }
    left -= args->x[part].shape[args->axis];
    if (left < 0) break;
    const Copy copy = place(*args, part);
    if (const int32_t status = check_copy(&copy, workspace_bytes)) return status;
  }
  if (left == 0) return ANYNPU_OK;
  return anynpu::fail(ANYNPU_BAD_SHAPE, "axis %lld of the tensors must add up to that of out, %lld, got %s",
                      wide(args->axis), wide(args->y.shape[args->axis]), left < 0 ? "more" : "less");
}

int32_t run_parts(const Concatenation* args, void*, size_t) {
  for (size_t part = 0; part < args->count; ++part) {
    const Copy copy = place(*args, part);
    if (const int32_t status = copy_view(copy.x, copy.y)) return status;
  }
  return ANYNPU_OK;
}

int64_t product(const int64_t* first, const int64_t* last) {
  int64_t made = 1;
  for (; first != last; ++first) made *= *first;
  return made;
}

int32_t check_selection(const Selection* args, size_t* workspace_bytes) {
  *workspace_bytes = 0;
  const anynpu_tensor &x = args->x, &index = args->index, &y = args->y;
  for (const anynpu_tensor* tensor : {&x, &index, &y}) {
    if (tensor->format != ANYNPU_ND || anynpu::dtype_bits(tensor->dtype) < 8) {
      return anynpu::fail(ANYNPU_BAD_DTYPE, "tensors must be ND, of whole bytes, got format %d, %s", tensor->format,
                          anynpu::dtype_name(tensor->dtype));
    }
  }
  if (index.dtype != ANYNPU_INT32 && index.dtype != ANYNPU_INT64) {
    return anynpu::fail(ANYNPU_BAD_DTYPE, "the index must be int32 or int64, got %s", anynpu::dtype_name(index.dtype));
  }
  if (y.dtype != x.dtype) {
    return anynpu::fail(ANYNPU_BAD_DTYPE, "out must be %s, got %s", anynpu::dtype_name(x.dtype),
                        anynpu::dtype_name(y.dtype));
  }
  const int64_t *at = x.shape + args->axis, *after = at + 1;
  const bool fits = y.ndim == x.ndim - 1 + index.ndim && std::equal(x.shape, at, y.shape) &&
                    std::equal(index.shape, index.shape + index.ndim, y.shape + args->axis) &&
                    std::equal(after, x.shape + x.ndim, y.shape + args->axis + index.ndim);
  if (fits) return ANYNPU_OK;
  return anynpu::fail(ANYNPU_BAD_SHAPE,
                      "out must have the shape of %s with that of the index, %s, for axis %lld, got %s",
                      anynpu::shape_text(x), anynpu::shape_text(index), wide(args->axis), anynpu::shape_text(y));
}

int64_t place_of(const anynpu_tensor& index, int64_t at) {
  return index.dtype == ANYNPU_INT32 ? static_cast<const int32_t*>(index.data)[at]
                                     : static_cast<const int64_t*>(index.data)[at];
}

int32_t run_selection(const Selection* args, void*, size_t) {
  const anynpu_tensor& x = args->x;
  const int64_t places = x.shape[args->axis], count = anynpu::element_count(args->index);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = place_of(args->index, i);
    if (at < 0 || at >= places) {
      return anynpu::fail(ANYNPU_BAD_VALUE, "every index must be in [0, %lld], got %lld at [%lld]", wide(places - 1),
                          wide(at), wide(i));
    }
  }
  if (anynpu::element_count(args->y) == 0) return ANYNPU_OK;
  const int64_t outer = product(x.shape, x.shape + args->axis);
  const int64_t bytes = product(x.shape + args->axis + 1, x.shape + x.ndim) * (anynpu::dtype_bits(x.dtype) / 8);
  const auto* from = static_cast<const char*>(x.data);
  auto* to = static_cast<char*>(args->y.data);
  for (int64_t block = 0; block < outer; ++block, from += places * bytes) {
    for (int64_t i = 0; i < count; ++i, to += bytes) std::memcpy(to, from + place_of(args->index, i) * bytes, bytes);
  }
  return ANYNPU_OK;
}

constexpr auto kPermute = anynpu::acl::make_operator<Copy, check_copy, run_copy>("aclnnPermute");
constexpr auto kInplaceCopy = anynpu::acl::make_operator<Copy, check_copy, run_copy>("aclnnInplaceCopy");
constexpr auto kCat = anynpu::acl::make_operator<Concatenation, check_parts, run_parts>("aclnnCat");
constexpr anynpu::acl::Operator selection(const char* name) {
  return anynpu::acl::make_operator<Selection, check_selection, run_selection>(name, Views::copied);
}
constexpr auto kIndexSelect = selection("aclnnIndexSelect");
constexpr auto kEmbedding = selection("aclnnEmbedding");

void permute(FirstStage<Copy>& stage, const std::vector<int64_t>& axes) {
  const anynpu_tensor given = stage.args.x;
  stage.require(static_cast<int64_t>(axes.size()) == given.ndim, "dims must name the %d axes of self, got %zu",
                given.ndim, axes.size());
  bool named[ANYNPU_MAX_DIMS] = {};
  for (size_t i = 0; stage.ok() && i < axes.size(); ++i) {
    const int64_t axis = axes[i] < 0 ? axes[i] + given.ndim : axes[i];
    stage.require(axis >= 0 && axis < given.ndim && !named[axis], "dims must name each axis of self once, got %lld",
                  wide(axes[i]));
    if (!stage.ok()) return;
    named[axis] = true;
    stage.args.x.shape[i] = given.shape[axis];
    stage.args.x.strides[i] = given.strides[axis];
  }
}

// x as it is read: repeated to the shape of y.
void broadcast(FirstStage<Copy>& stage) {
  const anynpu_tensor given = stage.args.x, &y = stage.args.y;
  anynpu_tensor& x = stage.args.x;
  const int more = y.ndim - given.ndim;
  bool fits = more >= 0;
  x.ndim = y.ndim;
  for (int axis = 0; fits && axis < y.ndim; ++axis) {
    const bool repeated = axis < more || given.shape[axis - more] == 1;
    fits = repeated || given.shape[axis - more] == y.shape[axis];
    x.shape[axis] = y.shape[axis];
    x.strides[axis] = repeated ? 0 : given.strides[axis - more];
  }
  stage.require(fits, "src must broadcast to the shape of selfRef, %s, got %s", anynpu::shape_text(y),
                anynpu::shape_text(given));
}

}  // namespace

extern "C" aclnnStatus aclnnPermuteGetWorkspaceSize(const aclTensor* self, const aclIntArray* dims, aclTensor* out,
                                                    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Copy>(kPermute, workspaceSize, executor, [&](auto& stage) {
    stage.input("self", self, &Copy::x);
    const std::vector<int64_t> axes = stage.ints("dims", dims);
    stage.output("out", out, &Copy::y);
    permute(stage, axes);
  });
}

extern "C" aclnnStatus aclnnInplaceCopyGetWorkspaceSize(aclTensor* selfRef, const aclTensor* src,
                                                        uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Copy>(kInplaceCopy, workspaceSize, executor, [&](auto& stage) {
    stage.output("selfRef", selfRef, &Copy::y);
    stage.input("src", src, &Copy::x);
    broadcast(stage);
  });
}

extern "C" aclnnStatus aclnnCatGetWorkspaceSize(const aclTensorList* tensors, int64_t dim, aclTensor* out,
                                                uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Concatenation>(kCat, workspaceSize, executor, [&](auto& stage) {
    stage.args.count = stage.inputs("tensors", tensors, &Concatenation::x);
    stage.output("out", out, &Concatenation::y);
    stage.args.axis = stage.axis("dim", dim, stage.args.y);
  });
}

extern "C" aclnnStatus aclnnIndexSelectGetWorkspaceSize(const aclTensor* self, int64_t dim, const aclTensor* index,
                                                        aclTensor* out, uint64_t* workspaceSize,
                                                        aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Selection>(kIndexSelect, workspaceSize, executor, [&](auto& stage) {
    stage.input("self", self, &Selection::x);
    stage.input("index", index, &Selection::index);
    stage.output("out", out, &Selection::y);
    stage.args.axis = stage.axis("dim", dim, stage.args.x);
    stage.require(stage.args.index.ndim == 1, "index must have 1 axis, got %d", stage.args.index.ndim);
  });
}

extern "C" aclnnStatus aclnnEmbeddingGetWorkspaceSize(const aclTensor* weight, const aclTensor* indices,
                                                      const aclTensor* out, uint64_t* workspaceSize,
                                                      aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Selection>(kEmbedding, workspaceSize, executor, [&](auto& stage) {
    stage.input("weight", weight, &Selection::x);
    stage.input("indices", indices, &Selection::index);
    stage.output("out", out, &Selection::y);
    stage.require(stage.args.x.ndim == 2, "weight must have 2 axes, got %d", stage.args.x.ndim);
  });
}

ANYNPU_SECOND_STAGE(aclnnPermute, kPermute)

ANYNPU_SECOND_STAGE(aclnnInplaceCopy, kInplaceCopy)

ANYNPU_SECOND_STAGE(aclnnCat, kCat)

ANYNPU_SECOND_STAGE(aclnnIndexSelect, kIndexSelect)

ANYNPU_SECOND_STAGE(aclnnEmbedding, kEmbedding)
