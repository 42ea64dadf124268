// SPDX-License-Identifier: Apache-2.0
// Included after the vec header of a kernel unit.
#pragma once

#include "simd/exponential.h"

namespace anynpu {
namespace {

// Of vectors, step by step, as far as exponentials of values are finite.
template <int kCount>
inline __attribute__((always_inline)) void sigmoid_exponentials(Vec (&values)[kCount]) {
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) values[i] = minimum(broadcast(87.0f), values[i]);
  exponentials(values);
}

// The sigmoid of a value from its exponential; below -87 exactly 0, which is why what the exponential leaves there is
// subtracted.
inline Vec sigmoid_of_exponential(Vec power) {
  const auto quotient = [](Vec of) { return divide(of, add(broadcast(1.0f), of)); };
  return subtract(quotient(power), quotient(exponential(broadcast(-87.0f))));
}

template <int kCount>
inline __attribute__((always_inline)) void sigmoids(Vec (&values)[kCount]) {
  sigmoid_exponentials(values);
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) values[i] = sigmoid_of_exponential(values[i]);
}

inline Vec sigmoid(Vec value) {
  Vec values[1] = {value};
  sigmoids(values);
  return values[0];
}

}  // namespace
}  // namespace anynpu
