// SPDX-License-Identifier: Apache-2.0
// Included after the vec header of a kernel unit.
#pragma once

namespace anynpu {
namespace {

// Relative error below 2^-22 for value <= 87; below -87 it stays at exp(-87). NaN stays NaN.
inline Vec exponential(Vec value) {
  const Vec x = maximum(broadcast(-87.0f), value);
  const Vec rounder = broadcast(12582912.0f);  // 1.5 * 2^23
  const Vec exponent = add(multiply(x, broadcast(1.44269504f)), rounder);
  const Vec n = subtract(exponent, rounder);
  Vec r = multiply_add(n, broadcast(-0.693359375f), x);
  r = multiply_add(n, broadcast(2.12194440e-4f), r);
  Vec p = broadcast(1.9875691500e-4f);
  p = multiply_add(p, r, broadcast(1.3981999507e-3f));
  p = multiply_add(p, r, broadcast(8.3334519073e-3f));
  p = multiply_add(p, r, broadcast(4.1665795894e-2f));
  p = multiply_add(p, r, broadcast(1.6666665459e-1f));
  p = multiply_add(p, r, broadcast(5.0000001201e-1f));
  p = multiply_add(multiply(p, r), r, add(r, broadcast(1.0f)));
  return shift_exponent(p, exponent);
}

}  // namespace
}  // namespace anynpu
