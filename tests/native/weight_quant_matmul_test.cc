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
#include <utility>
#include <vector>

#include "cases.h"

namespace {

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

int64_t drawn_group(int64_t k) {
  if (k <= 32 || !chance(60)) return 0;
  return std::min((k - 1) / 32 * 32, 32 * pick(1, chance(50) ? 4 : 20));
}

// One call: its sizes and options, and the values of its arguments. `single_`: one for all columns; `coded_`: as int64.
struct Case {
  int bits = chance(60) ? 4 : 8;
  Layout layout = chance(50) ? kPlain : kTransposed;
  bool nz = chance(35), words = bits == 4 && chance(50), pack_ahead = chance(30);
  bool has_batches = chance(25), batched_weight = has_batches && !pack_ahead && chance(50);
  int64_t batches = has_batches ? pick(1, 3) : 1;
  int64_t m = chance(3) ? 600 : chance(5) ? 0 : chance(60) ? pick(1, 7) : pick(1, 40);
  int64_t k = chance(2) ? 0 : edge_size(600), n = chance(2) ? 0 : edge_size(m > 100 ? 130 : 600);
  int64_t group = 0;
  Format x_format = chance(40) ? kHalf : chance(60) ? kBf16 : kFloat;
  Format scale_format = chance(70) ? x_format : kFloat, bias_format = chance(50) ? kFloat : x_format;
  bool coded_scale = false, single_scale = false, has_offset = chance(50), has_bias = chance(50);
  bool has_quant = chance(25), single_quant = chance(30), coded_quant = chance(40), has_quant_offset = chance(60);
  int precise = chance(30);

  std::vector<int> weight;                              // [1 or batches][k][n]
  std::vector<double> x;                                // [batches][m][k]
  std::vector<double> scale, offset;                    // [groups][scale_columns()]
  std::vector<double> bias, quant_scale, quant_offset;  // [n], [quant_columns()]
  std::vector<int64_t> coded_scales, coded_quants;

  Case() {
    int64_t& packed = layout == kTransposed ? k : n;
    if (bits == 4) packed = round_up(packed, words ? 8 : 2);
    // One word along K: without x, prepacking cannot tell such a weight from a plain one.
    if (pack_ahead && words && layout == kTransposed && k == 8) k = 16;
    group = drawn_group(k);
    coded_scale = bits == 8 && group == 0 && chance(10);
    single_scale = group == 0 && chance(30);
    has_offset = has_offset && !coded_scale;
    draw_products();
    draw_ends();
  }

  int64_t rows() const { return batches * m; }
  int64_t groups() const { return group == 0 ? 1 : (k + group - 1) / group; }
  int64_t scale_columns() const { return single_scale ? 1 : n; }
  int64_t quant_columns() const { return single_quant ? 1 : n; }

 private:
  void draw_products() {
    weight.resize((batched_weight ? batches : 1) * k * n);
    for (int& value : weight) value = static_cast<int>(bits == 4 ? pick(-8, 7) : pick(-128, 127));
    const double spread = std::pow(2.0, static_cast<double>(pick(-6, 3)));
    x = random_values(x_format, rows() * k, spread, chance(30) ? std::pow(4.0, pick(1, 8)) : 0);
    if (chance(15)) {
      for (double& value : x) value = chance(10) ? value : 0;
    }
    if (chance(5) && !x.empty()) x[pick(0, x.size() - 1)] = chance(50) ? INFINITY : NAN;
    scale = random_values(scale_format, groups() * scale_columns(), 0.02, 0);
    offset = random_values(scale_format, groups() * scale_columns(), 4, 0);
    if (!coded_scale) return;
    for (double& value : scale) {
      coded_scales.push_back(encode_scale(value, 0));
      value = scale_of(coded_scales.back());
    }
  }

  void draw_ends() {
    bias = random_values(bias_format, n, 1, 0);
    quant_scale = random_values(kFloat, quant_columns(), 5, 0);
    quant_offset = random_values(kFloat, quant_columns(), has_quant_offset ? 60 : 0, 0);
    for (int64_t i = 0; i < quant_columns(); ++i) {
      coded_quants.push_back(encode_scale(quant_scale[i], quant_offset[i]));
    }
  }
};

std::string label_of(const Case& c, const char* isa, uint64_t seed) {
  std::string text = std::string("isa ") + isa + " seed " + std::to_string(seed);
  const auto add = [&](const char* name, int64_t value) {
    text += std::string(" ") + name + " " + std::to_string(value);
  };
  add("batches", c.batches), add("m", c.m), add("k", c.k), add("n", c.n), add("bits", c.bits), add("group", c.group);
  add("x", c.x_format.dtype), add("scale", c.scale_format.dtype), add("inner_precise", c.precise);
  text += c.layout == kPlain ? " plain" : " transposed";
  for (const auto& [has, name] :
       {std::pair(c.nz, " nz"), std::pair(c.words, " words"), std::pair(c.pack_ahead, " prepacked"),
        std::pair(c.has_offset, " offset"), std::pair(c.has_bias, " bias"), std::pair(c.has_quant, " quant")}) {
    if (has) text += name;
  }
  return text;
}

// The tensors of a case, but for y.
struct Arguments {
  Buffer x, weight, scale, offset, bias, quant_scale, quant_offset;

