// SPDX-License-Identifier: Apache-2.0
// A decoder layer with int4 weights, float16 activations (W4A16) and an int8 cache of keys and values: norm, one product for
// q, k and v, rotation and the write into the cache, attention over the cache, norm of the sum, and the gated network. First
// a prompt of two sequences at once, then token by token. A plain loop computes the same in float.
//   anynpu cc examples/c/decoder_layer.cpp -O2 -o decoder_layer && ./decoder_layer
#include <algorithm>
#include <cmath>
#include <random>

#include "aclnnop/aclnn_add.h"
#include "aclnnop/aclnn_add_rms_norm.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"
#include "aclnnop/aclnn_dequant_rope_quant_kvcache.h"
#include "aclnnop/aclnn_fused_infer_attention_score_v3.h"
#include "aclnnop/aclnn_incre_flash_attention_v4.h"
#include "aclnnop/aclnn_mul.h"
#include "aclnnop/aclnn_rms_norm.h"
#include "aclnnop/aclnn_silu.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v2.h"
#include "device.h"

namespace {

const int64_t kBatch = 2, kPrompt = 6, kSteps = 4, kRoom = 16;  // tokens of a sequence in the cache
const int64_t kHidden = 128, kHeads = 4, kKvHeads = 2, kHead = 32, kInner = 192;
const int64_t kQ = kHeads * kHead, kKv = kKvHeads * kHead;
const double kEpsilon = 1e-5;
const int64_t kAll = 2147483647;  // tokens: no limit

typedef std::vector<float> Floats;

std::mt19937 generator(1);

Floats uniform(int64_t count, float low, float high) {
  std::uniform_real_distribution<float> draw(low, high);
  Floats values(count);
  for (float& value : values) value = draw(generator);
  return values;
}

std::vector<aclFloat16> halves(const Floats& values) {
  std::vector<aclFloat16> made;
  for (float value : values) made.push_back(aclFloatToFloat16(value));
  return made;
}

Floats floats(const std::vector<aclFloat16>& values) {
  Floats made;
  for (aclFloat16 value : values) made.push_back(aclFloat16ToFloat(value));
  return made;
}

// What float16 keeps.
Floats rounded(const Floats& values) { return floats(halves(values)); }

// A weight (k, n) of int4 codes and a scale of each column.
struct Weight {
  int64_t k, n;
  std::vector<int32_t> codes;
  Floats scale;

  Weight(int64_t rows, int64_t columns) : k(rows), n(columns), codes(rows * columns) {
    std::uniform_int_distribution<int32_t> draw(-8, 7);
    for (int32_t& code : codes) code = draw(generator);
    scale = rounded(uniform(columns, 0.015f, 0.025f));
  }
};

struct Layer {
  Floats first_gamma, second_gamma;
  Weight qkv, out, gate_up, down;
  Floats k_scale, v_scale;  // of codes, for each kv head and channel

  Layer()
      : first_gamma(rounded(uniform(kHidden, 0.5f, 1.5f))),
        second_gamma(rounded(uniform(kHidden, 0.5f, 1.5f))),
        qkv(kHidden, kQ + 2 * kKv),
        out(kQ, kHidden),
        gate_up(kHidden, 2 * kInner),
        down(kInner, kHidden),
        k_scale(rounded(uniform(kKv, 0.03f, 0.04f))),
        v_scale(rounded(uniform(kKv, 0.03f, 0.04f))) {}
};

// Angles of a position, (kHead): those of both halves of a head are the same.
Floats rotation(int64_t position, double (*function)(double)) {
  Floats values(kHead);
  for (int64_t i = 0; i < kHead; ++i) {
    values[i] = static_cast<float>(function(position * std::pow(10000.0, -2.0 * (i % (kHead / 2)) / kHead)));
  }
  return rounded(values);
}

// ---- on the device

typedef Tensor<aclFloat16> Halves;

class DeviceWeight {
 public:
  DeviceWeight(const Weight& weight, aclrtStream stream)
      : packed_(ACL_INT32, {weight.k, weight.n / 8}), scale_(ACL_FLOAT16, {weight.n}, halves(weight.scale)) {
    const Tensor<int32_t> codes(ACL_INT32, {weight.k, weight.n}, weight.codes);
    run(
        "aclnnConvertWeightToINT4Pack", stream,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnConvertWeightToINT4PackGetWorkspaceSize(codes.get(), packed_.get(), size, executor);
        },
        aclnnConvertWeightToINT4Pack);
  }
  void multiply(const Halves& x, const Halves& y, aclrtStream stream) const {
    run(
        "aclnnWeightQuantBatchMatmulV2", stream,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(x.get(), packed_.get(), scale_.get(), nullptr, nullptr,
                                                               nullptr, nullptr, 0, y.get(), size, executor);
        },
        aclnnWeightQuantBatchMatmulV2);
  }

 private:
  Tensor<int32_t> packed_;
  Halves scale_;
};

