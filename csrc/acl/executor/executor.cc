// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "acl/executor/overlap.h"
#include "acl/executor/tensor.h"
#include "acl/runtime/memory.h"
#include "acl/runtime/stream.h"
#include "core/tensor.h"

namespace anynpu::acl {
namespace {

const anynpu_tensor& tensor_at(const void* args, size_t field) {
  return *reinterpret_cast<const anynpu_tensor*>(static_cast<const char*>(args) + field);
}

anynpu_tensor& tensor_at(void* args, size_t field) {
  return *reinterpret_cast<anynpu_tensor*>(static_cast<char*>(args) + field);
}

// A tensor of the arguments that the kernels get as a contiguous copy.
struct Copied {
  size_t field;  // byte offset in the struct
  bool is_output;
};

struct Executor : Object {
  const Operator* op = nullptr;
  size_t workspace_bytes = 0;
  std::vector<Copied> copied;
  std::mutex mutex;  // guards what follows
  std::shared_ptr<const void> args;
  std::vector<Slot> slots;
  bool repeatable = false;
  bool has_run = false;

  const anynpu_tensor& tensor(const Slot& slot) const { return tensor_at(args.get(), slot.field); }
};
using ExecutorPtr = std::shared_ptr<Executor>;

HandleTable<Executor>& executors() { return handle_table<Executor, Kind::executor>("aclOpExecutor"); }

void find_leaks() {
  executors().for_each([](const ExecutorPtr& executor) {
    const char* kind = executor->has_run ? "leaked-executor" : "executor-not-run";
    const char* what = executor->has_run ? "repeatable executor never destroyed" : "executor never run";
    check::add({kind, "", std::string(executor->op->name) + ": " + what, executor->created, nullptr});
  });
}

[[maybe_unused]] const bool registered = (check::on_report(find_leaks), true);

int32_t aclnn_status(int32_t status, bool running) {
  switch (status) {
    case ANYNPU_OK: return ACLNN_SUCCESS;
    case ANYNPU_NO_MEMORY: return ACLNN_ERR_INNER_CREATE_EXECUTOR;
    case ANYNPU_INTERNAL: return ACLNN_ERR_INNER;
    case ANYNPU_BAD_VALUE: return ACLNN_ERR_RUNTIME_ERROR;
    case ANYNPU_NULL_ARG: return running ? ACLNN_ERR_RUNTIME_ERROR : ACLNN_ERR_PARAM_NULLPTR;
    default: return running ? ACLNN_ERR_RUNTIME_ERROR : ACLNN_ERR_PARAM_INVALID;
  }
}

// The chips whose limits strict mode knows, by the start of their names.
const char* series_of(const char* chip) {
  if (std::strncmp(chip, "Ascend910B", 10) == 0) return "Atlas A2";
  if (std::strncmp(chip, "Ascend910_93", 12) == 0) return "Atlas A3";
  return nullptr;
}

// The chip of strict mode, or null when it is off.
const char* strict_chip() {
  static const char* const chip = [] {
    const char* value = std::getenv("ANYNPU_STRICT");
    return value == nullptr || *value == '\0' || std::strcmp(value, "0") == 0 ? nullptr : value;
  }();
  return chip;
}

bool is_copied(const Operator& op, const anynpu_tensor& tensor) {
  return op.views == Views::copied && present(tensor) && tensor.format == ANYNPU_ND && tensor.dtype != ANYNPU_INT4 &&
         !is_contiguous(tensor);
}

std::shared_ptr<void> with_contiguous(const Operator& op, const void* args, const std::vector<Copied>& copied) {
  std::shared_ptr<void> made = op.copy(args);
  for (const Copied& each : copied) make_contiguous(tensor_at(made.get(), each.field));
  return made;
}

int32_t run_on_copies(const Operator& op, const void* args, const std::vector<Copied>& copied, void* workspace,
                      size_t workspace_bytes) {
  const std::shared_ptr<void> own = with_contiguous(op, args, copied);
  std::vector<std::vector<uint64_t>> memory;
  for (const Copied& each : copied) {
    anynpu_tensor& tensor = tensor_at(own.get(), each.field);
    memory.emplace_back(element_count(tensor) * dtype_bits(tensor.dtype) / 64 + 1);
    tensor.data = memory.back().data();
    if (each.is_output) continue;
    if (const int32_t status = copy_view(tensor_at(args, each.field), tensor)) return status;
  }
  if (const int32_t status = op.run(own.get(), workspace, workspace_bytes)) return status;
  for (const Copied& each : copied) {
    if (!each.is_output) continue;
    if (const int32_t status = copy_view(tensor_at(own.get(), each.field), tensor_at(args, each.field))) return status;
  }
  return ANYNPU_OK;
}

// What a launch holds on to until its work is done.
struct Launch {
  const Operator* op;
  std::shared_ptr<const void> args;
  std::vector<Copied> copied;
  std::vector<AllocationPtr> memory;
  void* workspace;
  size_t workspace_bytes;

