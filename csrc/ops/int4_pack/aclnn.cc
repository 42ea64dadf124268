// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"

static constexpr auto kConvertWeightToInt4Pack =
    anynpu::acl::make_operator<anynpu_int4_pack_args, anynpu_int4_pack_check, anynpu_int4_pack>(
        "aclnnConvertWeightToINT4Pack");

extern "C" aclnnStatus aclnnConvertWeightToINT4PackGetWorkspaceSize(const aclTensor* weight, aclTensor* weightInt4Pack,
                                                                    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<anynpu_int4_pack_args>(
      kConvertWeightToInt4Pack, workspaceSize, executor, [&](auto& stage) {
        stage.input("weight", weight, &anynpu_int4_pack_args::weight);
        stage.output("weightInt4Pack", weightInt4Pack, &anynpu_int4_pack_args::packed);
        const int axes = stage.args.weight.ndim;
        stage.limit(axes == 2, "wants a 2-D weight, got %d axes", axes);
      });
}

ANYNPU_SECOND_STAGE(aclnnConvertWeightToINT4Pack, kConvertWeightToInt4Pack)
