// SPDX-License-Identifier: Apache-2.0
// Sums, differences, products and quotients of two tensors, or of a tensor and a scalar, into a third one or in place.
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_add.h"
#include "aclnnop/aclnn_div.h"
#include "aclnnop/aclnn_mul.h"
#include "aclnnop/aclnn_silu.h"
#include "aclnnop/aclnn_sub.h"

namespace {

struct Args : anynpu_float_elementwise_args {
  bool of_scalar;
  float scalar;  // in place of x2
};
using Stage = anynpu::acl::FirstStage<Args>;

anynpu_float_elementwise_args flat(const Args& args) {
  anynpu_float_elementwise_args made = args;
  if (args.of_scalar) made.x2 = {const_cast<float*>(&args.scalar), ANYNPU_FLOAT32, ANYNPU_ND, 0, 0, {}, {}};
  return made;
}

int32_t check(const Args* args, size_t* workspace_bytes) {
  const anynpu_float_elementwise_args made = flat(*args);
  return anynpu_float_elementwise_check(&made, workspace_bytes);
}

int32_t run(const Args* args, void* workspace, size_t workspace_bytes) {
  const anynpu_float_elementwise_args made = flat(*args);
  return anynpu_float_elementwise(&made, workspace, workspace_bytes);
}

constexpr anynpu::acl::Operator elementwise(const char* name) {
  return anynpu::acl::make_operator<Args, check, run>(name, anynpu::acl::Views::in_place);
}

struct Function {
  anynpu::acl::Operator op;
  int32_t operation;
  int sign;  // of alpha; 0: it has none
  bool of_scalar, in_place;
};

constexpr Function kAdd{elementwise("aclnnAdd"), ANYNPU_FLOAT_ADD, 1, false, false};
constexpr Function kInplaceAdd{elementwise("aclnnInplaceAdd"), ANYNPU_FLOAT_ADD, 1, false, true};
constexpr Function kAdds{elementwise("aclnnAdds"), ANYNPU_FLOAT_ADD, 1, true, false};
constexpr Function kInplaceAdds{elementwise("aclnnInplaceAdds"), ANYNPU_FLOAT_ADD, 1, true, true};
constexpr Function kSub{elementwise("aclnnSub"), ANYNPU_FLOAT_ADD, -1, false, false};
constexpr Function kInplaceSub{elementwise("aclnnInplaceSub"), ANYNPU_FLOAT_ADD, -1, false, true};
constexpr Function kSubs{elementwise("aclnnSubs"), ANYNPU_FLOAT_ADD, -1, true, false};
constexpr Function kInplaceSubs{elementwise("aclnnInplaceSubs"), ANYNPU_FLOAT_ADD, -1, true, true};
constexpr Function kMul{elementwise("aclnnMul"), ANYNPU_FLOAT_MULTIPLY, 0, false, false};
constexpr Function kInplaceMul{elementwise("aclnnInplaceMul"), ANYNPU_FLOAT_MULTIPLY, 0, false, true};
constexpr Function kMuls{elementwise("aclnnMuls"), ANYNPU_FLOAT_MULTIPLY, 0, true, false};
constexpr Function kInplaceMuls{elementwise("aclnnInplaceMuls"), ANYNPU_FLOAT_MULTIPLY, 0, true, true};
constexpr Function kDiv{elementwise("aclnnDiv"), ANYNPU_FLOAT_DIVIDE, 0, false, false};
constexpr Function kInplaceDiv{elementwise("aclnnInplaceDiv"), ANYNPU_FLOAT_DIVIDE, 0, false, true};
constexpr Function kDivs{elementwise("aclnnDivs"), ANYNPU_FLOAT_DIVIDE, 0, true, false};
constexpr Function kInplaceDivs{elementwise("aclnnInplaceDivs"), ANYNPU_FLOAT_DIVIDE, 0, true, true};
constexpr auto kSilu = elementwise("aclnnSilu");

// What a function lacks is null. In place `out` is self.
struct Call {
  const aclTensor *self, *other;
  const aclScalar *scalar, *alpha;
  const aclTensor* out;
};

aclnnStatus first_stage(const Function& function, const Call& call, uint64_t* workspace_size,
                        aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(function.op, workspace_size, executor, [&](Stage& stage) {
    Args& args = stage.args;
    if (function.in_place) {
      stage.output("selfRef", call.out, &Args::y);
    } else {
      stage.input("self", call.self, &Args::x1);
    }
    args.of_scalar = function.of_scalar;
    if (function.of_scalar) {
      args.scalar = static_cast<float>(stage.number("other", call.scalar));
    } else {
      stage.input("other", call.other, &Args::x2);
    }
    args.alpha = 1;
    if (function.sign != 0) args.alpha = static_cast<float>(function.sign * stage.number("alpha", call.alpha));
    if (!function.in_place) stage.output("out", call.out, &Args::y);
    args.operation = function.operation;
  });
}

}  // namespace

