// SPDX-License-Identifier: Apache-2.0
// Times weight_quant_matmul against the roofs of this machine, measured between the cases. Weights rotate over >= 512
// MB, and their scales and offsets with them. Arguments: threads, seconds a case, then any of m=1,4 x=bf16,fp16,fp32
// w=prepacked,raw,transposed,nz bits=4 group=128 scale=bf16,fp16,fp32 (else as x) offset=0,1 precise=0
// shapes=4096x4096,... clock=wall|cpu rotate=1|0
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "anynpu.h"
#include "measure.h"

namespace {

std::vector<uint8_t> noise;

// Of `bytes` bytes, other ones each time: as much as a case reads, so that both meet the same disturbances.
double next_read_roof(int64_t bytes) {
  static size_t next = 0;
  if (next + static_cast<size_t>(bytes) > noise.size()) next = 0;
  const uint8_t* data = noise.data() + next;
  next += static_cast<size_t>(bytes) / 64 * 64;
  return read_roof(data, bytes);
}

constexpr int64_t kBursts = 500000;

#define FMA_512(i) "vfmadd231ps %%zmm12, %%zmm12, %%zmm" i "\n"
#define FMA_256(i) "vfmadd231ps %%ymm12, %%ymm12, %%ymm" i "\n"
double fma_roof() { return has_vnni() ? rate(32, kBursts, BURST_512(FMA_512)) : rate(16, kBursts, BURST_256(FMA_256)); }

anynpu_tensor matrix(void* data, int32_t dtype, int64_t rows, int64_t columns) {
  anynpu_tensor t = {};
  t.data = data;
  t.dtype = dtype;
  t.format = ANYNPU_ND;
  t.ndim = 2;
  t.shape[0] = rows;
  t.shape[1] = columns;
  t.strides[0] = columns;
  t.strides[1] = 1;
  return t;
}

anynpu_tensor weight_tensor(const std::string& layout, int bits, void* data, int64_t k, int64_t n) {
  if (layout == "prepacked") {
    anynpu_tensor t = {};
    t.data = data;
    t.dtype = ANYNPU_UINT8;
    t.format = ANYNPU_ND;
    t.ndim = 1;
    t.shape[0] = 64 + (n + 31) / 32 * ((k + 3) / 4) * bits * 16;
    t.strides[0] = 1;
    return t;
  }
  anynpu_tensor t = matrix(data, bits == 4 ? ANYNPU_INT4 : ANYNPU_INT8, k, n);
  if (layout == "transposed") {
    t.strides[0] = 1;
    t.strides[1] = k;
  }
  if (layout == "nz") t.format = ANYNPU_FRACTAL_NZ;
  return t;
}

struct Case {
  std::string layout, x, scale;
  int64_t m, k, n, group;
  int bits, precise;
  bool offset;
  bool hot;  // the same weight each time
};

int32_t dtype_of(const std::string& name) {
  return name == "fp16" ? ANYNPU_FLOAT16 : name == "bf16" ? ANYNPU_BFLOAT16 : ANYNPU_FLOAT32;
}

// 0.01, or what is near it.
std::vector<uint8_t> small_values(int32_t dtype, int64_t count) {
  const float value = 0.01f;
  const uint16_t half = dtype == ANYNPU_BFLOAT16 ? 0x3c24 : 0x211f;
  const int64_t bytes = dtype == ANYNPU_FLOAT32 ? 4 : 2;
  std::vector<uint8_t> values(static_cast<size_t>(count * bytes));
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(&values[i * bytes], bytes == 4 ? static_cast<const void*>(&value) : &half, static_cast<size_t>(bytes));
  }
  return values;
}

