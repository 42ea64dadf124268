// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/tensor.h"

#include <algorithm>
#include <string>

#include "acl/executor/executor.h"
#include "acl/runtime/memory.h"
#include "core/tensor.h"

namespace anynpu::acl {
namespace {

void find_leaks() {
  tensors().for_each([](const TensorPtr& tensor) {
    anynpu_tensor view{};
    view.ndim = tensor->ndim;
    std::copy(tensor->shape.begin(), tensor->shape.end(), view.shape);
    check::add({"leaked-tensor", "",
                std::string("aclTensor ") + dtype_name(tensor->dtype) + " " + shape_text(view) + " never destroyed",
                tensor->created, nullptr});
  });
}

[[maybe_unused]] const bool registered = (check::on_report(find_leaks), true);

int32_t check_dims(const char* call, const char* name, const int64_t* dims, uint64_t count) {
  if (count > ANYNPU_MAX_DIMS) {
    return report(ACLNN_ERR_PARAM_INVALID, "%s: %s must be at most %d, got %llu", call, name, ANYNPU_MAX_DIMS,
                  static_cast<unsigned long long>(count));
  }
  if (count > 0 && dims == nullptr)
    return report(ACLNN_ERR_PARAM_NULLPTR, "%s: %s is %llu, but the dims are a null pointer", call, name,
                  static_cast<unsigned long long>(count));
  for (uint64_t axis = 0; axis < count; ++axis) {
    if (dims[axis] < 0) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: no axis may be negative, got %lld (%s)", call, wide(dims[axis]),
                    name);
    }
  }
  return ACL_SUCCESS;
}

void fill_contiguous_strides(Tensor& tensor) {
  int64_t stride = 1;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    tensor.strides[axis] = stride;
    if (__builtin_mul_overflow(stride, std::max<int64_t>(tensor.shape[axis], 1), &stride)) stride = 0;
  }
}

struct Description {
  const int64_t* shape;
  uint64_t ndim;
  aclDataType dtype;
  const int64_t* strides;
  int64_t offset;
  aclFormat format;
  const int64_t* storage;
  uint64_t storage_ndim;
  void* data;
};

int32_t fill(const char* call, const Description& from, Tensor& tensor) {
  if (const int32_t status = check_dims(call, "viewDimsNum", from.shape, from.ndim)) return status;
  if (const int32_t status = check_dims(call, "storageDimsNum", from.storage, from.storage_ndim)) return status;
  tensor.ndim = static_cast<int32_t>(from.ndim);
  tensor.storage_ndim = static_cast<int32_t>(from.storage_ndim);
  std::copy_n(from.shape, from.ndim, tensor.shape.begin());
  std::copy_n(from.storage, from.storage_ndim, tensor.storage.begin());
  if (from.strides != nullptr) {
    std::copy_n(from.strides, from.ndim, tensor.strides.begin());
  } else {
    fill_contiguous_strides(tensor);
  }
  tensor.dtype = from.dtype;
  tensor.format = from.format;
  tensor.offset = from.offset;
  tensor.data = from.data;
  return ACL_SUCCESS;
}

// Bits from the first to behind the last element of a strided view; false when the numbers overflow.
bool strided_bits(const anynpu_tensor& view, int64_t* bits) {
  int64_t last = 0;
  for (int axis = 0; axis < view.ndim; ++axis) {
    int64_t reach = 0;
    if (__builtin_mul_overflow(view.shape[axis] - 1, view.strides[axis], &reach)) return false;
    if (__builtin_add_overflow(last, reach, &last)) return false;
  }
  return !__builtin_add_overflow(last, int64_t{1}, &last) &&
         !__builtin_mul_overflow(last, int64_t{dtype_bits(view.dtype)}, bits) && *bits <= INT64_MAX - 7;
}

// An output whose elements share memory would depend on the order of writing. Each axis, from the smallest stride up,
// must step over everything that the axes before it cover.
bool overlaps_itself(const anynpu_tensor& view) {
  std::array<bool, ANYNPU_MAX_DIMS> seen{};
  int64_t reach = 0;
  for (int step = 0; step < view.ndim; ++step) {
    int smallest = -1;
    for (int axis = 0; axis < view.ndim; ++axis) {
      if (!seen[axis] && (smallest < 0 || view.strides[axis] < view.strides[smallest])) smallest = axis;
    }
    seen[smallest] = true;
    if (view.shape[smallest] == 1) continue;
    if (view.strides[smallest] <= reach) return true;
    reach += (view.shape[smallest] - 1) * view.strides[smallest];
  }
  return false;
}