extern "C" aclnnStatus aclnnAddGetWorkspaceSize(const aclTensor* self, const aclTensor* other, const aclScalar* alpha,
                                                aclTensor* out, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kAdd, {self, other, nullptr, alpha, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnAdd, kAdd.op)

extern "C" aclnnStatus aclnnInplaceAddGetWorkspaceSize(aclTensor* selfRef, const aclTensor* other,
                                                       const aclScalar* alpha, uint64_t* workspaceSize,
                                                       aclOpExecutor** executor) {
  return first_stage(kInplaceAdd, {nullptr, other, nullptr, alpha, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceAdd, kInplaceAdd.op)

extern "C" aclnnStatus aclnnAddsGetWorkspaceSize(const aclTensor* self, const aclScalar* other, const aclScalar* alpha,
                                                 aclTensor* out, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kAdds, {self, nullptr, other, alpha, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnAdds, kAdds.op)

extern "C" aclnnStatus aclnnInplaceAddsGetWorkspaceSize(aclTensor* selfRef, const aclScalar* other,
                                                        const aclScalar* alpha, uint64_t* workspaceSize,
                                                        aclOpExecutor** executor) {
  return first_stage(kInplaceAdds, {nullptr, nullptr, other, alpha, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceAdds, kInplaceAdds.op)

extern "C" aclnnStatus aclnnSubGetWorkspaceSize(const aclTensor* self, const aclTensor* other, const aclScalar* alpha,
                                                aclTensor* out, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kSub, {self, other, nullptr, alpha, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnSub, kSub.op)

extern "C" aclnnStatus aclnnInplaceSubGetWorkspaceSize(aclTensor* selfRef, const aclTensor* other,
                                                       const aclScalar* alpha, uint64_t* workspaceSize,
                                                       aclOpExecutor** executor) {
  return first_stage(kInplaceSub, {nullptr, other, nullptr, alpha, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceSub, kInplaceSub.op)

extern "C" aclnnStatus aclnnSubsGetWorkspaceSize(const aclTensor* self, const aclScalar* other, const aclScalar* alpha,
                                                 aclTensor* out, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kSubs, {self, nullptr, other, alpha, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnSubs, kSubs.op)

extern "C" aclnnStatus aclnnInplaceSubsGetWorkspaceSize(aclTensor* selfRef, const aclScalar* other,
                                                        const aclScalar* alpha, uint64_t* workspaceSize,
                                                        aclOpExecutor** executor) {
  return first_stage(kInplaceSubs, {nullptr, nullptr, other, alpha, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceSubs, kInplaceSubs.op)

extern "C" aclnnStatus aclnnMulGetWorkspaceSize(const aclTensor* self, const aclTensor* other, aclTensor* out,
                                                uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kMul, {self, other, nullptr, nullptr, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnMul, kMul.op)

extern "C" aclnnStatus aclnnInplaceMulGetWorkspaceSize(aclTensor* selfRef, const aclTensor* other,
                                                       uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kInplaceMul, {nullptr, other, nullptr, nullptr, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceMul, kInplaceMul.op)

extern "C" aclnnStatus aclnnMulsGetWorkspaceSize(const aclTensor* self, const aclScalar* other, aclTensor* out,
                                                 uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kMuls, {self, nullptr, other, nullptr, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnMuls, kMuls.op)

extern "C" aclnnStatus aclnnInplaceMulsGetWorkspaceSize(aclTensor* selfRef, const aclScalar* other,
                                                        uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kInplaceMuls, {nullptr, nullptr, other, nullptr, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceMuls, kInplaceMuls.op)

extern "C" aclnnStatus aclnnDivGetWorkspaceSize(const aclTensor* self, const aclTensor* other, aclTensor* out,
                                                uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kDiv, {self, other, nullptr, nullptr, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnDiv, kDiv.op)

extern "C" aclnnStatus aclnnInplaceDivGetWorkspaceSize(aclTensor* selfRef, const aclTensor* other,
                                                       uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kInplaceDiv, {nullptr, other, nullptr, nullptr, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceDiv, kInplaceDiv.op)

extern "C" aclnnStatus aclnnDivsGetWorkspaceSize(const aclTensor* self, const aclScalar* other, aclTensor* out,
                                                 uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kDivs, {self, nullptr, other, nullptr, out}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnDivs, kDivs.op)

extern "C" aclnnStatus aclnnInplaceDivsGetWorkspaceSize(aclTensor* selfRef, const aclScalar* other,
                                                        uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kInplaceDivs, {nullptr, nullptr, other, nullptr, selfRef}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnInplaceDivs, kInplaceDivs.op)

extern "C" aclnnStatus aclnnSiluGetWorkspaceSize(const aclTensor* self, aclTensor* out, uint64_t* workspaceSize,
                                                 aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kSilu, workspaceSize, executor, [&](Stage& stage) {
    stage.input("self", self, &Args::x1);
    stage.output("out", out, &Args::y);
    stage.args.operation = ANYNPU_FLOAT_SILU;
  });
}

ANYNPU_SECOND_STAGE(aclnnSilu, kSilu)
