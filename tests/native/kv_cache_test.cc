// SPDX-License-Identifier: Apache-2.0
// rope_kv_cache and kv_cache_attention on every tier that this machine has: random shapes in buffers of the exact size
// (for AddressSanitizer), near a plain double reference, identical bits for one, two and three threads. The derived
// bounds and the other dtypes are held to in tests/ops.
// Arguments: [cases per tier] [seed] [only tier]
#include <algorithm>
#include <cmath>

#include "cases.h"

namespace {

using Floats = Tensor<float>;
using Codes = Tensor<int8_t>;
using Ints = Tensor<int32_t>;

Floats floats(std::vector<int64_t> shape, double low, double high) {
  return std::move(Floats(ANYNPU_FLOAT32, std::move(shape)).fill(low, high));
}
Codes codes(std::vector<int64_t> shape) { return std::move(Codes(ANYNPU_INT8, std::move(shape)).fill(-128.4, 127.4)); }

void rope_case() {
  const int64_t batch = pick(1, 40), length = pick(1, 4), q_heads = pick(0, 5), kv_heads = pick(1, 3);
  const int64_t size = 2 * pick(1, 70), rows = length + pick(0, 3);
  const bool paged = chance(50);
  Floats x = floats({batch, length, (q_heads + 2 * kv_heads) * size}, -3, 3);
  Floats cos = floats({batch, length, 1, size}, -1, 1), sin = floats({batch, length, 1, size}, -1, 1);
  Codes k_cache = codes({batch, rows, kv_heads, size}), v_cache = codes({batch, rows, kv_heads, size});
  Floats scale = floats({kv_heads, size}, 0.01, 0.05), offset = floats({kv_heads, size}, -20, 20);
  Ints indices(ANYNPU_INT32, {paged ? batch * length : batch});
  for (int64_t i = 0; i < indices.count; ++i) {
    indices.data[i] = static_cast<int32_t>(paged ? pick(-2, batch * rows - 1) : pick(0, rows - length));
  }
  Floats q(ANYNPU_FLOAT32, {batch, length, q_heads, size});
  Floats k(ANYNPU_FLOAT32, {batch, length, kv_heads, size}), v(ANYNPU_FLOAT32, {batch, length, kv_heads, size});
  anynpu_rope_kv_cache_args args{};
  args.x = x.view, args.cos = cos.view, args.sin = sin.view, args.indices = indices.view;
  args.k_cache = k_cache.view, args.v_cache = v_cache.view, args.scale_k = args.scale_v = scale.view;
  if (chance(50)) args.offset_k = args.offset_v = offset.view;
  args.q = q.view, args.k = k.view, args.v = v.view;
  args.size_splits[0] = q_heads * size, args.size_splits[1] = args.size_splits[2] = kv_heads * size;
  args.cache_mode = paged ? ANYNPU_CACHE_PAGE : ANYNPU_CACHE_CONTIGUOUS;
  Codes expected = codes({batch, rows, kv_heads, size});
  std::memcpy(expected.data.get(), v_cache.data.get(), expected.count);
  run_on_threads(anynpu_rope_kv_cache, args, q, k, v, k_cache, v_cache);

  const int64_t width = (q_heads + 2 * kv_heads) * size;
  for (int64_t token = 0; token < batch * length; ++token) {
    const float *c = &cos.data[token * size], *s = &sin.data[token * size];
    for (int64_t i = 0; i < q_heads * size; ++i) {
      const int64_t d = i % size, other = d < size / 2 ? i + size / 2 : i - size / 2;
      const double turned = (d < size / 2 ? -1.0 : 1.0) * x.data[token * width + other];
      const double want = double{x.data[token * width + i]} * c[d] + turned * s[d];
      require(std::fabs(q.data[token * q_heads * size + i] - want) < 1e-5, "q");
    }
    const int64_t row =
        paged ? indices.data[token] : token / length * rows + indices.data[token / length] + token % length;
    for (int64_t i = 0; row >= 0 && i < kv_heads * size; ++i) {
      const double value = double{x.data[token * width + (q_heads + kv_heads) * size + i]} / scale.data[i] +
                           (args.offset_v.format != 0 ? offset.data[i] : 0.0f);
      expected.data[row * kv_heads * size + i] = static_cast<int8_t>(std::nearbyint(std::clamp(value, -128.0, 127.0)));
    }
  }
  for (int64_t i = 0; i < expected.count; ++i) require(std::abs(expected.data[i] - v_cache.data[i]) <= 1, "v codes");
}

void attention_case() {
  const int64_t batch = pick(1, 3), length = chance(50) ? 1 : pick(2, 40), kv_heads = pick(1, 3), group = pick(1, 6);
  const int64_t size = pick(1, 140), block = pick(1, 90), used = length + pick(0, 400);
  const int64_t blocks = (used + block - 1) / block;
  const bool paged = chance(50), causal = chance(70);
  Floats q = floats({batch, length, kv_heads * group, size}, -1, 1);
  const std::vector<int64_t> shape = {paged ? batch * blocks : batch, paged ? block : used, kv_heads, size};
  Codes k_cache = codes(shape), v_cache = codes(shape);
  Floats scale = floats({kv_heads, size}, 0.01, 0.05), offset = floats({kv_heads, size}, -20, 20);
  Ints lengths(ANYNPU_INT32, {batch}), starts(ANYNPU_INT32, {batch}), table(ANYNPU_INT32, {batch, blocks});
  for (int64_t b = 0; b < batch; ++b) {
    lengths.data[b] = static_cast<int32_t>(pick(length, used));
    starts.data[b] = static_cast<int32_t>(chance(50) ? 0 : pick(0, lengths.data[b]));
  }
  for (int64_t i = 0; i < table.count; ++i) table.data[i] = static_cast<int32_t>(pick(0, batch * blocks - 1));
  Floats out(ANYNPU_FLOAT32, {batch, length, kv_heads * group, size});
  anynpu_kv_cache_attention_args args{};
  args.q = q.view, args.k_cache = k_cache.view, args.v_cache = v_cache.view, args.lengths = lengths.view;
  args.scale_k = args.scale_v = scale.view, args.offset_k = args.offset_v = offset.view, args.starts = starts.view;
  if (paged) args.block_table = table.view;
  args.out = out.view, args.softmax_scale = 0.2f, args.causal = causal;
  run_on_threads(anynpu_kv_cache_attention, args, out);

  const int64_t b = pick(0, batch - 1), s = pick(0, length - 1), head = pick(0, kv_heads * group - 1),
                kv = head / group;
  const int64_t last = causal ? lengths.data[b] - length + s + 1 : lengths.data[b];
  const auto value = [&](const Codes& cache, int64_t row, int64_t d) {
    const int64_t place = paged ? table.data[b * blocks + row / block] * block + row % block : b * used + row;
    const int64_t parameter = kv * size + d;
    return (static_cast<double>(cache.data[(place * kv_heads + kv) * size + d]) - offset.data[parameter]) *
           scale.data[parameter];
  };
  std::vector<double> scores;
  const int64_t from = ((b * length + s) * kv_heads * group + head) * size;
  for (int64_t row = starts.data[b]; row < last; ++row) {
    double score = 0;
    for (int64_t d = 0; d < size; ++d) score += q.data[from + d] * value(k_cache, row, d);
    scores.push_back(score * args.softmax_scale);
  }
  const double highest = scores.empty() ? 0 : *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - highest);
  for (int64_t d = 0; d < size; ++d) {
    double want = 0;
    for (size_t i = 0; i < scores.size(); ++i) want += scores[i] / sum * value(v_cache, starts.data[b] + i, d);
    require(std::fabs(out.data[from + d] - want) < 1e-3, "attention");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 150;
  const int seed = argc > 2 ? std::atoi(argv[2]) : 1;
  for (const char* tier : {"avx512vnni", "avx2", "neon", "portable"}) {
    if (argc > 3 && std::strcmp(tier, argv[3]) != 0) continue;
    if (const char* reason = anynpu_isa_refusal(tier)) {
      std::printf("%s: not run, %s\n", tier, reason);
      continue;
    }
    anynpu_set_max_isa(tier);
    generator.seed(seed);
    for (int i = 0; i < cases; ++i) {
      rope_case();
      attention_case();
    }
    std::printf("%s: %d cases of each operator\n", tier, cases);
    anynpu_set_max_isa(nullptr);
  }
  return 0;
}
