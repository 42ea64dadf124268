// SPDX-License-Identifier: Apache-2.0
// A mixture of experts with int8 weights and int8 activations, on a stream: the experts of each token chosen, tokens sorted
// by expert and quantised, the first product of all experts, SwiGLU and quantisation, the second product, and the sum of each
// token's experts. Once with fused operators and int32 sums, once operator by operator in float16. A plain loop computes the
// same.
//   anynpu cc examples/c/moe_layer.cpp -O2 -o moe_layer && ./moe_layer
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <vector>

#include "aclnnop/aclnn_dequant_swiglu_quant.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing.h"
#include "aclnnop/aclnn_dynamic_quant.h"
#include "aclnnop/aclnn_grouped_matmul_v4.h"
#include "aclnnop/aclnn_moe_finalize_routing_v2.h"
#include "aclnnop/aclnn_moe_gating_top_k_softmax_v2.h"
#include "aclnnop/aclnn_moe_init_routing_v3.h"
#include "aclnnop/aclnn_swi_glu.h"
#include "device.h"

namespace {

const int64_t kTokens = 24, kHidden = 128, kInner = 192, kExperts = 8, kChosen = 2, kRows = kTokens * kChosen;

struct Layer {
  std::vector<int8_t> up, down;             // (E, H, 2 I) and (E, I, H)
  std::vector<float> up_scale, down_scale;  // (E, 2 I) and (E, H)
};

struct Routed {
  std::vector<int32_t> experts;  // (N, K)
  std::vector<float> weights;    // (N, K)
};

std::mt19937 generator(1);

std::vector<float> uniform(int64_t count, float low, float high) {
  std::uniform_real_distribution<float> draw(low, high);
  std::vector<float> values(count);
  for (float& value : values) value = draw(generator);
  return values;
}

std::vector<int8_t> codes(int64_t count) {
  std::uniform_int_distribution<int> draw(-127, 127);
  std::vector<int8_t> values(count);
  for (int8_t& value : values) value = static_cast<int8_t>(draw(generator));
  return values;
}

// The experts with the largest logits of each token, weighted by the softmax of those.
Routed route(const std::vector<float>& logits) {
  Routed made;
  for (int64_t n = 0; n < kTokens; ++n) {
    const float* own = &logits[n * kExperts];
    std::vector<int32_t> order(kExperts);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [own](int32_t a, int32_t b) { return own[a] > own[b]; });
    float sum = 0;
    for (int64_t j = 0; j < kChosen; ++j) sum += std::exp(own[order[j]] - own[order[0]]);
    for (int64_t j = 0; j < kChosen; ++j) {
      made.experts.push_back(order[j]);
      made.weights.push_back(std::exp(own[order[j]] - own[order[0]]) / sum);
    }
  }
  return made;
}

// The same on the device.
struct Gate {
  Tensor<int32_t> experts{ACL_INT32, {kTokens, kChosen}};
  Tensor<float> weights{ACL_FLOAT, {kTokens, kChosen}};

  Gate(const std::vector<float>& logits, aclrtStream stream) {
    const Tensor<float> x(ACL_FLOAT, {kTokens, kExperts}, logits);
    run(
        "aclnnMoeGatingTopKSoftmaxV2", stream,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnMoeGatingTopKSoftmaxV2GetWorkspaceSize(x.get(), nullptr, kChosen, /* softmax of the chosen */ 1,
                                                             false, weights.get(), experts.get(), nullptr, size,
                                                             executor);
        },
        aclnnMoeGatingTopKSoftmaxV2);
  }
};

// Tokens as int8 rows in the order of their experts.
struct Sorted {
  Tensor<int8_t> rows{ACL_INT8, {kRows, kHidden}};
  Tensor<float> scale{ACL_FLOAT, {kRows}};
  Tensor<int64_t> counts{ACL_INT64, {kExperts}};
  Tensor<int32_t> index{ACL_INT32, {kRows}};

  // Kind 0 of the index: the row of each slot; 1: the slot of each row.
  Sorted(const std::vector<float>& x, const Gate& gate, int64_t kind_of_index, aclrtStream stream) {
    const Tensor<float> tokens(ACL_FLOAT, {kTokens, kHidden}, x);
    run(
        "aclnnMoeInitRoutingV3", stream,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnMoeInitRoutingV3GetWorkspaceSize(tokens.get(), gate.experts.get(), nullptr, nullptr, kRows, 0,
                                                       kExperts, 0, /* counts */ 1, true, /* dynamic int8 */ 1, nullptr,
                                                       kind_of_index, rows.get(), index.get(), counts.get(),
                                                       scale.get(), size, executor);
        },
        aclnnMoeInitRoutingV3);
  }
};