  Failure operator()() const {
    const int32_t status = copied.empty() ? op->run(args.get(), workspace, workspace_bytes)
                                          : run_on_copies(*op, args.get(), copied, workspace, workspace_bytes);
    if (status == ANYNPU_OK) return {};
    return {aclnn_status(status, true), std::string(op->name) + ": " + anynpu_last_error()};
  }
};

int32_t check_workspace(const Executor& executor, void* workspace, uint64_t size, Launch& launch) {
  const char* call = executor.op->name;
  const size_t needed = executor.workspace_bytes;
  if (needed == 0) return ACLNN_SUCCESS;
  if (size < needed) {
    if (check::enabled) {
      check::add({"workspace-too-small", call,
                  "workspaceSize is " + std::to_string(size) + ", the first stage asked for " + std::to_string(needed),
                  executor.created, nullptr});
    }
    return report(ACLNN_ERR_PARAM_INVALID, "%s: workspaceSize must be at least %zu, got %llu", call, needed,
                  static_cast<unsigned long long>(size));
  }
  if (workspace == nullptr) {
    // The kernels bring their own scratch memory; a device would fault.
    if (check::enabled) {
      check::add({"workspace-too-small", call,
                  "workspace is null, the first stage asked for " + std::to_string(needed) + " bytes", executor.created,
                  nullptr});
    }
    return ACLNN_SUCCESS;
  }
  if (check::enabled) inspect_range(call, "workspace", workspace, needed);
  AllocationPtr memory;
  if (const int32_t status = device_range(call, "workspace", workspace, needed, ACLNN_ERR_PARAM_INVALID, &memory)) {
    return status;
  }
  launch.memory.push_back(std::move(memory));
  launch.workspace = workspace;
  launch.workspace_bytes = needed;
  return ACLNN_SUCCESS;
}

int32_t check_addresses(const Executor& executor, Launch& launch) {
  const char* call = executor.op->name;
  for (const Slot& slot : executor.slots) {
    if (slot.begin == slot.end) continue;
    const anynpu_tensor& tensor = executor.tensor(slot);
    const void* data = tensor.data;
    if (data == nullptr) return report(ACLNN_ERR_PARAM_NULLPTR, "%s: the address of %s is null", call, slot.name);
    const size_t alignment = std::max<size_t>(1, aclDataTypeSize(static_cast<aclDataType>(tensor.dtype)));
    if (reinterpret_cast<uintptr_t>(data) % alignment != 0) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: the address of %s must be a multiple of %zu, got %p", call, slot.name,
                    alignment, data);
    }
    if (check::enabled) inspect_freed(call, slot.name, data);
    AllocationPtr memory;
    if (const int32_t status = device_range(call, slot.name, data, static_cast<size_t>(slot.end - slot.begin),
                                            ACLNN_ERR_RUNTIME_ERROR, &memory)) {
      return status;
    }
    launch.memory.push_back(std::move(memory));
  }
  return ACLNN_SUCCESS;
}

