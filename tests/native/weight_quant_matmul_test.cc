// SPDX-License-Identifier: Apache-2.0
// weight_quant_matmul against a plain double reference: random shapes, layouts and dtypes on every tier that this
// machine has, with derived tolerances, canaries around y, and identical bits for one, two and three threads.
// Arguments: [cases per tier] [seed] [only tier]
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

namespace {

std::mt19937_64 generator;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
bool chance(int percent) { return pick(1, 100) <= percent; }
double normal() { return std::normal_distribution<double>()(generator); }
int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Values of the three float formats, rounded by plain arithmetic.
struct Format {
  int32_t dtype;
  int fraction_bits, least_exponent;
};
constexpr Format kHalf = {ANYNPU_FLOAT16, 10, -14};
constexpr Format kBf16 = {ANYNPU_BFLOAT16, 7, -126};
constexpr Format kFloat = {ANYNPU_FLOAT32, 23, -126};

double round_to(const Format& format, double value) {
  if (!std::isfinite(value) || value == 0) return value;
  const int exponent = std::max(std::ilogb(value), format.least_exponent);
  const double unit = std::ldexp(1.0, exponent - format.fraction_bits);
  const double rounded = std::nearbyint(value / unit) * unit;
  return format.dtype == ANYNPU_FLOAT16 && std::fabs(rounded) > 65504 ? std::copysign(INFINITY, value) : rounded;
}

uint32_t encode(const Format& format, double value) {
  const float single = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  if (format.dtype == ANYNPU_FLOAT32) return bits;
  if (format.dtype == ANYNPU_BFLOAT16) return bits >> 16;
  const uint32_t sign = bits >> 16 & 0x8000;
  if (std::isnan(value)) return 0x7e00;
  if (std::isinf(value)) return sign | 0x7c00;
  const double magnitude = std::fabs(value);
  if (magnitude < std::ldexp(1.0, -14)) return sign | static_cast<uint32_t>(std::ldexp(magnitude, 24));
  const int exponent = std::ilogb(magnitude);
  return sign | static_cast<uint32_t>((exponent + 15) << 10) |
         (static_cast<uint32_t>(std::ldexp(magnitude, 10 - exponent)) & 0x3ff);
}

double decode(int32_t dtype, const uint8_t* from) {
  if (dtype == ANYNPU_INT8) return static_cast<int8_t>(*from);
  uint32_t bits = 0;
  std::memcpy(&bits, from, dtype == ANYNPU_FLOAT32 ? 4 : 2);
  if (dtype == ANYNPU_FLOAT16) {
    const double sign = bits & 0x8000 ? -1 : 1;
    const int exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25));
  }
  if (dtype == ANYNPU_BFLOAT16) bits <<= 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

const Format& format_of(int32_t dtype) {
  return dtype == ANYNPU_FLOAT16 ? kHalf : dtype == ANYNPU_BFLOAT16 ? kBf16 : kFloat;
}
int bytes_of(int32_t dtype) {
  return dtype == ANYNPU_FLOAT32 || dtype == ANYNPU_INT32 ? 4
         : dtype == ANYNPU_INT64                          ? 8
         : dtype == ANYNPU_INT8 || dtype == ANYNPU_UINT8  ? 1
                                                          : 2;
}

struct Buffer {
  anynpu_tensor tensor = {};
  std::vector<uint8_t> bytes;
  void bind() { tensor.data = bytes.data(); }
};

constexpr int64_t kCanary = 64;

// A float tensor with the last two axes in random layout: contiguous, padded rows or transposed.
Buffer floats(int32_t dtype, const std::vector<int64_t>& shape, const std::vector<double>& values) {
  Buffer buffer;
  anynpu_tensor& t = buffer.tensor;
  t.dtype = dtype;
  t.format = ANYNPU_ND;
  t.ndim = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  std::vector<int> order(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) order[i] = static_cast<int>(shape.size() - 1 - i);
  if (shape.size() > 1 && chance(25)) std::swap(order[0], order[1]);
  for (int axis : order) {
    t.shape[axis] = shape[axis];
    t.strides[axis] = stride;
    stride *= shape[axis];
    if (chance(15)) stride += pick(0, 5);
  }
  if (shape.size() == 1 && chance(20)) {
    t.strides[0] = 2;
    stride *= 2;
  }
  buffer.bytes.resize(std::max<int64_t>(1, stride) * bytes_of(dtype));
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  for (int64_t i = 0; i < count; ++i) {
    int64_t at = 0, rest = i;
    for (int axis = t.ndim - 1; axis >= 0; --axis) {
      at += rest % shape[axis] * t.strides[axis];
      rest /= shape[axis];
    }
    const uint32_t code = encode(format_of(dtype), values[i]);
    std::memcpy(buffer.bytes.data() + at * bytes_of(dtype), &code, bytes_of(dtype));
  }
  buffer.bind();
  return buffer;
}