// Whether the last two axes of the view are swapped with respect to memory.
bool is_transposed(const anynpu_tensor& view) {
  if (view.ndim < 2) return false;
  const int row = view.ndim - 2, column = view.ndim - 1;
  return view.strides[row] == 1 && view.strides[column] == view.shape[row] && !is_contiguous(view);
}

// ND, and the formats that say what the axes are for: the elements lie in memory as the strides say.
bool is_plain(aclFormat format) {
  switch (format) {
    case ACL_FORMAT_ND:
    case ACL_FORMAT_NC:
    case ACL_FORMAT_NCL:
    case ACL_FORMAT_NCHW:
    case ACL_FORMAT_NHWC:
    case ACL_FORMAT_HWCN:
    case ACL_FORMAT_NCDHW:
    case ACL_FORMAT_NDHWC: return true;
    default: return false;
  }
}

// FRACTAL_NZ: storageDims must be the blocks of the matrix in memory, or the view's shape when the program leaves it
// there.
int32_t describe_blocks(const char* call, const char* name, const Tensor& tensor, anynpu_tensor* view, int64_t* bits) {
  if (view->ndim < 2)
    return report(ACLNN_ERR_PARAM_INVALID, "%s: %s is FRACTAL_NZ and needs at least 2 axes, got %d", call, name,
                  view->ndim);
  if (tensor.offset != 0)
    return report(ACLNN_ERR_PARAM_INVALID, "%s: %s is FRACTAL_NZ and must have offset 0, got %lld", call, name,
                  wide(tensor.offset));
  const bool blocked = tensor.storage_ndim == view->ndim + 2;
  view->nz_c0 =
      blocked ? static_cast<int32_t>(std::min<int64_t>(tensor.storage[tensor.storage_ndim - 1], INT32_MAX)) : 0;
  const anynpu_tensor expected = blocks_of(*view);
  const bool as_view =
      tensor.storage_ndim == view->ndim && std::equal(view->shape, view->shape + view->ndim, tensor.storage.begin());
  if (!as_view && !(blocked && std::equal(expected.shape, expected.shape + expected.ndim, tensor.storage.begin()))) {
    anynpu_tensor got{};
    got.ndim = tensor.storage_ndim;
    std::copy(tensor.storage.begin(), tensor.storage.end(), got.shape);
    return report(ACLNN_ERR_PARAM_INVALID, "%s: storage shape of %s must be %s for the %s view %s, got %s", call, name,
                  shape_text(expected), is_transposed(*view) ? "transposed" : "contiguous", shape_text(*view),
                  shape_text(got));
  }
  const int64_t count = element_count(expected);
  if (count < 0 || __builtin_mul_overflow(count, int64_t{dtype_bits(view->dtype)}, bits)) {
    return report(ACLNN_ERR_PARAM_INVALID, "%s: %s is too large: %s", call, name, shape_text(*view));
  }
  return ACL_SUCCESS;
}

int32_t hand_out(const char* call, const void* tensor, int64_t** values, uint64_t* count,
                 std::pair<const int64_t*, int> (*pick)(const Tensor&)) {
  return guarded(call, [&]() -> int32_t {
    if (values == nullptr || count == nullptr)
      return report(ACLNN_ERR_PARAM_NULLPTR, "%s: a result pointer is null", call);
    TensorPtr found;
    const int32_t status =
        tensors().get(call, "tensor", tensor, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &found);
    if (status != ACL_SUCCESS) return status;
    const auto picked = pick(*found);
    *values = new int64_t[picked.second];
    std::copy_n(picked.first, picked.second, *values);
    *count = picked.second;
    return ACL_SUCCESS;
  });
}

template <typename T, typename Pick>
int32_t hand_out_one(const char* call, const void* tensor, T* value, const Pick& pick) {
  return guarded(call, [&]() -> int32_t {
    if (value == nullptr) return report(ACLNN_ERR_PARAM_NULLPTR, "%s: the result pointer is null", call);
    TensorPtr found;
    const int32_t status =
        tensors().get(call, "tensor", tensor, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &found);
    if (status == ACL_SUCCESS) *value = pick(*found);
    return status;
  });
}

}  // namespace

HandleTable<Tensor>& tensors() { return handle_table<Tensor, Kind::tensor>("aclTensor"); }