  explicit Arguments(const Case& c) {
    x = c.has_batches ? floats(c.x_format.dtype, {c.batches, c.m, c.k}, c.x)
                      : floats(c.x_format.dtype, {c.m, c.k}, c.x);
    weight = weights(c.weight, c.batched_weight ? c.batches : 1, c.k, c.n, c.bits, c.layout, c.nz, c.words,
                     c.batched_weight);
    if (c.pack_ahead) weight = prepacked(weight);
    std::vector<int64_t> shape = {c.scale_columns()};
    if (c.group != 0 || chance(50)) shape.insert(shape.begin(), c.groups());
    scale = c.coded_scale ? codes(c.coded_scales) : floats(c.scale_format.dtype, shape, c.scale);
    offset = floats(c.scale_format.dtype, shape, c.offset);
    bias = floats(c.bias_format.dtype, {c.n}, c.bias);
    quant_scale = c.coded_quant ? codes(c.coded_quants) : floats(ANYNPU_FLOAT32, {c.quant_columns()}, c.quant_scale);
    quant_offset = floats(ANYNPU_FLOAT32, {c.quant_columns()}, c.quant_offset);
  }

  anynpu_weight_quant_matmul_args of(const Case& c) const {
    anynpu_weight_quant_matmul_args args = {};
    args.x = x.tensor;
    args.weight = weight.tensor;
    args.scale = scale.tensor;
    if (c.has_offset) args.offset = offset.tensor;
    if (c.has_bias) args.bias = bias.tensor;
    if (c.has_quant) args.quant_scale = quant_scale.tensor;
    if (c.has_quant && c.has_quant_offset && !c.coded_quant) args.quant_offset = quant_offset.tensor;
    args.group_size = c.group;
    args.inner_precise = c.precise;
    return args;
  }
};

// y in a layout of its own, between canaries.
struct Output {
  anynpu_tensor tensor = {};
  int64_t rows, columns, row_stride, column_stride, bytes;
  std::vector<uint8_t> memory;

  explicit Output(const Case& c)
      : rows(c.rows()), columns(c.n), row_stride(c.n + (chance(30) ? pick(1, 7) : 0)), column_stride(1) {
    if (chance(10) && !c.has_batches) {
      row_stride = 1;
      column_stride = std::max<int64_t>(1, rows);
    }
    tensor.dtype = c.has_quant ? static_cast<int32_t>(ANYNPU_INT8) : c.x_format.dtype;
    tensor.format = ANYNPU_ND;
    tensor.ndim = c.has_batches ? 3 : 2;
    const int last = tensor.ndim - 1;
    if (c.has_batches) {
      tensor.shape[0] = c.batches;
      tensor.strides[0] = c.m * row_stride;
    }
    tensor.shape[last - 1] = c.m;
    tensor.shape[last] = c.n;
    tensor.strides[last - 1] = row_stride;
    tensor.strides[last] = column_stride;
    bytes = bytes_of(tensor.dtype);
  }

  void clear() {
    const int64_t used = rows == 0 || columns == 0 ? 0 : (rows - 1) * row_stride + (columns - 1) * column_stride + 1;
    memory.assign(used * bytes + 2 * kCanary, 0xa5);
    tensor.data = memory.data() + kCanary;
  }
  int64_t place(int64_t row, int64_t column) const {
    return kCanary + (row * row_stride + column * column_stride) * bytes;
  }
  bool is_clean_around_y() const {
    std::vector<uint8_t> rest = memory;
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        std::fill_n(rest.begin() + place(row, column), bytes, 0xa5);
      }
    }
    return std::all_of(rest.begin(), rest.end(), [](uint8_t byte) { return byte == 0xa5; });
  }
};