class DeviceLayer {
 public:
  DeviceLayer(const Layer& layer, aclrtStream stream)
      : stream_(stream),
        first_gamma_(ACL_FLOAT16, {kHidden}, halves(layer.first_gamma)),
        second_gamma_(ACL_FLOAT16, {kHidden}, halves(layer.second_gamma)),
        qkv_(layer.qkv, stream),
        out_(layer.out, stream),
        gate_up_(layer.gate_up, stream),
        down_(layer.down, stream),
        k_scale_(ACL_FLOAT, {kKvHeads, kHead}, layer.k_scale),
        v_scale_(ACL_FLOAT, {kKvHeads, kHead}, layer.v_scale),
        k_cache_(ACL_INT8, {kBatch, kRoom, kKvHeads, kHead}),
        v_cache_(ACL_INT8, {kBatch, kRoom, kKvHeads, kHead}),
        scales_(ACL_FLOAT16, {2, kKv}) {
    Floats both = layer.k_scale;
    both.insert(both.end(), layer.v_scale.begin(), layer.v_scale.end());
    scales_.write(halves(both));
  }

  // Some further tokens of all sequences, (kBatch, tokens, kHidden), in float16.
  Floats forward(const Floats& x, int64_t tokens) {
    const int64_t rows = kBatch * tokens;
    const Halves input(ACL_FLOAT16, {rows, kHidden}, halves(x)), normed(ACL_FLOAT16, {rows, kHidden});
    const Tensor<float> rstd(ACL_FLOAT, {rows, 1});
    run(
        "aclnnRmsNorm", stream_,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnRmsNormGetWorkspaceSize(input.get(), first_gamma_.get(), kEpsilon, normed.get(), rstd.get(), size,
                                              executor);
        },
        aclnnRmsNorm);
    const Halves projected(ACL_FLOAT16, {rows, kQ + 2 * kKv}), q(ACL_FLOAT16, {kBatch, tokens, kHeads, kHead}),
        attended(ACL_FLOAT16, {rows, kQ}), added(ACL_FLOAT16, {rows, kHidden}), sum(ACL_FLOAT16, {rows, kHidden});
    qkv_.multiply(normed, projected, stream_);
    write_cache(projected, q, tokens);
    length_ += tokens;
    attend(q, attended, tokens);
    out_.multiply(attended, added, stream_);
    run(
        "aclnnAddRmsNorm", stream_,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnAddRmsNormGetWorkspaceSize(input.get(), added.get(), second_gamma_.get(), kEpsilon, normed.get(),
                                                 rstd.get(), sum.get(), size, executor);
        },
        aclnnAddRmsNorm);
    add_network(normed, sum, rows);
    return floats(sum.read());
  }

 private:
  // Rotates q and k, and writes k and v as codes behind the tokens that are there.
  void write_cache(const Halves& projected, const Halves& q, int64_t tokens) const {
    Floats cosines, sines;
    for (int64_t row = 0; row < kBatch * tokens; ++row) {
      const Floats c = rotation(length_ + row % tokens, std::cos), s = rotation(length_ + row % tokens, std::sin);
      cosines.insert(cosines.end(), c.begin(), c.end());
      sines.insert(sines.end(), s.begin(), s.end());
    }
    const Halves cos(ACL_FLOAT16, {kBatch, tokens, 1, kHead}, halves(cosines)),
        sin(ACL_FLOAT16, {kBatch, tokens, 1, kHead}, halves(sines));
    const Tensor<int32_t> first(ACL_INT32, {kBatch}, std::vector<int32_t>(kBatch, static_cast<int32_t>(length_)));
    aclTensor* x = projected.view({kBatch, tokens, kQ + 2 * kKv});
    const int64_t sizes[] = {kQ, kKv, kKv};
    aclIntArray* splits = aclCreateIntArray(sizes, 3);
    char mode[] = "static", layout[] = "BSND", contiguous[] = "contiguous";
    run(
        "aclnnDequantRopeQuantKvcache", stream_,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnDequantRopeQuantKvcacheGetWorkspaceSize(
              x, cos.get(), sin.get(), k_cache_.get(), v_cache_.get(), first.get(), k_scale_.get(), v_scale_.get(),
              nullptr, nullptr, nullptr, nullptr, nullptr, splits, mode, layout, false, contiguous, q.get(), nullptr,
              nullptr, size, executor);
        },
        aclnnDequantRopeQuantKvcache);
    aclDestroyIntArray(splits);
    aclDestroyTensor(x);
  }

  void attend(const Halves& q, const Halves& attended, int64_t tokens) const {
    aclTensorList *keys = k_cache_.list(), *values = v_cache_.list();
    aclTensor* out = attended.view({kBatch, tokens, kHeads, kHead});
    aclIntArray* lengths = aclCreateIntArray(&length_, 1);
    char layout[] = "BSND";
    const double scale = 1 / std::sqrt(static_cast<double>(kHead));
    if (tokens == 1) {
      run(
          "aclnnIncreFlashAttentionV4", stream_,
          [&](uint64_t* size, aclOpExecutor** executor) {
            return aclnnIncreFlashAttentionV4GetWorkspaceSize(
                q.get(), keys, values, nullptr, nullptr, lengths, nullptr, nullptr, nullptr, nullptr, nullptr,
                scales_.get(), nullptr, nullptr, nullptr, kHeads, scale, layout, kKvHeads, 0, 1, out, size, executor);
          },
          aclnnIncreFlashAttentionV4);
    } else {
      std::vector<int8_t> later(2048 * 2048);
      for (int64_t i = 0; i < 2048; ++i) std::fill(later.begin() + i * 2048 + i + 1, later.begin() + (i + 1) * 2048, 1);
      const Tensor<int8_t> mask(ACL_INT8, {2048, 2048}, later);
      run(
          "aclnnFusedInferAttentionScoreV3", stream_,
          [&](uint64_t* size, aclOpExecutor** executor) {
            return aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
                q.get(), keys, values, nullptr, mask.get(), nullptr, lengths, nullptr, nullptr, nullptr, nullptr,
                nullptr, scales_.get(), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr,
                nullptr, nullptr, nullptr, nullptr, nullptr, kHeads, scale, kAll, kAll, layout, kKvHeads,
                /* causal, from the last token */ 3, 0, 0, 0, false, 0, 0, out, nullptr, size, executor);
          },
          aclnnFusedInferAttentionScoreV3);
    }
    aclDestroyIntArray(lengths);
    aclDestroyTensor(out);
    aclDestroyTensorList(values);
    aclDestroyTensorList(keys);
  }

  // sum += (silu(gate) * up) @ down, where gate and up are the halves of one product.
  void add_network(const Halves& normed, const Halves& sum, int64_t rows) const {
    const Halves both(ACL_FLOAT16, {rows, 2 * kInner}), active(ACL_FLOAT16, {rows, kInner}),
        added(ACL_FLOAT16, {rows, kHidden});
    gate_up_.multiply(normed, both, stream_);
    aclTensor *gate = both.view({rows, kInner}, {2 * kInner, 1}),
              *up = both.view({rows, kInner}, {2 * kInner, 1}, kInner);
    run(
        "aclnnSilu", stream_,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnSiluGetWorkspaceSize(gate, active.get(), size, executor);
        },
        aclnnSilu);
    run(
        "aclnnInplaceMul", stream_,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnInplaceMulGetWorkspaceSize(active.get(), up, size, executor);
        },
        aclnnInplaceMul);
    aclDestroyTensor(up);
    aclDestroyTensor(gate);
    down_.multiply(active, added, stream_);
    float one = 1;
    aclScalar* alpha = aclCreateScalar(&one, ACL_FLOAT);
    run(
        "aclnnInplaceAdd", stream_,
        [&](uint64_t* size, aclOpExecutor** executor) {
          return aclnnInplaceAddGetWorkspaceSize(sum.get(), added.get(), alpha, size, executor);
        },
        aclnnInplaceAdd);
    aclDestroyScalar(alpha);
  }

  aclrtStream stream_;
  Halves first_gamma_, second_gamma_;
  DeviceWeight qkv_, out_, gate_up_, down_;
  Tensor<float> k_scale_, v_scale_;
  Tensor<int8_t> k_cache_, v_cache_;
  Halves scales_;  // those of keys, then those of values
  int64_t length_ = 0;
};