anynpu_tensor blocks_of(const anynpu_tensor& view) {
  anynpu_tensor made = view;
  const int64_t c0 = nz_c0(view);
  const int row = view.ndim - 2, column = view.ndim - 1;
  const bool swapped = is_transposed(view);
  const int64_t rows = view.shape[swapped ? column : row], columns = view.shape[swapped ? row : column];
  made.ndim = view.ndim + 2 <= ANYNPU_MAX_DIMS ? view.ndim + 2 : ANYNPU_MAX_DIMS;
  const int64_t blocks[] = {columns / c0 + (columns % c0 != 0), rows / 16 + (rows % 16 != 0), 16, c0};
  std::copy_n(blocks, 4, made.shape + made.ndim - 4);
  return made;
}

Tensor in_blocks(const Tensor& tensor) {
  Tensor made = tensor;
  anynpu_tensor view = {};
  view.dtype = tensor.dtype;
  view.ndim = tensor.ndim;
  std::copy(tensor.shape.begin(), tensor.shape.end(), view.shape);
  std::copy(tensor.strides.begin(), tensor.strides.end(), view.strides);
  const anynpu_tensor blocks = blocks_of(view);
  made.format = ACL_FORMAT_FRACTAL_NZ;
  made.storage_ndim = blocks.ndim;
  std::copy_n(blocks.shape, blocks.ndim, made.storage.begin());
  return made;
}

int32_t describe(const char* call, const char* name, const Tensor& tensor, bool written, anynpu_tensor* view,
                 Span* span) {
  *view = anynpu_tensor{};
  *span = Span{};
  view->dtype = tensor.dtype;
  view->format = tensor.format == ACL_FORMAT_FRACTAL_NZ ? ANYNPU_FRACTAL_NZ : ANYNPU_ND;
  view->ndim = tensor.ndim;
  std::copy(tensor.shape.begin(), tensor.shape.end(), view->shape);
  std::copy(tensor.strides.begin(), tensor.strides.end(), view->strides);
  if (dtype_bits(view->dtype) == 0) {
    return report(ACLNN_ERR_PARAM_INVALID, "%s: the dtype of %s is not supported, got %d", call, name, tensor.dtype);
  }
  if (!is_plain(tensor.format) && tensor.format != ACL_FORMAT_FRACTAL_NZ) {
    return report(ACLNN_ERR_PARAM_INVALID,
                  "%s: the format of %s must be ND (2), FRACTAL_NZ (29) or one that only names the axes, got %d", call,
                  name, static_cast<int>(tensor.format));
  }
  for (int axis = 0; axis < view->ndim; ++axis) {
    if (view->strides[axis] >= 0) continue;
    return report(ACLNN_ERR_PARAM_INVALID, "%s: strides of %s must not be negative, got %lld", call, name,
                  wide(view->strides[axis]));
  }
  const int64_t count = element_count(*view);
  if (count < 0) return report(ACLNN_ERR_PARAM_INVALID, "%s: %s is too large: %s", call, name, shape_text(*view));
  view->data = tensor.data;
  if (count == 0) return ACL_SUCCESS;
  const int64_t element_bits = dtype_bits(view->dtype);
  int64_t bits = 0, skipped = 0;
  if (view->format == ANYNPU_FRACTAL_NZ) {
    if (const int32_t status = describe_blocks(call, name, tensor, view, &bits)) return status;
  } else if (!strided_bits(*view, &bits)) {
    return report(ACLNN_ERR_PARAM_INVALID, "%s: %s reaches beyond any memory: shape %s", call, name, shape_text(*view));
  }
  if (tensor.offset < 0 || __builtin_mul_overflow(tensor.offset, element_bits, &skipped) || skipped % 8 != 0 ||
      __builtin_add_overflow(skipped / 8, bits / 8 + (bits % 8 != 0), &span->end)) {
    *span = Span{};
    return report(ACLNN_ERR_PARAM_INVALID,
                  "%s: offset of %s must be a whole number of bytes within memory, got %lld elements", call, name,
                  wide(tensor.offset));
  }
  span->begin = skipped / 8;
  if (written && view->format == ANYNPU_ND && overlaps_itself(*view)) {
    return report(ACLNN_ERR_PARAM_INVALID, "%s: elements of the output %s share memory (shape %s)", call, name,
                  shape_text(*view));
  }
  view->data = advanced(view->data, span->begin);
  return ACL_SUCCESS;
}

