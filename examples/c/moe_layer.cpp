// SPDX-License-Identifier: Apache-2.0
// A mixture of experts with int8 weights and int8 activations, on a stream: tokens sorted by expert and quantised, the first
// product of all experts, SwiGLU and quantisation, the second product with the sum of each token's experts. A plain loop
// computes the same.
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

#include "acl/acl.h"
#include "aclnnop/aclnn_dequant_swiglu_quant.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing.h"
#include "aclnnop/aclnn_grouped_matmul_v4.h"
#include "aclnnop/aclnn_moe_init_routing_v3.h"

namespace {

const int64_t kTokens = 24, kHidden = 128, kInner = 192, kExperts = 8, kChosen = 2, kRows = kTokens * kChosen;

void check(int status, const char* what) {
  if (status == 0) return;
  const char* text = aclGetRecentErrMsg();
  std::fprintf(stderr, "%s failed with %d: %s\n", what, status, text ? text : "");
  std::exit(1);
}

// Device memory with a tensor on it, released together.
template <typename T>
class Tensor {
 public:
  Tensor(aclDataType dtype, const std::vector<int64_t>& shape) {
    count_ = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
    check(aclrtMalloc(&data_, count_ * sizeof(T), ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
    tensor_ = aclCreateTensor(shape.data(), shape.size(), dtype, nullptr, 0, ACL_FORMAT_ND, shape.data(), shape.size(),
                              data_);
  }
  Tensor(aclDataType dtype, const std::vector<int64_t>& shape, const std::vector<T>& values) : Tensor(dtype, shape) {
    const size_t bytes = count_ * sizeof(T);
    check(aclrtMemcpy(data_, bytes, values.data(), bytes, ACL_MEMCPY_HOST_TO_DEVICE), "aclrtMemcpy");
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (!listed_) aclDestroyTensor(tensor_);
    aclrtFree(data_);
  }
  aclTensor* get() const { return tensor_; }
  // A list of this tensor, which destroys it.
  aclTensorList* list() {
    const aclTensor* tensors[] = {tensor_};
    listed_ = true;
    return aclCreateTensorList(tensors, 1);
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    const size_t bytes = count_ * sizeof(T);
    check(aclrtMemcpy(values.data(), bytes, data_, bytes, ACL_MEMCPY_DEVICE_TO_HOST), "aclrtMemcpy");
    return values;
  }

 private:
  int64_t count_ = 0;
  void* data_ = nullptr;
  aclTensor* tensor_ = nullptr;
  bool listed_ = false;
};

// Both stages, and a wait for the results.
template <typename First, typename Second>
void run(const char* name, aclrtStream stream, First first, Second second) {
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  check(first(&size, &executor), name);
  void* workspace = nullptr;
  if (size > 0) check(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
  check(second(workspace, size, executor, stream), name);
  check(aclrtSynchronizeStream(stream), name);
  if (size > 0) aclrtFree(workspace);
}

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

std::vector<float> on_the_device(const Layer& layer, const std::vector<float>& x, const Routed& routed,
                                 aclrtStream stream) {
  const Tensor<float> tokens(ACL_FLOAT, {kTokens, kHidden}, x);
  const Tensor<int32_t> experts(ACL_INT32, {kTokens, kChosen}, routed.experts);
  Tensor<int8_t> rows(ACL_INT8, {kRows, kHidden});
  const Tensor<int32_t> order(ACL_INT32, {kRows});
  const Tensor<int64_t> counts(ACL_INT64, {kExperts});
  const Tensor<float> row_scale(ACL_FLOAT, {kRows});
  run(
      "aclnnMoeInitRoutingV3", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnMoeInitRoutingV3GetWorkspaceSize(
            tokens.get(), experts.get(), nullptr, nullptr, kRows, 0, kExperts, 0, /* counts */ 1, true,
            /* dynamic int8 */ 1, nullptr, /* slots of the rows */ 1, rows.get(), order.get(), counts.get(),
            row_scale.get(), size, executor);
      },
      aclnnMoeInitRoutingV3);

  Tensor<int8_t> up(ACL_INT8, {kExperts, kHidden, 2 * kInner}, layer.up);
  Tensor<int32_t> sums(ACL_INT32, {kRows, 2 * kInner});
  aclTensorList *x_list = rows.list(), *up_list = up.list(), *sums_list = sums.list();
  run(
      "aclnnGroupedMatmulV4", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnGroupedMatmulV4GetWorkspaceSize(x_list, up_list, nullptr, nullptr, nullptr, nullptr, nullptr,
                                                    nullptr, counts.get(), nullptr, nullptr, nullptr,
                                                    /* one result */ 3, /* groups of rows */ 0, /* counts */ 1, 0,
                                                    sums_list, nullptr, nullptr, size, executor);
      },
      aclnnGroupedMatmulV4);

  const Tensor<float> up_scale(ACL_FLOAT, {kExperts, 2 * kInner}, layer.up_scale);
  const Tensor<int8_t> inner(ACL_INT8, {kRows, kInner});
  const Tensor<float> inner_scale(ACL_FLOAT, {kRows});
  char dynamic[] = "dynamic";
  run(
      "aclnnDequantSwigluQuant", stream,
      [&](uint64_t* size, aclOpExecutor** executor) {
        return aclnnDequantSwigluQuantGetWorkspaceSize(sums.get(), up_scale.get(), row_scale.get(), nullptr, nullptr,
                                                       nullptr, counts.get(), /* the left half */ true, dynamic,
                                                       inner.get(), inner_scale.get(), size, executor);
      },
      aclnnDequantSwigluQuant);

  std::vector<float> weights;
  std::vector<int64_t> tokens_of_rows;
  for (int32_t slot : order.read()) {
    weights.push_back(routed.weights[slot]);
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
            inner.get(), down.get(), down_scale.get(), nullptr, inner_scale.get(), counts.get(), nullptr, logit.get(),
            row_index.get(), 0, 1.0f, 0, false, false, /* counts */ 1, y.get(), size, executor);
      },
      aclnnGroupedMatmulFinalizeRouting);
  for (const aclTensorList* list : {x_list, up_list, sums_list}) aclDestroyTensorList(list);
  return y.read();
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

}  // namespace