// ---- the same in a loop, one token of one sequence after the other

Floats multiply(const Floats& x, const Weight& weight) {
  Floats y(weight.n);
  for (int64_t i = 0; i < weight.k; ++i) {
    for (int64_t j = 0; j < weight.n; ++j) y[j] += x[i] * weight.codes[i * weight.n + j];
  }
  for (int64_t j = 0; j < weight.n; ++j) y[j] *= weight.scale[j];
  return y;
}

Floats norm(const Floats& x, const Floats& gamma) {
  double sum = 0;
  for (float value : x) sum += value * value;
  const double factor = 1 / std::sqrt(sum / x.size() + kEpsilon);
  Floats y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back(static_cast<float>(x[i] * factor * gamma[i]));
  return y;
}

void rotate(float* head, int64_t position) {
  const Floats cosines = rotation(position, std::cos), sines = rotation(position, std::sin);
  for (int64_t i = 0; i < kHead / 2; ++i) {
    const float first = head[i], second = head[i + kHead / 2];
    head[i] = first * cosines[i] - second * sines[i];
    head[i + kHead / 2] = second * cosines[i] + first * sines[i];
  }
}

// What an int8 code keeps.
float coded(float value, float scale) {
  return scale * std::min(std::max(std::nearbyint(value / scale), -128.0f), 127.0f);
}