// Kernels read while they write: an output must not share memory with another argument.
int32_t check_overlap(const Executor& executor) {
  for (const Slot& output : executor.slots) {
    if (!output.is_output || output.begin == output.end) continue;
    const auto begin = reinterpret_cast<uintptr_t>(executor.tensor(output).data);
    for (const Slot& other : executor.slots) {
      if (&other == &output || other.begin == other.end) continue;
      const auto other_begin = reinterpret_cast<uintptr_t>(executor.tensor(other).data);
      if (begin >= other_begin + (other.end - other.begin) || other_begin >= begin + (output.end - output.begin))
        continue;
      if (executor.op->views == Views::in_place && same_view(executor.tensor(output), executor.tensor(other))) continue;
      if (interleaved(executor.tensor(output), executor.tensor(other))) continue;
      return report(ACLNN_ERR_PARAM_INVALID, "%s: %s shares memory with %s", executor.op->name, output.name,
                    other.name);
    }
  }
  return ACLNN_SUCCESS;
}

int32_t get_executor(const char* call, const aclOpExecutor* handle, ExecutorPtr* executor) {
  return executors().get(call, "executor", handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, executor);
}

int32_t launch_checked(const Operator& op, void* workspace, uint64_t workspace_size, aclOpExecutor* handle,
                       aclrtStream stream_handle) {
  ExecutorPtr executor;
  StreamPtr stream;
  if (const int32_t status = get_executor(op.name, handle, &executor)) return status;
  if (executor->op != &op) {
    if (check::enabled) {
      check::add({"wrong-executor", op.name, std::string("the executor was made for ") + executor->op->name,
                  executor->created, nullptr});
    }
    return report(ACLNN_ERR_PARAM_INVALID, "%s: the executor was made for %s", op.name, executor->op->name);
  }
  if (get_stream(op.name, stream_handle, &stream) != ACL_SUCCESS) return ACLNN_ERR_PARAM_INVALID;

  std::lock_guard<std::mutex> lock(executor->mutex);
  Launch work{&op, executor->args, executor->copied, {}, nullptr, 0};
  work.memory.reserve(executor->slots.size() + 1);
  if (const int32_t status = check_workspace(*executor, workspace, workspace_size, work)) return status;
  if (const int32_t status = check_addresses(*executor, work)) return status;
  if (const int32_t status = check_overlap(*executor)) return status;
  if (!executor->repeatable && !executors().take(handle)) {
    return report(ACLNN_ERR_PARAM_INVALID, "%s: the executor was used by another thread meanwhile", op.name);
  }
  executor->has_run = true;
  const uint64_t sequence = stream->submit(std::move(work));
  if (check::enabled) {
    for (const Slot& slot : executor->slots) {
      if (!slot.is_output || slot.begin == slot.end) continue;
      check::wrote(stream->id(), sequence, executor->tensor(slot).data, slot.end - slot.begin, op.name);
    }
  }
  return ACLNN_SUCCESS;
}

enum class Among { all, inputs, outputs };

int32_t set_address(const char* call, aclOpExecutor* handle, size_t index, aclTensor* tensor, void* address,
                    Among among) {
  ExecutorPtr executor;
  if (const int32_t status = get_executor(call, handle, &executor)) return status;
  std::lock_guard<std::mutex> lock(executor->mutex);
  size_t at = 0;
  for (const Slot& slot : executor->slots) {
    if (among != Among::all && slot.is_output != (among == Among::outputs)) continue;
    if (at++ != index) continue;
    if (tensor == nullptr || slot.handle != tensor) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: tensor %zu of the executor is %s, not the one given", call, index,
                    slot.name);
    }
    if (check::enabled && slot.begin != slot.end) {
      inspect_range(call, slot.name, advanced(address, slot.begin), slot.end - slot.begin);
    }
    // Work already on a stream keeps the arguments it was launched with.
    const std::shared_ptr<void> args = executor->op->copy(executor->args.get());
    tensor_at(args.get(), slot.field).data = advanced(address, slot.begin);
    executor->args = args;
    return ACLNN_SUCCESS;
  }
  return report(ACLNN_ERR_PARAM_INVALID, "%s: index must be below %zu, got %zu", call, at, index);
}

