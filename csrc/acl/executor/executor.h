// SPDX-License-Identifier: Apache-2.0
// The two stages of every operator. An aclnn.cc only names its arguments; everything that all operators share is here.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "acl/acl_base.h"
#include "acl/runtime/errors.h"
#include "aclnn/acl_meta.h"
#include "anynpu.h"

namespace anynpu::acl {

enum class Views {
  kernels,   // the kernels read and write views, or refuse them
  in_place,  // likewise, and an output may be exactly an input
  copied     // the kernels want contiguous tensors: copies of views are made for them, and outputs are copied back
};

// One aclnn function over the flat C ABI, with the types of the argument struct rubbed off.
struct Operator {
  const char* name;
  Views views;
  int32_t (*check)(const void* args, size_t* workspace_bytes);
  int32_t (*run)(const void* args, void* workspace, size_t workspace_bytes);
  std::shared_ptr<void> (*copy)(const void* args);
};

template <typename Args, int32_t (*Check)(const Args*, size_t*), int32_t (*Run)(const Args*, void*, size_t)>
constexpr Operator make_operator(const char* name, Views views = Views::kernels) {
  return {name, views, [](const void* args, size_t* bytes) { return Check(static_cast<const Args*>(args), bytes); },
          [](const void* args, void* workspace, size_t bytes) {
            return Run(static_cast<const Args*>(args), workspace, bytes);
          },
          [](const void* args) -> std::shared_ptr<void> {
            return std::make_shared<Args>(*static_cast<const Args*>(args));
          }};
}

// A tensor argument: where its description lies in the argument struct, and the memory it covers.
struct Slot {
  const char* name;
  const aclTensor* handle;
  size_t field;  // byte offset in the struct
  bool is_output;
  int64_t begin, end;  // bytes from the tensor's address; equal: nothing is touched
};

// The first stage: collects arguments, stops at the first that is wrong, and makes the executor.
class ACL_FUNC_VISIBILITY Stage {
 public:
  Stage(const Operator& op, std::shared_ptr<void> args);

  // The values of a required array of exactly `count` numbers.
  void ints(const char* name, const aclIntArray* handle, int64_t* values, size_t count);
  // The values of an array of any size; none when it is null.
  std::vector<int64_t> ints(const char* name, const aclIntArray* handle);
  // The value of a required scalar of any real dtype.
  double number(const char* name, const aclScalar* handle);
  // An argument that this call does not use: null or any tensor.
  void unused(const char* name, const aclTensor* handle) { leave(name, handle, false); }
  // An argument that the document reserves: null or a tensor without elements.
  void reserved(const char* name, const aclTensor* handle) { leave(name, handle, true); }
  // The axis of `tensor` that `value` names, from the end where it is negative.
  int64_t axis(const char* name, int64_t value, const anynpu_tensor& tensor);
  // The tensor of a list of one; null when the list is null or empty.
  const aclTensor* only(const char* name, const aclTensorList* list);
  // Whether a list is null or empty.
  bool is_empty(const char* name, const aclTensorList* list);
  // A rule of the document that the kernels' own check does not know: 161002 unless it holds.
  void require(bool holds, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // A limit that only the chips have, enforced in strict mode; the sentence goes on after the name of the chip.
  void limit(bool holds, const char* format, ...) __attribute__((format(printf, 3, 4)));
  // As a limit: the document gives the operator to one series of chips alone.
  void limit_to(const char* series);
  bool ok() const { return status_ == ACLNN_SUCCESS; }
  aclnnStatus finish(uint64_t* workspace_size, aclOpExecutor** executor);

 protected:
  void take(const char* name, const aclTensor* handle, size_t field, bool is_output, bool is_optional);
  void take_in_blocks(const char* name, const aclTensor* handle, size_t field);
  // The tensors of a required list of at most `most`.
  std::vector<const void*> all(const char* name, const aclTensorList* list, size_t most);

 private:
  void leave(const char* name, const aclTensor* handle, bool must_be_empty);

  const Operator& op_;
  const std::string call_;
  std::shared_ptr<void> args_;
  std::vector<Slot> slots_;
  const char* not_empty_ = nullptr;  // the first reserved tensor that has elements: null pointers are told of before it
  int32_t status_ = ACLNN_SUCCESS;
};

template <typename Args>
class FirstStage : public Stage {
 public:
  explicit FirstStage(const Operator& op) : FirstStage(op, std::make_shared<Args>()) {}