struct Sequence {
  std::vector<Floats> keys, values;

  Floats forward(const Layer& layer, const Floats& x) {
    Floats qkv = multiply(norm(x, layer.first_gamma), layer.qkv);
    const int64_t position = static_cast<int64_t>(keys.size());
    for (int64_t head = 0; head < kHeads + kKvHeads; ++head) rotate(&qkv[head * kHead], position);
    Floats key(kKv), value(kKv);
    for (int64_t i = 0; i < kKv; ++i) {
      key[i] = coded(qkv[kQ + i], layer.k_scale[i]);
      value[i] = coded(qkv[kQ + kKv + i], layer.v_scale[i]);
    }
    keys.push_back(key);
    values.push_back(value);
    Floats attended(kQ), y = x;
    for (int64_t head = 0; head < kHeads; ++head) attend(&qkv[head * kHead], head, &attended[head * kHead]);
    add(y, multiply(attended, layer.out));
    const Floats both = multiply(norm(y, layer.second_gamma), layer.gate_up);
    Floats active;
    for (int64_t i = 0; i < kInner; ++i) active.push_back(both[i] / (1 + std::exp(-both[i])) * both[kInner + i]);
    add(y, multiply(active, layer.down));
    return y;
  }

 private:
  static void add(Floats& to, const Floats& x) {
    for (size_t i = 0; i < x.size(); ++i) to[i] += x[i];
  }

  void attend(const float* q, int64_t head, float* out) const {
    const int64_t first = head / (kHeads / kKvHeads) * kHead;
    Floats weights;
    float most = -INFINITY, sum = 0;
    for (const Floats& key : keys) {
      float score = 0;
      for (int64_t i = 0; i < kHead; ++i) score += q[i] * key[first + i];
      weights.push_back(score / std::sqrt(static_cast<float>(kHead)));
      most = std::max(most, weights.back());
    }
    for (float& weight : weights) sum += weight = std::exp(weight - most);
    for (size_t row = 0; row < values.size(); ++row) {
      for (int64_t i = 0; i < kHead; ++i) out[i] += weights[row] / sum * values[row][first + i];
    }
  }
};

// Whether what the device made of some tokens is near to what the loop makes.
bool compare(const char* name, const Layer& layer, DeviceLayer& device, std::vector<Sequence>& sequences,
             int64_t tokens) {
  const Floats x = rounded(uniform(kBatch * tokens * kHidden, -1, 1)), y = device.forward(x, tokens);
  float largest = 0, furthest = 0;
  for (int64_t row = 0; row < kBatch * tokens; ++row) {
    const Floats own(x.begin() + row * kHidden, x.begin() + (row + 1) * kHidden);
    const Floats expected = sequences[row / tokens].forward(layer, own);
    for (int64_t i = 0; i < kHidden; ++i) {
      largest = std::max(largest, std::fabs(expected[i]));
      furthest = std::max(furthest, std::fabs(y[row * kHidden + i] - expected[i]));
    }
  }
  std::printf("%s: values up to %.2f, furthest from a plain loop by %.1e\n", name, largest, furthest);
  // float16 rounds after each operator, and what lies between two codes of the cache may become either.
  return furthest <= 0.01f * largest;
}

}  // namespace

int main() {
  const Layer layer;
  check(aclInit(nullptr), "aclInit");
  check(aclrtSetDevice(0), "aclrtSetDevice");
  aclrtStream stream = nullptr;
  check(aclrtCreateStream(&stream), "aclrtCreateStream");
  bool near = true;
  {
    DeviceLayer device(layer, stream);
    std::vector<Sequence> sequences(kBatch);
    near = compare("prompt of 6 tokens", layer, device, sequences, kPrompt);
    for (int64_t step = 0; step < kSteps; ++step) near = compare("one token", layer, device, sequences, 1) && near;
  }
  aclrtDestroyStream(stream);
  aclrtResetDevice(0);
  aclFinalize();
  std::printf("equal to the plain loop: %s\n", near ? "yes" : "no");
  return near ? 0 : 1;
}