std::string formatted(const char* format, va_list arguments) {
  char text[512];
  std::vsnprintf(text, sizeof(text), format, arguments);
  return text;
}

}  // namespace

void put_in_blocks(const aclTensor* handle) {
  if (const TensorPtr tensor = tensors().find(handle)) *tensor = in_blocks(*tensor);
}

int32_t view_of(const char* call, const char* name, const aclTensor* handle, anynpu_tensor* view) {
  TensorPtr tensor;
  const int32_t status = tensors().get(call, name, handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &tensor);
  Span span;
  return status == ACLNN_SUCCESS ? describe(call, name, *tensor, false, view, &span) : status;
}

int32_t values_of(const char* call, const char* name, const aclIntArray* handle, std::vector<int64_t>* values) {
  std::shared_ptr<IntArray> array;
  const int32_t status = int_arrays().get(call, name, handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &array);
  if (status == ACLNN_SUCCESS) *values = array->values;
  return status;
}

int32_t copy_view(const anynpu_tensor& from, const anynpu_tensor& to) {
  const anynpu_cast_args args{from, to};
  return anynpu_cast(&args, nullptr, 0);
}

Stage::Stage(const Operator& op, std::shared_ptr<void> args)
    : op_(op), call_(std::string(op.name) + "GetWorkspaceSize"), args_(std::move(args)) {
  slots_.reserve(8);
  const char* chip = strict_chip();
  if (chip != nullptr && series_of(chip) == nullptr) {
    status_ = report(ACLNN_ERR_PARAM_INVALID, "%s: ANYNPU_STRICT must name an Ascend910B or Ascend910_93, got %s",
                     call_.c_str(), chip);
  }
}

void Stage::take(const char* name, const aclTensor* handle, size_t field, bool is_output, bool is_optional) {
  if (!ok()) return;
  if (handle == nullptr && is_optional) {
    slots_.push_back({name, nullptr, field, is_output, 0, 0});
    return;
  }
  TensorPtr tensor;
  status_ = tensors().get(call_.c_str(), name, handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &tensor);
  if (!ok()) return;
  Span span;
  status_ = describe(call_.c_str(), name, *tensor, is_output, &tensor_at(args_.get(), field), &span);
  slots_.push_back({name, handle, field, is_output, span.begin, span.end});
}

void Stage::take_in_blocks(const char* name, const aclTensor* handle, size_t field) {
  if (!ok()) return;
  TensorPtr tensor;
  status_ = tensors().get(call_.c_str(), name, handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &tensor);
  if (!ok()) return;
  require(tensor->format != ACL_FORMAT_FRACTAL_NZ && tensor->ndim >= 2 && tensor->ndim <= ANYNPU_MAX_DIMS - 2,
          "%s must be ND with 2 to %d axes, got format %d and %d axes", name, ANYNPU_MAX_DIMS - 2, tensor->format,
          tensor->ndim);
  if (!ok()) return;
  anynpu_tensor& view = tensor_at(args_.get(), field);
  Span span;
  status_ = describe(call_.c_str(), name, *tensor, true, &view, &span);
  if (ok()) status_ = describe(call_.c_str(), name, in_blocks(*tensor), true, &view, &span);
  slots_.push_back({name, handle, field, true, span.begin, span.end});
}

void Stage::ints(const char* name, const aclIntArray* handle, int64_t* values, size_t count) {
  if (!ok()) return;
  std::vector<int64_t> found;
  status_ = values_of(call_.c_str(), name, handle, &found);
  require(found.size() == count, "%s must hold %zu values, got %zu", name, count, found.size());
  if (ok()) std::copy(found.begin(), found.end(), values);
}

