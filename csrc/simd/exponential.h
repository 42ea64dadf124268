// SPDX-License-Identifier: Apache-2.0
// Included after the vec header of a kernel unit.
#pragma once

namespace anynpu {
namespace {

// Of kCount vectors, step by step: one alone would wait for each of its own. Relative error below 2^-22 for values <=
// 87; below -87 they stay at exp(-87). NaN with zeros in its lowest bits stays NaN. With kScale > 0, 2^kScale times that, for
// values <= 0 and down to -87 - kScale * ln 2: results that would be no normal numbers keep their digits.
template <int kCount, int kScale = 0>
inline __attribute__((always_inline)) void exponentials(Vec (&values)[kCount]) {
  const Vec rounder = broadcast(12582912.0f);  // 1.5 * 2^23
  Vec exponent[kCount], p[kCount];
  const auto each = [](const auto& fn) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) fn(i);
  };
  each([&](int i) { values[i] = maximum(broadcast(-87.0f - kScale * 0.69f), values[i]); });
  each([&](int i) { exponent[i] = add(multiply(values[i], broadcast(1.44269504f)), rounder); });
  each([&](int i) { p[i] = subtract(exponent[i], rounder); });
  each([&](int i) { values[i] = multiply_add(p[i], broadcast(-0.693359375f), values[i]); });
  each([&](int i) { values[i] = multiply_add(p[i], broadcast(2.12194440e-4f), values[i]); });
  // The polynomial whose relative error is least, 2^-28, among those that begin with 1 + value.
  each([&](int i) { p[i] = multiply_add(broadcast(1.3814541e-3f), values[i], broadcast(8.3687454e-3f)); });
  each([&](int i) { p[i] = multiply_add(p[i], values[i], broadcast(4.1668389e-2f)); });
  each([&](int i) { p[i] = multiply_add(p[i], values[i], broadcast(1.66665211e-1f)); });
  each([&](int i) { p[i] = multiply_add(p[i], values[i], broadcast(4.9999994e-1f)); });
  each([&](int i) { p[i] = multiply_add(p[i], values[i], broadcast(1.0f)); });
  each([&](int i) { p[i] = multiply_add(p[i], values[i], broadcast(1.0f)); });
  if constexpr (kScale > 0) each([&](int i) { exponent[i] = add(exponent[i], broadcast(kScale)); });
  each([&](int i) { values[i] = shift_exponent(p[i], exponent[i]); });
}

inline Vec exponential(Vec value) {
  Vec values[1] = {value};
  exponentials(values);
  return values[0];
}

}  // namespace
}  // namespace anynpu