enum Layout { kPlain, kTransposed };

// Stores the matrix q [batches][k][n] of `bits` bits.
Buffer weights(const std::vector<int>& q, int64_t batches, int64_t k, int64_t n, int bits, Layout layout, bool nz,
               bool words, bool batched) {
  Buffer buffer;
  anynpu_tensor& t = buffer.tensor;
  const bool transposed = layout == kTransposed;
  const int64_t rows = transposed ? n : k, columns = transposed ? k : n, pack = words ? 8 : 1;
  t.dtype = bits == 8 ? ANYNPU_INT8 : words ? ANYNPU_INT32 : ANYNPU_INT4;
  t.format = nz ? ANYNPU_FRACTAL_NZ : ANYNPU_ND;
  const int64_t pad = nz || !chance(30) ? 0 : pick(1, 3) * (bits == 4 ? (words ? 8 : 2) : 1);
  const int64_t chunk = nz ? (bits == 8 ? 32 : 64) : columns + pad;
  const int64_t stored_rows = nz ? round_up(rows, 16) : rows;
  const int64_t matrix = nz ? round_up(columns, chunk) * stored_rows : (columns + pad) * rows;
  buffer.bytes.assign(std::max<int64_t>(1, batches * matrix * bits / 8), 0);
  for (int64_t batch = 0; batch < batches; ++batch) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        const int64_t kk = transposed ? column : row, nn = transposed ? row : column;
        const int value = q[(batch * k + kk) * n + nn];
        const int64_t at = batch * matrix + column / chunk * stored_rows * chunk + row * chunk + column % chunk;
        if (bits == 8) {
          buffer.bytes[at] = static_cast<uint8_t>(value);
        } else {
          buffer.bytes[at / 2] |= static_cast<uint8_t>((value & 15) << (at % 2 * 4));
        }
      }
    }
  }
  t.ndim = batched ? 3 : 2;
  const int first = t.ndim - 2;
  const int64_t row_stride = (columns + pad) / pack;
  t.shape[first] = transposed ? columns / pack : rows;
  t.shape[first + 1] = transposed ? rows : columns / pack;
  t.strides[first] = transposed ? 1 : row_stride;
  t.strides[first + 1] = transposed ? row_stride : 1;
  if (batched) {
    t.shape[0] = batches;
    t.strides[0] = row_stride * rows;
  }
  buffer.bind();
  return buffer;
}

Buffer prepacked(const Buffer& weight) {
  Buffer blob;
  anynpu_weight_quant_prepack_args args = {};
  args.weight = weight.tensor;
  size_t bytes = 0;
  if (anynpu_weight_quant_prepack_check(&args, &bytes) != ANYNPU_OK) {
    std::printf("prepack check: %s\n", anynpu_last_error());
    std::exit(1);
  }
  blob.bytes.resize(bytes);
  blob.tensor.dtype = ANYNPU_UINT8;
  blob.tensor.format = ANYNPU_ND;
  blob.tensor.ndim = 1;
  blob.tensor.shape[0] = static_cast<int64_t>(bytes);
  blob.tensor.strides[0] = 1;
  blob.bind();
  args.packed = blob.tensor;
  if (anynpu_weight_quant_prepack(&args, nullptr, 0) != ANYNPU_OK) {
    std::printf("prepack: %s\n", anynpu_last_error());
    std::exit(1);
  }
  return blob;
}

int64_t edge_size(int64_t most) {
  const int64_t edges[] = {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 255, 256, 257, 300, 513};
  return std::min(most, chance(50) ? edges[pick(0, 20)] : pick(1, most));
}

std::vector<double> random_values(const Format& format, int64_t count, double spread, double outliers) {
  std::vector<double> values(count);
  for (double& value : values) {
    value = normal() * spread;
    if (outliers > 0 && chance(2)) value *= outliers;
    value = round_to(format, value);
  }
  return values;
}