std::vector<int64_t> Stage::ints(const char* name, const aclIntArray* handle) {
  std::vector<int64_t> found;
  if (ok() && handle != nullptr) status_ = values_of(call_.c_str(), name, handle, &found);
  return found;
}

double Stage::number(const char* name, const aclScalar* handle) {
  std::shared_ptr<Scalar> scalar;
  double value = 0;
  if (!ok()) return value;
  status_ = scalars().get(call_.c_str(), name, handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &scalar);
  if (!ok()) return value;
  const anynpu_tensor from{scalar->bytes.data(), scalar->dtype, ANYNPU_ND, 0, 0, {}, {}};
  require(copy_view(from, {&value, ANYNPU_FLOAT64, ANYNPU_ND, 0, 0, {}, {}}) == ANYNPU_OK,
          "%s must be a real number, got %s", name, dtype_name(scalar->dtype));
  return value;
}

void Stage::leave(const char* name, const aclTensor* handle, bool must_be_empty) {
  if (!ok()) return;
  slots_.push_back({name, nullptr, 0, false, 0, 0});  // it has an index, but no address to set
  if (handle == nullptr) return;
  TensorPtr tensor;
  status_ = tensors().get(call_.c_str(), name, handle, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &tensor);
  if (!ok() || !must_be_empty) return;
  const auto end = tensor->shape.begin() + tensor->ndim;
  if (not_empty_ == nullptr && std::find(tensor->shape.begin(), end, 0) == end) not_empty_ = name;
}

const aclTensor* Stage::only(const char* name, const aclTensorList* list) {
  std::shared_ptr<Handles> found;
  if (!ok() || list == nullptr) return nullptr;
  status_ = tensor_lists().get(call_.c_str(), name, list, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &found);
  if (!ok() || found->values.empty()) return nullptr;
  require(found->values.size() == 1, "%s must hold one tensor, longer lists are not implemented, got %zu", name,
          found->values.size());
  return static_cast<const aclTensor*>(found->values[0]);
}

std::vector<const void*> Stage::all(const char* name, const aclTensorList* list, size_t most) {
  std::shared_ptr<Handles> found;
  if (!ok()) return {};
  status_ = tensor_lists().get(call_.c_str(), name, list, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &found);
  if (!ok()) return {};
  require(!found->values.empty() && found->values.size() <= most, "%s must hold 1 to %zu tensors, got %zu", name, most,
          found->values.size());
  return ok() ? found->values : std::vector<const void*>{};
}

bool Stage::is_empty(const char* name, const aclTensorList* list) {
  std::shared_ptr<Handles> found;
  if (!ok() || list == nullptr) return true;
  status_ = tensor_lists().get(call_.c_str(), name, list, ACLNN_ERR_PARAM_NULLPTR, ACLNN_ERR_PARAM_INVALID, &found);
  return !ok() || found->values.empty();
}

int64_t Stage::axis(const char* name, int64_t value, const anynpu_tensor& tensor) {
  const int64_t axes = tensor.ndim, made = value < 0 ? value + axes : value;
  require(made >= 0 && made < axes, "%s must name one of %lld axes, got %lld", name, wide(axes), wide(value));
  return ok() ? made : 0;
}

void Stage::require(bool holds, const char* format, ...) {
  if (!ok() || holds) return;
  va_list arguments;
  va_start(arguments, format);
  status_ = report(ACLNN_ERR_PARAM_INVALID, "%s: %s", call_.c_str(), formatted(format, arguments).c_str());
  va_end(arguments);
}

void Stage::limit(bool holds, const char* format, ...) {
  const char* chip = strict_chip();
  if (chip == nullptr || !ok() || holds) return;
  va_list arguments;
  va_start(arguments, format);
  const std::string sentence = std::string(chip) + " (" + series_of(chip) + ") " + formatted(format, arguments);
  va_end(arguments);
  if (check::enabled) check::add({"hardware-limit", call_, sentence, nullptr, nullptr});
  status_ = report(ACLNN_ERR_PARAM_INVALID, "%s: %s", call_.c_str(), sentence.c_str());
}

