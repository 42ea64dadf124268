// SPDX-License-Identifier: Apache-2.0
// Scalars, arrays of plain values, and lists of handles.
#include <algorithm>

#include "acl/executor/tensor.h"

namespace anynpu::acl {
namespace {

HandleTable<Array<float>>& float_arrays() { return handle_table<Array<float>, Kind::float_array>("aclFloatArray"); }

HandleTable<Array<bool>>& bool_arrays() { return handle_table<Array<bool>, Kind::bool_array>("aclBoolArray"); }

HandleTable<Handles>& scalar_lists() { return handle_table<Handles, Kind::scalar_list>("aclScalarList"); }

template <typename Table>
void find_leaks_in(const Table& table, const char* name) {
  table.for_each([name](const auto& object) {
    check::add({"leaked-array", "", std::string(name) + " never destroyed", object->created, nullptr});
  });
}

void find_leaks() {
  find_leaks_in(scalars(), "aclScalar");
  find_leaks_in(int_arrays(), "aclIntArray");
  find_leaks_in(float_arrays(), "aclFloatArray");
  find_leaks_in(bool_arrays(), "aclBoolArray");
  find_leaks_in(tensor_lists(), "aclTensorList");
  find_leaks_in(scalar_lists(), "aclScalarList");
}

[[maybe_unused]] const bool registered = (check::on_report(find_leaks), true);

// No program has arrays of this many values; a larger number is a mistake that must not take the machine's memory.
constexpr uint64_t kMaxValues = uint64_t{1} << 28;

int32_t check_values(const char* call, const void* values, uint64_t size) {
  if (values == nullptr && size > 0) return report(ACLNN_ERR_PARAM_NULLPTR, "%s: value is a null pointer", call);
  if (size > kMaxValues) {
    return report(ACLNN_ERR_PARAM_INVALID, "%s: size must be at most %llu, got %llu", call,
                  static_cast<unsigned long long>(kMaxValues), static_cast<unsigned long long>(size));
  }
  return ACL_SUCCESS;
}

template <typename Handle, typename Stored, typename T>
Handle create_array(const char* call, HandleTable<Stored>& table, const T* values, uint64_t size) {
  Handle handle = nullptr;
  guarded(call, [&] {
    if (const int32_t status = check_values(call, values, size)) return status;
    auto array = std::make_shared<Stored>();
    array->values.assign(values, values + size);
    handle = table.template add<Handle>(std::move(array));
    return ACL_SUCCESS;
  });
  return handle;
}

// A member may be in one list and must be live.
template <typename Handle, typename T>
Handle create_list(const char* call, HandleTable<Handles>& table, const HandleTable<T>& members,
                   const void* const* values, uint64_t size) {
  Handle handle = nullptr;
  guarded(call, [&] {
    if (const int32_t status = check_values(call, values, size)) return status;
    std::shared_ptr<T> member;
    for (uint64_t i = 0; i < size; ++i) {
      const int32_t status =
          members.get(call, "a member", values[i], ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &member);
      if (status != ACL_SUCCESS) return status;
    }
    auto list = std::make_shared<Handles>();
    list->values.assign(values, values + size);
    handle = table.template add<Handle>(std::move(list));
    return ACL_SUCCESS;
  });
  return handle;
}

template <typename Stored>
int32_t size_of(const char* call, const HandleTable<Stored>& table, const void* handle, uint64_t* size) {
  return guarded(call, [&]() -> int32_t {
    if (size == nullptr) return report(ACLNN_ERR_PARAM_NULLPTR, "%s: size is a null pointer", call);
    std::shared_ptr<Stored> found;
    const int32_t status = table.get(call, "array", handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &found);
    if (status == ACL_SUCCESS) *size = found->values.size();
    return status;
  });
}

template <typename Stored>
int32_t destroy(const char* call, HandleTable<Stored>& table, const void* handle) {
  return guarded(
      call, [&] { return table.remove(call, "the handle", handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID); });
}

template <typename T>
int32_t destroy_list(const char* call, HandleTable<Handles>& table, HandleTable<T>& members, const void* handle) {
  return guarded(call, [&]() -> int32_t {
    std::shared_ptr<Handles> list;
    const int32_t status =
        table.remove(call, "the list", handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &list);
    if (status != ACL_SUCCESS) return status;
    for (const void* member : list->values) members.take(member);
    return ACL_SUCCESS;
  });
}

}  // namespace

HandleTable<Scalar>& scalars() { return handle_table<Scalar, Kind::scalar>("aclScalar"); }

HandleTable<IntArray>& int_arrays() { return handle_table<IntArray, Kind::int_array>("aclIntArray"); }

HandleTable<Handles>& tensor_lists() { return handle_table<Handles, Kind::tensor_list>("aclTensorList"); }

}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclScalar* aclCreateScalar(void* value, aclDataType dataType) {
  aclScalar* handle = nullptr;
  guarded("aclCreateScalar", [&]() -> int32_t {
    const size_t bytes = aclDataTypeSize(dataType);
    if (value == nullptr) return report(ACLNN_ERR_PARAM_NULLPTR, "aclCreateScalar: value is a null pointer");
    if (bytes == 0) {
      return report(ACLNN_ERR_PARAM_INVALID, "aclCreateScalar: a value of type %d has no size",
                    static_cast<int>(dataType));
    }
    auto scalar = std::make_shared<Scalar>();
    scalar->dtype = dataType;
    std::copy_n(static_cast<const unsigned char*>(value), bytes, scalar->bytes.begin());
    handle = scalars().add<aclScalar*>(std::move(scalar));
    return ACL_SUCCESS;
  });
  return handle;
}