// y = x @ weight of each row's expert: int32 sums, or with scales of the columns and rows float16.
template <typename T>
void multiply(const Tensor<int8_t>& x, const Tensor<int8_t>& weight, const Tensor<float>* scale,
              const Tensor<float>* row_scale, const Tensor<int64_t>& counts, const Tensor<T>& y, aclrtStream stream) {
  aclTensorList *x_list = x.list(), *weight_list = weight.list(), *y_list = y.list();
  aclTensorList *scale_list = scale ? scale->list() : nullptr, *row_list = row_scale ? row_scale->list() : nullptr;
  run(
      "aclnnGroupedMatmulV4", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnGroupedMatmulV4GetWorkspaceSize(x_list, weight_list, nullptr, scale_list, nullptr, nullptr, nullptr,
                                                    row_list, counts.get(), nullptr, nullptr, nullptr,
                                                    /* one result */ 3, /* groups of rows */ 0, /* counts */ 1, 0,
                                                    y_list, nullptr, nullptr, size, executor);
      },
      aclnnGroupedMatmulV4);
  for (const aclTensorList* list : {x_list, weight_list, scale_list, row_list, y_list}) {
    if (list != nullptr) aclDestroyTensorList(list);
  }
}

std::vector<float> with_fused_operators(const Layer& layer, const std::vector<float>& x, const Gate& gate,
                                        aclrtStream stream) {
  const Sorted sorted(x, gate, /* slots of the rows */ 1, stream);
  const Tensor<int8_t> up(ACL_INT8, {kExperts, kHidden, 2 * kInner}, layer.up);
  const Tensor<int32_t> sums(ACL_INT32, {kRows, 2 * kInner});
  multiply(sorted.rows, up, nullptr, nullptr, sorted.counts, sums, stream);

  const Tensor<float> up_scale(ACL_FLOAT, {kExperts, 2 * kInner}, layer.up_scale);
  const Tensor<int8_t> inner(ACL_INT8, {kRows, kInner});
  const Tensor<float> inner_scale(ACL_FLOAT, {kRows});
  char dynamic[] = "dynamic";
  run(
      "aclnnDequantSwigluQuant", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnDequantSwigluQuantGetWorkspaceSize(sums.get(), up_scale.get(), sorted.scale.get(), nullptr, nullptr,
                                                       nullptr, sorted.counts.get(), /* the left half */ true, dynamic,
                                                       inner.get(), inner_scale.get(), size, executor);
      },
      aclnnDequantSwigluQuant);

  std::vector<float> weights;
  std::vector<int64_t> tokens_of_rows;
  const std::vector<float> weights_of_slots = gate.weights.read();
  for (int32_t slot : sorted.index.read()) {
    weights.push_back(weights_of_slots[slot]);
    tokens_of_rows.push_back(slot / kChosen);
  }
  const Tensor<float> logit(ACL_FLOAT, {kRows}, weights), down_scale(ACL_FLOAT, {kExperts, kHidden}, layer.down_scale);
  const Tensor<int64_t> row_index(ACL_INT64, {kRows}, tokens_of_rows);
  const Tensor<int8_t> down(ACL_INT8, {kExperts, kInner, kHidden}, layer.down);
  const Tensor<float> y(ACL_FLOAT, {kTokens, kHidden});
  run(
      "aclnnGroupedMatmulFinalizeRouting", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnGroupedMatmulFinalizeRoutingGetWorkspaceSize(
            inner.get(), down.get(), down_scale.get(), nullptr, inner_scale.get(), sorted.counts.get(), nullptr,
            logit.get(), row_index.get(), 0, 1.0f, 0, false, false, /* counts */ 1, y.get(), size, executor);
      },
      aclnnGroupedMatmulFinalizeRouting);
  return y.read();
}

std::vector<float> operator_by_operator(const Layer& layer, const std::vector<float>& x, const Gate& gate,
                                        aclrtStream stream) {
  const Sorted sorted(x, gate, /* rows of the slots */ 0, stream);
  const Tensor<int8_t> up(ACL_INT8, {kExperts, kHidden, 2 * kInner}, layer.up);
  const Tensor<float> up_scale(ACL_FLOAT, {kExperts, 2 * kInner}, layer.up_scale);
  const Tensor<aclFloat16> halves(ACL_FLOAT16, {kRows, 2 * kInner});
  multiply(sorted.rows, up, &up_scale, &sorted.scale, sorted.counts, halves, stream);

  const Tensor<aclFloat16> active(ACL_FLOAT16, {kRows, kInner});
  run(
      "aclnnSwiGlu", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnSwiGluGetWorkspaceSize(halves.get(), -1, active.get(), size, executor);
      },
      aclnnSwiGlu);
  const Tensor<int8_t> inner(ACL_INT8, {kRows, kInner});
  const Tensor<float> inner_scale(ACL_FLOAT, {kRows});
  run(
      "aclnnDynamicQuant", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnDynamicQuantGetWorkspaceSize(active.get(), nullptr, inner.get(), inner_scale.get(), size, executor);
      },
      aclnnDynamicQuant);

  const Tensor<int8_t> down(ACL_INT8, {kExperts, kInner, kHidden}, layer.down);
  const Tensor<float> down_scale(ACL_FLOAT, {kExperts, kHidden}, layer.down_scale);
  const Tensor<aclFloat16> results(ACL_FLOAT16, {kRows, kHidden}), y(ACL_FLOAT16, {kTokens, kHidden});
  multiply(inner, down, &down_scale, &inner_scale, sorted.counts, results, stream);
  run(
      "aclnnMoeFinalizeRoutingV2", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnMoeFinalizeRoutingV2GetWorkspaceSize(results.get(), sorted.index.get(), nullptr, nullptr, nullptr,
                                                         gate.weights.get(), nullptr, /* a row of each slot */ 2,
                                                         y.get(), size, executor);
      },
      aclnnMoeFinalizeRoutingV2);
  std::vector<float> values;
  for (aclFloat16 value : y.read()) values.push_back(aclFloat16ToFloat(value));
  return values;
}

