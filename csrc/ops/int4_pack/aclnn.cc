// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"

static constexpr auto kConvertWeightToInt4Pack =
    anynpu::acl::make_operator<anynpu_int4_pack_args, anynpu_int4_pack_check, anynpu_int4_pack>(
        "aclnnConvertWeightToINT4Pack");

namespace {

// The document refuses formats that other functions take as ND.
void require_format(anynpu::acl::Stage& stage, const char* name, const aclTensor* tensor) {
  aclFormat format = ACL_FORMAT_UNDEFINED;
  if (!stage.ok() || aclGetFormat(tensor, &format) != ACLNN_SUCCESS) return;
  stage.require(format == ACL_FORMAT_ND || format == ACL_FORMAT_FRACTAL_NZ,
                "the format of %s must be ND (2) or FRACTAL_NZ (29), got %d", name, static_cast<int>(format));
}

}  // namespace

extern "C" aclnnStatus aclnnConvertWeightToINT4PackGetWorkspaceSize(const aclTensor* weight, aclTensor* weightInt4Pack,
                                                                    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<anynpu_int4_pack_args>(
      kConvertWeightToInt4Pack, workspaceSize, executor, [&](auto& stage) {
        stage.input("weight", weight, &anynpu_int4_pack_args::weight);
        stage.output("weightInt4Pack", weightInt4Pack, &anynpu_int4_pack_args::packed);
        require_format(stage, "weight", weight);
        require_format(stage, "weightInt4Pack", weightInt4Pack);
        const int axes = stage.args.weight.ndim;
        stage.limit(axes == 2, "wants a 2-D weight, got %d axes", axes);
      });
}

ANYNPU_SECOND_STAGE(aclnnConvertWeightToINT4Pack, kConvertWeightToInt4Pack)
