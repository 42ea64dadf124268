// SPDX-License-Identifier: Apache-2.0
#include "aclnnop/aclnn_matmul_compress_dequant.h"

#include "acl/executor/executor.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;
using Args = anynpu_compressed_matmul_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kMatmulCompressDequant =
    anynpu::acl::make_operator<Args, anynpu_compressed_matmul_check, anynpu_compressed_matmul>(
        "aclnnMatmulCompressDequant");

// [tilingK, tilingN, k, n, flag].
void check_info(Stage& stage, const aclIntArray* info) {
  int64_t values[5] = {};
  stage.ints("compressInfo", info, values, 5);
  if (!stage.ok() || stage.args.x.ndim != 2 || stage.args.y.ndim != 2) return;
  const int64_t k = stage.args.x.shape[1], n = stage.args.y.shape[1];
  stage.require(values[2] == k && values[3] == n,
                "compressInfo must be [8, 8, k, n, 1] with k = %lld of x1 and n = %lld of out, got k %lld, n %lld",
                wide(k), wide(n), wide(values[2]), wide(values[3]));
  stage.require(values[0] == 8 && values[1] == 8 && values[4] == 1,
                "compressInfo must be [8, 8, k, n, 1], got tilingK %lld, tilingN %lld, flag %lld", wide(values[0]),
                wide(values[1]), wide(values[4]));
}

// The operator takes more than the document.
void check_dtypes(Stage& stage) {
  const anynpu_tensor &scale = stage.args.scale, &bias = stage.args.bias, &y = stage.args.y;
  const bool words = scale.dtype == ANYNPU_UINT64 || scale.dtype == ANYNPU_INT64;
  stage.require(words, "deqScale must be uint64, got %s", anynpu::dtype_name(scale.dtype));
  const bool integers = !anynpu::present(bias) || bias.dtype == ANYNPU_INT32;
  stage.require(integers, "bias must be int32, got %s", anynpu::dtype_name(bias.dtype));
  stage.require(y.dtype == ANYNPU_FLOAT16, "out must be float16, got %s", anynpu::dtype_name(y.dtype));
}

}  // namespace

extern "C" aclnnStatus aclnnMatmulCompressDequantGetWorkspaceSize(const aclTensor* x1, const aclTensor* x2,
                                                                  const aclTensor* compressIndex, const aclTensor* bias,
                                                                  const aclTensor* deqScale, const aclTensor* offsetW,
                                                                  int offsetX, const aclIntArray* compressInfo,
                                                                  aclTensor* out, uint64_t* workspaceSize,
                                                                  aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kMatmulCompressDequant, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x1", x1, &Args::x);
    stage.input("x2", x2, &Args::stream);
    stage.input("compressIndex", compressIndex, &Args::index);
    stage.optional("bias", bias, &Args::bias);
    stage.input("deqScale", deqScale, &Args::scale);
    stage.output("out", out, &Args::y);
    stage.require(offsetW == nullptr, "offsetW must be null");
    stage.require(offsetX == 0, "offsetX must be 0, got %d", offsetX);
    check_dtypes(stage);
    check_info(stage, compressInfo);
    stage.limit_to("Atlas inference products");
  });
}

ANYNPU_SECOND_STAGE(aclnnMatmulCompressDequant, kMatmulCompressDequant)