// Encoded as trans_quant_param does.
int64_t encode_scale(double scale, double offset) {
  const float single = static_cast<float>(scale);
  uint32_t bits;
  std::memcpy(&bits, &single, 4);
  const int64_t field = static_cast<int64_t>(std::nearbyint(std::min(255.0, std::max(-256.0, offset)))) & 511;
  return (bits & 0xffffe000u) | int64_t{1} << 46 | field << 37;
}
double scale_of(int64_t code) {
  const uint32_t bits = static_cast<uint32_t>(code);
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

Buffer codes(const std::vector<int64_t>& values) {
  Buffer buffer;
  buffer.tensor.dtype = ANYNPU_INT64;
  buffer.tensor.format = ANYNPU_ND;
  buffer.tensor.ndim = 1;
  buffer.tensor.shape[0] = static_cast<int64_t>(values.size());
  buffer.tensor.strides[0] = 1;
  buffer.bytes.resize(std::max<size_t>(1, values.size()) * 8);
  if (!values.empty()) std::memcpy(buffer.bytes.data(), values.data(), values.size() * 8);
  buffer.bind();
  return buffer;
}

[[noreturn]] void stop(const std::string& label, const char* what) {
  std::printf("FAILED %s: %s\n", label.c_str(), what);
  std::exit(1);
}

void run_case(const char* isa, uint64_t seed) {
  generator.seed(seed);
  const int bits = chance(60) ? 4 : 8;
  const Layout layout = chance(50) ? kPlain : kTransposed;
  const bool nz = chance(35), words = bits == 4 && chance(50);
  const bool pack_ahead = chance(30);
  const bool has_batches = chance(25), batched = has_batches && !pack_ahead && chance(50);
  const int64_t batches = has_batches ? pick(1, 3) : 1;
  int64_t m = chance(5) ? 0 : chance(60) ? pick(1, 7) : pick(1, 40);
  if (chance(3)) m = 600;
  int64_t k = chance(2) ? 0 : edge_size(600), n = chance(2) ? 0 : edge_size(m > 100 ? 130 : 600);
  if (words) (layout == kTransposed ? k : n) = round_up(layout == kTransposed ? k : n, 8);
  if (bits == 4 && !words) (layout == kTransposed ? k : n) = round_up(layout == kTransposed ? k : n, 2);
  // One word along K: without x, prepacking cannot tell such a weight from a plain one.
  if (pack_ahead && words && layout == kTransposed && k == 8) k = 16;
  int64_t group = 0;
  if (k > 32 && chance(60)) group = std::min((k - 1) / 32 * 32, 32 * pick(1, chance(50) ? 4 : 20));
  const Format x_format = chance(40) ? kHalf : chance(60) ? kBf16 : kFloat;
  const Format s_format = chance(70) ? x_format : kFloat;
  const bool has_offset = chance(50), has_bias = chance(50), has_quant = chance(25);
  const bool coded_scale = bits == 8 && group == 0 && chance(10);
  const int precise = chance(30);

  char text[400];
  std::snprintf(text, sizeof(text),
                "isa %s seed %llu: x (%lld, %lld, %lld) dtype %d, n %lld, bits %d %s%s%s%s, group %lld, scale %d%s%s%s "
                "inner_precise %d",
                isa, static_cast<unsigned long long>(seed), static_cast<long long>(batches), static_cast<long long>(m),
                static_cast<long long>(k), x_format.dtype, static_cast<long long>(n), bits,
                layout == kPlain ? "plain" : "transposed", nz ? " nz" : "", words ? " words" : "",
                pack_ahead ? " prepacked" : "", static_cast<long long>(group), s_format.dtype,
                has_offset ? " offset" : "", has_bias ? " bias" : "", has_quant ? " quant" : "", precise);
  const std::string label = text;

  const int64_t weight_count = batched ? batches : 1;
  std::vector<int> q(weight_count * k * n);
  for (int& value : q) value = static_cast<int>(bits == 4 ? pick(-8, 7) : pick(-128, 127));
  const double spread = std::pow(2.0, static_cast<double>(pick(-6, 3)));
  std::vector<double> x = random_values(x_format, batches * m * k, spread, chance(30) ? std::pow(4.0, pick(1, 8)) : 0);
  if (chance(15)) {
    for (double& value : x) value = chance(10) ? value : 0;
  }
  const bool special = chance(5) && !x.empty();
  if (special) x[pick(0, x.size() - 1)] = chance(50) ? INFINITY : NAN;

  const int64_t groups = group == 0 ? 1 : (k + group - 1) / group;
  const bool single = group == 0 && chance(30);
  const int64_t s_columns = single ? 1 : n;
  std::vector<double> s = random_values(s_format, groups * s_columns, 0.02, 0);
  std::vector<double> o = random_values(s_format, groups * s_columns, 4, 0);
  std::vector<int64_t> s_shape =
      group != 0 || chance(50) ? std::vector<int64_t>{groups, s_columns} : std::vector<int64_t>{s_columns};
  std::vector<int64_t> s_codes;
  if (coded_scale) {
    for (double& value : s) {
      s_codes.push_back(encode_scale(value, 0));
      value = scale_of(s_codes.back());
    }
  }
  const Format b_format = chance(50) ? kFloat : x_format;
  const std::vector<double> b = random_values(b_format, n, 1, 0);
  const bool quant_single = chance(30), coded_quant = chance(40);
  const int64_t q_columns = quant_single ? 1 : n;
  std::vector<double> qs = random_values(kFloat, q_columns, 5, 0), qo = random_values(kFloat, q_columns, 60, 0);
  std::vector<int64_t> q_codes;

  const Buffer x_buffer = has_batches ? floats(x_format.dtype, {batches, m, k}, x) : floats(x_format.dtype, {m, k}, x);
  const Buffer source = weights(q, weight_count, k, n, bits, layout, nz, words, batched);
  const Buffer weight = pack_ahead ? prepacked(source) : source;
  const Buffer s_buffer = coded_scale ? codes(s_codes) : floats(s_format.dtype, s_shape, s);
  const Buffer o_buffer = floats(s_format.dtype, s_shape, o);
  const Buffer b_buffer = floats(b_format.dtype, {n}, b);
  const bool has_quant_offset = chance(60);
  for (int64_t i = 0; i < q_columns; ++i) {
    if (!has_quant_offset) qo[i] = 0;
    q_codes.push_back(encode_scale(qs[i], qo[i]));
  }
  const Buffer qs_buffer = coded_quant ? codes(q_codes) : floats(ANYNPU_FLOAT32, {q_columns}, qs);
  const Buffer qo_buffer = floats(ANYNPU_FLOAT32, {q_columns}, qo);

  anynpu_weight_quant_matmul_args args = {};
  args.x = x_buffer.tensor;
  args.weight = weight.tensor;
  args.scale = s_buffer.tensor;
  if (has_offset && !coded_scale) args.offset = o_buffer.tensor;
  if (has_bias) args.bias = b_buffer.tensor;
  if (has_quant) {
    args.quant_scale = qs_buffer.tensor;
    if (has_quant_offset && !coded_quant) args.quant_offset = qo_buffer.tensor;
  }
  args.group_size = group;
  args.inner_precise = precise;

  const int32_t y_dtype = has_quant ? static_cast<int32_t>(ANYNPU_INT8) : x_format.dtype;
  const int64_t y_bytes = bytes_of(y_dtype), rows = batches * m, row_stride = n + (chance(30) ? pick(1, 7) : 0);
  const bool y_transposed = chance(10) && !has_batches;
  args.y.dtype = y_dtype;
  args.y.format = ANYNPU_ND;
  args.y.ndim = has_batches ? 3 : 2;
  const int last = args.y.ndim - 1;
  if (has_batches) {
    args.y.shape[0] = batches;
    args.y.strides[0] = m * row_stride;
  }
  args.y.shape[last - 1] = m;
  args.y.shape[last] = n;
  args.y.strides[last - 1] = y_transposed ? 1 : row_stride;
  args.y.strides[last] = y_transposed ? std::max<int64_t>(1, rows) : 1;
  const int64_t used = y_transposed ? rows * n : rows * row_stride;
  std::vector<uint8_t> first;
  const bool own_workspace = chance(40);
  for (int threads = 1; threads <= 3; ++threads) {
    omp_set_num_threads(threads);
    std::vector<uint8_t> memory(used * y_bytes + 2 * kCanary, 0xa5);
    args.y.data = memory.data() + kCanary;
    size_t workspace_bytes = 0;
    if (anynpu_weight_quant_matmul_check(&args, &workspace_bytes) != ANYNPU_OK) stop(label, anynpu_last_error());
    std::vector<uint8_t> workspace(own_workspace ? workspace_bytes : 0);
    if (anynpu_weight_quant_matmul(&args, own_workspace ? workspace.data() : nullptr, workspace.size()) != ANYNPU_OK) {
      stop(label, anynpu_last_error());
    }
    if (threads == 1) first = memory;
    if (memory != first) stop(label, "threads change the result");
  }
  std::vector<bool> written(first.size(), false);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < n; ++column) {
      const int64_t at = y_transposed ? column * std::max<int64_t>(1, rows) + row : row * row_stride + column;
      for (int64_t i = 0; i < y_bytes; ++i) written[kCanary + at * y_bytes + i] = true;
      const int64_t w = batched ? row / m : 0;
      double value = 0, plain = 0, split = 0, digits = 0;
      for (int64_t block = 0; block < k; block += 256) {
        double most = 0, weight_sum = 0;
        for (int64_t kk = block; kk < std::min(k, block + 256); ++kk) {
          const int64_t g = group == 0 ? 0 : kk / group, c = single ? 0 : column;
          const double scale = s[g * s_columns + c];
          const double offset = has_offset && !coded_scale ? o[g * s_columns + c] : 0;
          const double each = x[row * k + kk], weight_value = q[(w * k + kk) * n + column];
          value += each * ((weight_value + offset) * scale);
          plain += std::fabs(each * (weight_value + offset) * scale);
          split += std::fabs(each * scale) * (std::fabs(weight_value) + std::fabs(offset));
          most = std::max(most, std::fabs(each));
          weight_sum += std::fabs((weight_value + offset) * scale);
        }
        digits += most * weight_sum;
      }
      if (has_bias) value += b[column];
      const double magnitude = std::fabs(value) + split + (has_bias ? std::fabs(b[column]) : 0);
      double bound =
          (static_cast<double>(k) + 16) * std::ldexp(magnitude, -24) + std::ldexp(digits, precise ? -15 : -23);
      const double got = decode(y_dtype, first.data() + kCanary + at * y_bytes);
      char what[200];
      if (has_quant) {
        const int64_t c = quant_single ? 0 : column;
        const double scale = scale_of(q_codes[c]), offset = std::nearbyint(std::min(255.0, std::max(-256.0, qo[c])));
        bound = bound * std::fabs(scale) + std::ldexp(std::fabs(value * scale) + std::fabs(offset), -23);
        const double exact = value * scale + offset;
        const auto clamp = [](double v) { return std::nearbyint(std::min(127.0, std::max(-128.0, v))); };
        const bool good = std::isnan(exact) ? got == 0 : got >= clamp(exact - bound) && got <= clamp(exact + bound);
        if (good) continue;
        std::snprintf(what, sizeof(what), "y[%lld, %lld] = %g, expected %g", static_cast<long long>(row),
                      static_cast<long long>(column), got, exact);
        stop(label, what);
      }
      const Format& format = format_of(y_dtype);
      if (!std::isfinite(value)) {
        if (std::isnan(value) ? std::isnan(got) : got == value) continue;
      } else if (std::isfinite(bound)) {
        if (got >= round_to(format, value - bound) && got <= round_to(format, value + bound)) continue;
      }
      std::snprintf(what, sizeof(what), "y[%lld, %lld] = %.9g, expected %.9g +- %g", static_cast<long long>(row),
                    static_cast<long long>(column), got, value, bound);
      stop(label, what);
    }
  }
  for (size_t i = 0; i < first.size(); ++i) {
    if (!written[i] && first[i] != 0xa5) stop(label, "a byte outside y was written");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  for (const char* isa : {"amx", "avx512bf16", "avx512vnni", "avx2", "portable"}) {
    if (argc > 3 && std::strcmp(isa, argv[3]) != 0) continue;
    anynpu_set_max_isa(nullptr);
    if (const char* refusal = anynpu_isa_refusal(isa)) {
      std::printf("%s: not run, %s\n", isa, refusal);
      continue;
    }
    anynpu_set_max_isa(isa);
    for (int i = 0; i < cases; ++i) run_case(isa, seed + static_cast<uint64_t>(i));
    std::printf("%s: %d cases passed\n", isa, cases);
  }
  return 0;
}