// Of a normal distribution, none of them subnormal in float16.
std::vector<uint8_t> normal_values(int32_t dtype, int64_t count) {
  std::mt19937 generator(1);
  std::normal_distribution<float> normal;
  const int64_t bytes = dtype == ANYNPU_FLOAT32 ? 4 : 2;
  std::vector<uint8_t> values(static_cast<size_t>(count * bytes));
  for (int64_t i = 0; i < count; ++i) {
    const float drawn = normal(generator), value = std::fabs(drawn) < 0x1p-14f ? 0x1p-14f : drawn;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (dtype == ANYNPU_BFLOAT16) bits >>= 16;
    if (dtype == ANYNPU_FLOAT16) {
      bits = (bits >> 16 & 0x8000) | ((((bits >> 23 & 255) - 112) & 31) << 10) | (bits >> 13 & 0x3ff);
    }
    std::memcpy(&values[i * bytes], &bits, static_cast<size_t>(bytes));
  }
  return values;
}

// Only the headers of the copies are packed: the rest is noise, which is valid.
void pack_headers(const Case& c, int64_t weight_bytes, int64_t copies) {
  std::vector<uint8_t> source(c.k * c.n * c.bits / 8), blob(weight_bytes);
  anynpu_weight_quant_prepack_args pack = {};
  pack.weight = weight_tensor("raw", c.bits, source.data(), c.k, c.n);
  pack.packed = weight_tensor("prepacked", c.bits, blob.data(), c.k, c.n);
  if (anynpu_weight_quant_prepack(&pack, nullptr, 0) != ANYNPU_OK) std::printf("%s\n", anynpu_last_error());
  for (int64_t copy = 0; copy < copies; ++copy) std::memcpy(noise.data() + copy * weight_bytes, blob.data(), 64);
}

struct Limits {
  double bandwidth = 0, dots = 0, fmas = 0;

  void measure(int64_t bytes) {
    for (int i = 0; i < 20; ++i) bandwidth = std::max(bandwidth, next_read_roof(bytes));
    dots = std::max(dots, int8_roof(kBursts));
    fmas = std::max(fmas, fma_roof());
  }
};

void print(const Case& c, std::vector<double> times, int64_t bytes, const Limits& limits) {
  std::sort(times.begin(), times.end());
  const double time = times[times.size() / 2], best = times.front();
  const double gb = static_cast<double>(bytes) * 1e-9, ops = 2e-9 * static_cast<double>(c.m * c.k * c.n);
  std::printf(
      "%-10s w%d %s m=%-4lld %lldx%lld g=%lld %s%s p=%d: median %8.1f us, best %8.1f us = %5.1f GB/s (%3.0f %% of "
      "%.1f), "
      "%6.1f Gop/s (%3.0f %% of int8 %.0f, %3.0f %% of fma %.0f)\n",
      c.layout.c_str(), c.bits, c.x.c_str(), static_cast<long long>(c.m), static_cast<long long>(c.k),
      static_cast<long long>(c.n), static_cast<long long>(c.group), c.scale.c_str(), c.offset ? "+o" : "", c.precise,
      time * 1e6, best * 1e6, gb / best, 100e9 * gb / best / limits.bandwidth, limits.bandwidth / 1e9, ops / best,
      100e9 * ops / best / limits.dots, limits.dots / 1e9, 100e9 * ops / best / limits.fmas, limits.fmas / 1e9);
  std::fflush(stdout);
}