void Stage::limit_to(const char* series) {
  const char* chip = strict_chip();
  const bool has_it = chip == nullptr || !ok() || std::strcmp(series_of(chip), series) == 0;
  limit(has_it, "lacks this operator, which the document gives to %s alone", series);
}

aclnnStatus Stage::finish(uint64_t* workspace_size, aclOpExecutor** executor) {
  if (ok() && (workspace_size == nullptr || executor == nullptr)) {
    status_ = report(ACLNN_ERR_PARAM_NULLPTR, "%s: %s is a null pointer", call_.c_str(),
                     workspace_size == nullptr ? "workspaceSize" : "executor");
  }
  require(not_empty_ == nullptr, "%s must be null or an empty tensor", not_empty_);
  if (workspace_size != nullptr) *workspace_size = 0;
  if (executor != nullptr) *executor = nullptr;
  if (!ok()) return status_;
  auto made = std::make_shared<Executor>();
  for (const Slot& slot : slots_) {
    if (slot.begin != slot.end && is_copied(op_, tensor_at(args_.get(), slot.field)))
      made->copied.push_back({slot.field, slot.is_output});
  }
  const auto checked = made->copied.empty() ? args_ : with_contiguous(op_, args_.get(), made->copied);
  const int32_t status = op_.check(checked.get(), &made->workspace_bytes);
  if (status != ANYNPU_OK) return report(aclnn_status(status, false), "%s: %s", call_.c_str(), anynpu_last_error());
  made->op = &op_;
  made->args = std::move(args_);
  made->slots = std::move(slots_);
  *workspace_size = made->workspace_bytes;
  *executor = executors().add<aclOpExecutor*>(std::move(made));
  return ACLNN_SUCCESS;
}

aclnnStatus launch(const Operator& op, void* workspace, uint64_t workspace_size, aclOpExecutor* executor,
                   aclrtStream stream) {
  return guarded(
      op.name, [&] { return launch_checked(op, workspace, workspace_size, executor, stream); },
      ACLNN_ERR_INNER_CREATE_EXECUTOR, ACLNN_ERR_INNER);
}

}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclnnStatus aclSetAclOpExecutorRepeatable(aclOpExecutor* executor) {
  return guarded("aclSetAclOpExecutorRepeatable", [&]() -> int32_t {
    ExecutorPtr found;
    if (const int32_t status = get_executor("aclSetAclOpExecutorRepeatable", executor, &found)) return status;
    std::lock_guard<std::mutex> lock(found->mutex);
    found->repeatable = true;
    return ACLNN_SUCCESS;
  });
}

extern "C" aclnnStatus aclDestroyAclOpExecutor(aclOpExecutor* executor) {
  return guarded("aclDestroyAclOpExecutor", [&] {
    return executors().remove("aclDestroyAclOpExecutor", "executor", executor, ACLNN_ERR_PARAM_NULLPTR,
                              ACLNN_ERR_PARAM_INVALID);
  });
}

extern "C" aclnnStatus aclSetTensorAddr(aclOpExecutor* executor, const size_t index, aclTensor* tensor, void* addr) {
  return guarded("aclSetTensorAddr",
                 [&] { return set_address("aclSetTensorAddr", executor, index, tensor, addr, Among::all); });
}

extern "C" aclnnStatus aclSetInputTensorAddr(aclOpExecutor* executor, const size_t index, aclTensor* tensor,
                                             void* addr) {
  return guarded("aclSetInputTensorAddr",
                 [&] { return set_address("aclSetInputTensorAddr", executor, index, tensor, addr, Among::inputs); });
}

extern "C" aclnnStatus aclSetOutputTensorAddr(aclOpExecutor* executor, const size_t index, aclTensor* tensor,
                                              void* addr) {
  return guarded("aclSetOutputTensorAddr",
                 [&] { return set_address("aclSetOutputTensorAddr", executor, index, tensor, addr, Among::outputs); });
}