// Fills y, with 1, 2 and 3 threads alike.
void run(anynpu_weight_quant_matmul_args args, const std::string& label, Output* y) {
  const bool own_workspace = chance(40);
  std::vector<uint8_t> first;
  for (int threads = 1; threads <= 3; ++threads) {
    omp_set_num_threads(threads);
    y->clear();
    args.y = y->tensor;
    size_t bytes = 0;
    if (anynpu_weight_quant_matmul_check(&args, &bytes) != ANYNPU_OK) stop(label, anynpu_last_error());
    std::vector<uint8_t> workspace(own_workspace ? bytes : 0);
    if (anynpu_weight_quant_matmul(&args, own_workspace ? workspace.data() : nullptr, workspace.size()) != ANYNPU_OK) {
      stop(label, anynpu_last_error());
    }
    if (threads == 1) first = y->memory;
    if (y->memory != first) stop(label, "threads change the result");
  }
}

struct Expected {
  double value, bound;
};

// An element of x @ ((weight + offset) * scale) + bias in double, and what a kernel may be off before it rounds y.
Expected product(const Case& c, int64_t row, int64_t column) {
  const int64_t matrix = c.batched_weight ? row / c.m : 0;
  double value = 0, split = 0, digits = 0;
  for (int64_t block = 0; block < c.k; block += 256) {
    double most = 0, weight_sum = 0;
    for (int64_t k = block; k < std::min(c.k, block + 256); ++k) {
      const int64_t at = (c.group == 0 ? 0 : k / c.group) * c.scale_columns() + (c.single_scale ? 0 : column);
      const double scale = c.scale[at], offset = c.has_offset ? c.offset[at] : 0;
      const double each = c.x[row * c.k + k], weight = c.weight[(matrix * c.k + k) * c.n + column];
      value += each * ((weight + offset) * scale);
      split += std::fabs(each * scale) * (std::fabs(weight) + std::fabs(offset));
      most = std::max(most, std::fabs(each));
      weight_sum += std::fabs((weight + offset) * scale);
    }
    digits += most * weight_sum;
  }
  const double bias = c.has_bias ? c.bias[column] : 0;
  value += bias;
  const double magnitude = std::fabs(value) + split + std::fabs(bias);
  return {value,
          (static_cast<double>(c.k) + 16) * std::ldexp(magnitude, -24) + std::ldexp(digits, c.precise ? -15 : -23)};
}

// The same after the quantisation to int8.
Expected quantised(const Case& c, Expected product, int64_t column) {
  const int64_t at = c.single_quant ? 0 : column;
  const double scale = scale_of(c.coded_quants[at]);
  const double offset = std::nearbyint(std::min(255.0, std::max(-256.0, c.quant_offset[at])));
  const double scaled = product.value * scale;
  return {scaled + offset, product.bound * std::fabs(scale) + std::ldexp(std::fabs(scaled) + std::fabs(offset), -23)};
}

bool is_within(const Expected& expected, int32_t dtype, double got) {
  const double low = expected.value - expected.bound, high = expected.value + expected.bound;
  if (dtype == ANYNPU_INT8) {
    const auto clamp = [](double v) { return std::nearbyint(std::min(127.0, std::max(-128.0, v))); };
    return std::isnan(expected.value) ? got == 0 : got >= clamp(low) && got <= clamp(high);
  }
  if (std::isnan(expected.value)) return std::isnan(got);
  if (std::isinf(expected.value)) return got == expected.value;
  return std::isfinite(expected.bound) && got >= round_to(format_of(dtype), low) &&
         got <= round_to(format_of(dtype), high);
}

void check_values(const Case& c, const Output& y, const std::string& label) {
  for (int64_t row = 0; row < y.rows; ++row) {
    for (int64_t column = 0; column < y.columns; ++column) {
      Expected expected = product(c, row, column);
      if (c.has_quant) expected = quantised(c, expected, column);
      const double got = decode(y.tensor.dtype, y.memory.data() + y.place(row, column));
      if (is_within(expected, y.tensor.dtype, got)) continue;
      char what[200];
      std::snprintf(what, sizeof(what), "y[%lld, %lld] = %.9g, expected %.9g +- %g", static_cast<long long>(row),
                    static_cast<long long>(column), got, expected.value, expected.bound);
      stop(label, what);
    }
  }
}

void run_case(const char* isa, uint64_t seed) {
  generator.seed(seed);
  const Case drawn;
  const std::string label = label_of(drawn, isa, seed);
  const Arguments arguments(drawn);
  Output y(drawn);
  run(arguments.of(drawn), label, &y);
  check_values(drawn, y, label);
  if (!y.is_clean_around_y()) stop(label, "a byte outside y was written");
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1;
  for (const char* isa : {"amx", "avx512bf16", "avx512vnni", "avxvnni", "avx2", "neon", "portable"}) {
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