void run(const Case& c, double seconds) {
  const int32_t dtype = dtype_of(c.x), scale_dtype = dtype_of(c.scale);
  std::vector<uint8_t> x = normal_values(dtype, c.m * c.k), y(c.m * c.n * 4);
  const int64_t weight_bytes = (64 + c.k * c.n * c.bits / 8 + 63) / 64 * 64;
  const int64_t copies = c.hot ? 1 : std::max<int64_t>(1, static_cast<int64_t>(noise.size()) / weight_bytes);
  const int64_t groups = c.group == 0 ? 1 : (c.k + c.group - 1) / c.group;
  const int64_t channel_bytes = groups * c.n * (scale_dtype == ANYNPU_FLOAT32 ? 4 : 2), kinds = c.offset ? 2 : 1;
  std::vector<uint8_t> channels = small_values(scale_dtype, copies * kinds * groups * c.n);
  const int64_t bytes = weight_bytes + kinds * channel_bytes;
  anynpu_weight_quant_matmul_args args = {};
  args.x = matrix(x.data(), dtype, c.m, c.k);
  args.y = matrix(y.data(), dtype, c.m, c.n);
  args.group_size = c.group;
  args.inner_precise = c.precise;
  if (c.layout == "prepacked") pack_headers(c, weight_bytes, copies);
  std::vector<double> times;
  Limits limits;
  const int repeats = 3;
  for (int round = 0; round < repeats; ++round) {
    limits.measure(bytes);
    const double end = now() + seconds / repeats;
    for (int64_t copy = 0; now() < end || copy < 2; ++copy) {
      args.weight = weight_tensor(c.layout, c.bits, noise.data() + copy % copies * weight_bytes, c.k, c.n);
      uint8_t* scale = channels.data() + copy % copies * kinds * channel_bytes;
      args.scale = matrix(scale, scale_dtype, groups, c.n);
      if (c.offset) args.offset = matrix(scale + channel_bytes, scale_dtype, groups, c.n);
      const double start = now();
      if (anynpu_weight_quant_matmul(&args, nullptr, 0) != ANYNPU_OK) {
        std::printf("%s\n", anynpu_last_error());
        return;
      }
      if (copy > 0) times.push_back(now() - start);
    }
  }
  print(c, times, bytes, limits);
}

// All combinations of the parts of the arguments.
std::vector<Case> all_cases(int argc, char** argv) {
  std::vector<Case> cases = {Case{}};
  const auto vary = [&](const char* name, const char* fallback, const auto& set) {
    std::vector<Case> varied;
    for (const Case& each : cases) {
      for (const std::string& value : option(argc, argv, name, fallback)) {
        varied.push_back(each);
        set(varied.back(), value);
      }
    }
    cases = varied;
  };
  vary("shapes", "4096x4096,4096x14336,14336x4096", [](Case& c, const std::string& value) {
    c.k = std::atoll(value.c_str());
    c.n = std::atoll(value.c_str() + value.find('x') + 1);
  });
  vary("w", "prepacked", [](Case& c, const std::string& value) { c.layout = value; });
  vary("x", "bf16", [](Case& c, const std::string& value) { c.x = c.scale = value; });
  vary("m", "1", [](Case& c, const std::string& value) { c.m = std::atoll(value.c_str()); });
  vary("precise", "0", [](Case& c, const std::string& value) { c.precise = std::atoi(value.c_str()); });
  vary("bits", "4", [](Case& c, const std::string& value) { c.bits = std::atoi(value.c_str()); });
  vary("group", "128", [](Case& c, const std::string& value) { c.group = std::atoll(value.c_str()); });
  vary("scale", "as x", [](Case& c, const std::string& value) { c.scale = value == "as x" ? c.scale : value; });
  vary("offset", "0", [](Case& c, const std::string& value) { c.offset = value == "1"; });
  vary("rotate", "1", [](Case& c, const std::string& value) { c.hot = value == "0"; });
  return cases;
}

}  // namespace

int main(int argc, char** argv) {
  omp_set_num_threads(argc > 1 ? std::atoi(argv[1]) : 2);
  const double seconds = argc > 2 ? std::atof(argv[2]) : 1;
  cpu_clock = option(argc, argv, "clock", "wall")[0] == "cpu";
  noise.resize(int64_t{560} << 20);
  std::mt19937_64 generator(7);
  for (size_t i = 0; i < noise.size(); i += 8) {
    const uint64_t value = generator();
    std::memcpy(&noise[i], &value, 8);
  }
  for (const Case& each : all_cases(argc, argv)) run(each, seconds);
  return 0;
}