extern "C" aclnnStatus aclDestroyScalar(const aclScalar* scalar) {
  return destroy("aclDestroyScalar", scalars(), scalar);
}

extern "C" aclIntArray* aclCreateIntArray(const int64_t* value, uint64_t size) {
  return create_array<aclIntArray*>("aclCreateIntArray", int_arrays(), value, size);
}

extern "C" aclnnStatus aclGetIntArraySize(const aclIntArray* array, uint64_t* size) {
  return size_of("aclGetIntArraySize", int_arrays(), array, size);
}

extern "C" aclnnStatus aclDestroyIntArray(const aclIntArray* array) {
  return destroy("aclDestroyIntArray", int_arrays(), array);
}

extern "C" aclFloatArray* aclCreateFloatArray(const float* value, uint64_t size) {
  return create_array<aclFloatArray*>("aclCreateFloatArray", float_arrays(), value, size);
}

extern "C" aclnnStatus aclGetFloatArraySize(const aclFloatArray* array, uint64_t* size) {
  return size_of("aclGetFloatArraySize", float_arrays(), array, size);
}

extern "C" aclnnStatus aclDestroyFloatArray(const aclFloatArray* array) {
  return destroy("aclDestroyFloatArray", float_arrays(), array);
}

extern "C" aclBoolArray* aclCreateBoolArray(const bool* value, uint64_t size) {
  return create_array<aclBoolArray*>("aclCreateBoolArray", bool_arrays(), value, size);
}

extern "C" aclnnStatus aclGetBoolArraySize(const aclBoolArray* array, uint64_t* size) {
  return size_of("aclGetBoolArraySize", bool_arrays(), array, size);
}

extern "C" aclnnStatus aclDestroyBoolArray(const aclBoolArray* array) {
  return destroy("aclDestroyBoolArray", bool_arrays(), array);
}

extern "C" aclTensorList* aclCreateTensorList(const aclTensor* const* value, uint64_t size) {
  return create_list<aclTensorList*>("aclCreateTensorList", tensor_lists(), tensors(),
                                     reinterpret_cast<const void* const*>(value), size);
}

extern "C" aclnnStatus aclGetTensorListSize(const aclTensorList* tensorList, uint64_t* size) {
  return size_of("aclGetTensorListSize", tensor_lists(), tensorList, size);
}

extern "C" aclnnStatus aclDestroyTensorList(const aclTensorList* array) {
  return destroy_list("aclDestroyTensorList", tensor_lists(), tensors(), array);
}

extern "C" aclScalarList* aclCreateScalarList(const aclScalar* const* value, uint64_t size) {
  return create_list<aclScalarList*>("aclCreateScalarList", scalar_lists(), scalars(),
                                     reinterpret_cast<const void* const*>(value), size);
}

extern "C" aclnnStatus aclGetScalarListSize(const aclScalarList* scalarList, uint64_t* size) {
  return size_of("aclGetScalarListSize", scalar_lists(), scalarList, size);
}

extern "C" aclnnStatus aclDestroyScalarList(const aclScalarList* array) {
  return destroy_list("aclDestroyScalarList", scalar_lists(), scalars(), array);
}