int main() {
  const Layer layer = {codes(kExperts * kHidden * 2 * kInner), codes(kExperts * kInner * kHidden),
                       uniform(kExperts * 2 * kInner, 0.001f, 0.002f), uniform(kExperts * kHidden, 0.001f, 0.002f)};
  const std::vector<float> x = uniform(kTokens * kHidden, -1, 1);
  const Routed routed = route(uniform(kTokens * kExperts, -2, 2));

  check(aclInit(nullptr), "aclInit");
  check(aclrtSetDevice(0), "aclrtSetDevice");
  aclrtStream stream = nullptr;
  check(aclrtCreateStream(&stream), "aclrtCreateStream");
  const std::vector<float> y = on_the_device(layer, x, routed, stream), expected = in_a_loop(layer, x, routed);
  aclrtDestroyStream(stream);
  aclrtResetDevice(0);
  aclFinalize();

  float largest = 0, furthest = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    furthest = std::max(furthest, std::fabs(y[i] - expected[i]));
  }
  // A value of SwiGLU that lies between two codes may become either.
  const bool equal = furthest <= 0.01f * largest;
  std::printf("%lld tokens, %lld of %lld experts each: values up to %.2f, furthest from a plain loop by %.1e\n",
              static_cast<long long>(kTokens), static_cast<long long>(kChosen), static_cast<long long>(kExperts),
              largest, furthest);
  std::printf("equal to the plain loop: %s\n", equal ? "yes" : "no");
  return equal ? 0 : 1;
}