  void input(const char* name, const aclTensor* handle, anynpu_tensor Args::* field) {
    take(name, handle, offset_of(field), false, false);
  }
  // The tensors of a list; returns how many there are.
  template <size_t kMost>
  size_t inputs(const char* name, const aclTensorList* list, anynpu_tensor (Args::*field)[kMost]) {
    return members(name, all(name, list, kMost), field, false);
  }
  // Those of a list that may be null or empty.
  template <size_t kMost>
  size_t optional_inputs(const char* name, const aclTensorList* list, anynpu_tensor (Args::*field)[kMost]) {
    return is_empty(name, list) ? 0 : inputs(name, list, field);
  }
  template <size_t kMost>
  size_t outputs(const char* name, const aclTensorList* list, anynpu_tensor (Args::*field)[kMost]) {
    return members(name, all(name, list, kMost), field, true);
  }
  void optional(const char* name, const aclTensor* handle, anynpu_tensor Args::* field) {
    take(name, handle, offset_of(field), false, true);
  }
  void output(const char* name, const aclTensor* handle, anynpu_tensor Args::* field) {
    take(name, handle, offset_of(field), true, false);
  }
  // A tensor in ND whose memory becomes FRACTAL_NZ, as it will be. See put_in_blocks.
  void output_in_blocks(const char* name, const aclTensor* handle, anynpu_tensor Args::* field) {
    take_in_blocks(name, handle, offset_of(field));
  }

  Args& args;

 private:
  FirstStage(const Operator& op, std::shared_ptr<Args> made) : Stage(op, made), args(*made) {}

  template <size_t kMost>
  size_t members(const char* name, const std::vector<const void*>& handles, anynpu_tensor (Args::*field)[kMost],
                 bool is_output) {
    for (size_t i = 0; i < handles.size(); ++i) {
      const auto* place = reinterpret_cast<const char*>(&(args.*field)[i]);
      const size_t offset = place - reinterpret_cast<const char*>(&args);
      take(name, static_cast<const aclTensor*>(handles[i]), offset, is_output, false);
    }
    return handles.size();
  }

  size_t offset_of(anynpu_tensor Args::* field) const {
    return reinterpret_cast<const char*>(&(args.*field)) - reinterpret_cast<const char*>(&args);
  }
};

// The shape of the FRACTAL_NZ storage of a view, which may have its last two axes swapped.
ACL_FUNC_VISIBILITY anynpu_tensor blocks_of(const anynpu_tensor& view);
// From now on the tensor is FRACTAL_NZ.
ACL_FUNC_VISIBILITY void put_in_blocks(const aclTensor* handle);

// For functions without stages: what handles stand for, with a status and a sentence.
ACL_FUNC_VISIBILITY int32_t view_of(const char* call, const char* name, const aclTensor* handle, anynpu_tensor* view);
ACL_FUNC_VISIBILITY int32_t values_of(const char* call, const char* name, const aclIntArray* handle,
                                      std::vector<int64_t>* values);

// A cast; to the same dtype it is a copy between views.
ACL_FUNC_VISIBILITY int32_t copy_view(const anynpu_tensor& from, const anynpu_tensor& to);

// The body of a GetWorkspaceSize function; `fill` names the arguments.
template <typename Args, typename Fill>
aclnnStatus first_stage(const Operator& op, uint64_t* workspace_size, aclOpExecutor** executor, const Fill& fill) {
  const auto body = [&] {
    FirstStage<Args> stage(op);
    fill(stage);
    return stage.finish(workspace_size, executor);
  };
  return guarded(op.name, body, ACLNN_ERR_INNER_CREATE_EXECUTOR, ACLNN_ERR_INNER);
}

// The second stage: checks the executor, the workspace and every address, and puts the work on the stream.
ACL_FUNC_VISIBILITY aclnnStatus launch(const Operator& op, void* workspace, uint64_t workspace_size,
                                       aclOpExecutor* executor, aclrtStream stream);

}  // namespace anynpu::acl

// The second stage of `function`, which is the same for all of them.
#define ANYNPU_SECOND_STAGE(function, op)                                                           \
  extern "C" aclnnStatus function(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor, \
                                  aclrtStream stream) {                                             \
    return anynpu::acl::launch(op, workspace, workspaceSize, executor, stream);                     \
  }