// A tensor larger than its memory is legal until it is used; in checking mode it is reported where it is made.
void inspect(const char* call, const Tensor& tensor) {
  anynpu_tensor view;
  Span span;
  if (tensor.data == nullptr || describe(call, "tensor", tensor, false, &view, &span) != ACL_SUCCESS || span.empty())
    return;
  const std::string what = std::string("aclTensor ") + dtype_name(tensor.dtype) + " " + shape_text(view);
  inspect_range(call, what, advanced(tensor.data, span.begin), span.end - span.begin);
}

}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclTensor* aclCreateTensor(const int64_t* viewDims, uint64_t viewDimsNum, aclDataType dataType,
                                      const int64_t* stride, int64_t offset, aclFormat format,
                                      const int64_t* storageDims, uint64_t storageDimsNum, void* tensorData) {
  aclTensor* handle = nullptr;
  guarded("aclCreateTensor", [&] {
    auto tensor = std::make_shared<Tensor>();
    const int32_t status = fill(
        "aclCreateTensor",
        {viewDims, viewDimsNum, dataType, stride, offset, format, storageDims, storageDimsNum, tensorData}, *tensor);
    if (status != ACL_SUCCESS) return status;
    if (check::enabled) inspect("aclCreateTensor", *tensor);
    handle = tensors().add<aclTensor*>(std::move(tensor));
    return ACL_SUCCESS;
  });
  return handle;
}

extern "C" aclnnStatus aclInitTensor(aclTensor* tensor, const int64_t* viewDims, uint64_t viewDimsNum,
                                     aclDataType dataType, const int64_t* stride, int64_t offset, aclFormat format,
                                     const int64_t* storageDims, uint64_t storageDimsNum, void* tensorDataAddr) {
  return guarded("aclInitTensor", [&]() -> int32_t {
    TensorPtr found;
    const int32_t status =
        tensors().get("aclInitTensor", "tensor", tensor, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &found);
    if (status != ACL_SUCCESS) return status;
    return fill("aclInitTensor",
                {viewDims, viewDimsNum, dataType, stride, offset, format, storageDims, storageDimsNum, tensorDataAddr},
                *found);
  });
}

extern "C" aclnnStatus aclDestroyTensor(const aclTensor* tensor) {
  return guarded("aclDestroyTensor", [&] {
    return tensors().remove("aclDestroyTensor", "tensor", tensor, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID);
  });
}

extern "C" aclnnStatus aclGetViewShape(const aclTensor* tensor, int64_t** viewDims, uint64_t* viewDimsNum) {
  return hand_out("aclGetViewShape", tensor, viewDims, viewDimsNum,
                  [](const Tensor& found) { return std::pair<const int64_t*, int>(found.shape.data(), found.ndim); });
}

extern "C" aclnnStatus aclGetStorageShape(const aclTensor* tensor, int64_t** storageDims, uint64_t* storageDimsNum) {
  return hand_out("aclGetStorageShape", tensor, storageDims, storageDimsNum, [](const Tensor& found) {
    return std::pair<const int64_t*, int>(found.storage.data(), found.storage_ndim);
  });
}

extern "C" aclnnStatus aclGetViewStrides(const aclTensor* tensor, int64_t** stridesValue, uint64_t* stridesNum) {
  return hand_out("aclGetViewStrides", tensor, stridesValue, stridesNum,
                  [](const Tensor& found) { return std::pair<const int64_t*, int>(found.strides.data(), found.ndim); });
}

extern "C" aclnnStatus aclGetViewOffset(const aclTensor* tensor, int64_t* offset) {
  return hand_out_one("aclGetViewOffset", tensor, offset, [](const Tensor& found) { return found.offset; });
}

extern "C" aclnnStatus aclGetFormat(const aclTensor* tensor, aclFormat* format) {
  return hand_out_one("aclGetFormat", tensor, format, [](const Tensor& found) { return found.format; });
}

extern "C" aclnnStatus aclGetDataType(const aclTensor* tensor, aclDataType* dataType) {
  return hand_out_one("aclGetDataType", tensor, dataType, [](const Tensor& found) { return found.dtype; });
}

extern "C" aclnnStatus aclGetRawTensorAddr(const aclTensor* tensor, void** addr) {
  return hand_out_one("aclGetRawTensorAddr", tensor, addr, [](const Tensor& found) { return found.data; });
}

extern "C" aclnnStatus aclSetRawTensorAddr(aclTensor* tensor, void* addr) {
  return guarded("aclSetRawTensorAddr", [&]() -> int32_t {
    TensorPtr found;
    const int32_t status = tensors().get("aclSetRawTensorAddr", "tensor", tensor, ACLNN_ERR_PARAM_NULLPTR,
                                         ACLNN_ERR_PARAM_INVALID, &found);
    if (status != ACL_SUCCESS) return status;
    found->data = addr;
    if (check::enabled) inspect("aclSetRawTensorAddr", *found);
    return ACL_SUCCESS;
  });
}

extern "C" aclnnStatus aclnnInit(const char*) { return ACLNN_SUCCESS; }
extern "C" aclnnStatus aclnnFinalize(void) { return ACLNN_SUCCESS; }