// Codes of a row and its scale.
float quantise(const std::vector<float>& values, std::vector<int>& row) {
  float most = 0;
  for (float value : values) most = std::max(most, std::fabs(value));
  const float scale = most / 127;
  row.clear();
  for (float value : values) row.push_back(static_cast<int>(std::nearbyint(value / scale)));
  return scale;
}

std::vector<float> in_a_loop(const Layer& layer, const std::vector<float>& x, const Routed& routed) {
  std::vector<float> y(kTokens * kHidden), values;
  std::vector<int> row;
  for (int64_t slot = 0; slot < kRows; ++slot) {
    const int64_t token = slot / kChosen, expert = routed.experts[slot];
    float scale = quantise({x.begin() + token * kHidden, x.begin() + (token + 1) * kHidden}, row);
    const int8_t* up = &layer.up[expert * kHidden * 2 * kInner];
    const float* up_scale = &layer.up_scale[expert * 2 * kInner];
    const auto dequantised = [&](int64_t column) {
      int sum = 0;
      for (int64_t h = 0; h < kHidden; ++h) sum += row[h] * up[h * 2 * kInner + column];
      return sum * up_scale[column] * scale;
    };
    values.clear();
    for (int64_t i = 0; i < kInner; ++i) {
      const float gate = dequantised(i);
      values.push_back(gate / (1 + std::exp(-gate)) * dequantised(kInner + i));
    }
    scale = quantise(values, row);
    const int8_t* down = &layer.down[expert * kInner * kHidden];
    for (int64_t h = 0; h < kHidden; ++h) {
      int sum = 0;
      for (int64_t i = 0; i < kInner; ++i) sum += row[i] * down[i * kHidden + h];
      y[token * kHidden + h] += sum * layer.down_scale[expert * kHidden + h] * scale * routed.weights[slot];
    }
  }
  return y;
}

// Whether all of y is near to what the plain loop made.
bool is_near(const char* name, const std::vector<float>& y, const std::vector<float>& expected) {
  float largest = 0, furthest = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    furthest = std::max(furthest, std::fabs(y[i] - expected[i]));
  }
  std::printf("%s: values up to %.2f, furthest from a plain loop by %.1e\n", name, largest, furthest);
  // float16 rounds, and a value of SwiGLU that lies between two codes may become either.
  return furthest <= 0.01f * largest;
}

}  // namespace

int main() {
  const Layer layer = {codes(kExperts * kHidden * 2 * kInner), codes(kExperts * kInner * kHidden),
                       uniform(kExperts * 2 * kInner, 0.001f, 0.002f), uniform(kExperts * kHidden, 0.001f, 0.002f)};
  const std::vector<float> x = uniform(kTokens * kHidden, -1, 1), logits = uniform(kTokens * kExperts, -2, 2);

  check(aclInit(nullptr), "aclInit");
  check(aclrtSetDevice(0), "aclrtSetDevice");
  aclrtStream stream = nullptr;
  check(aclrtCreateStream(&stream), "aclrtCreateStream");
  std::vector<float> fused, single;
  {
    const Gate gate(logits, stream);
    fused = with_fused_operators(layer, x, gate, stream);
    single = operator_by_operator(layer, x, gate, stream);
  }
  aclrtDestroyStream(stream);
  aclrtResetDevice(0);
  aclFinalize();

  const std::vector<float> expected = in_a_loop(layer, x, route(logits));
  std::printf("%lld tokens, %lld of %lld experts each\n", static_cast<long long>(kTokens),
              static_cast<long long>(kChosen), static_cast<long long>(kExperts));
  const bool near = is_near("fused operators", fused, expected);
  const bool also_near = is_near("operator by operator, float16", single, expected);
  std::printf("equal to the plain loop: %s\n", near && also_near ? "yes" : "no");
  return near && also_near ? 0 : 1;
}
