// SPDX-License-Identifier: Apache-2.0
// The exponentials of a block come before the rest: the CPU looks ahead over a hundred and some operations, and so finds
// more of their long chains there.
#define ANYNPU_KERNEL_TIER avx2
#include "simd/vec_avx2.h"

#include "ops/swiglu/swiglu.h"
#include "simd/float_types.h"
#include "simd/sigmoid.h"

namespace anynpu {
namespace {

constexpr int kPair = 2 * kLanes;  // values
constexpr int kPairs = 8;          // of a block

// kPair values, in an order that store_pair knows.
template <typename Type>
inline void load_pair(const typename Type::Stored* from, Vec (&pair)[2]) {
  for (int i = 0; i < 2; ++i) pair[i] = Type::load_vector(from + i * kLanes);
}
template <typename Type>
inline void store_pair(typename Type::Stored* to, const Vec (&pair)[2]) {
  for (int i = 0; i < 2; ++i) Type::store_vector(to + i * kLanes, pair[i]);
}

// Those at even places, then those at odd ones.
template <>
inline void load_pair<Bfloat16>(const uint16_t* from, Vec (&pair)[2]) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  pair[0] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  pair[1] = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536)));
}
// NaNs come from bfloat16, so that their lower halves are 0 and rounding leaves them as they are.
template <>
inline void store_pair<Bfloat16>(uint16_t* to, const Vec (&pair)[2]) {
  const auto rounded = [](Vec value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  };
  const __m256i even = _mm256_srli_epi32(rounded(pair[0]), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_blend_epi16(even, rounded(pair[1]), 0xaa));
}

// `count` is a multiple of kPair.
template <typename Type, typename T = typename Type::Stored>
void activate_pairs(const T* gate, const T* linear, int64_t count, T* y) {
  Vec powers[kPairs][2];
  for (int64_t at = 0; at < count; at += kPairs * kPair) {
    const int pairs = at + kPairs * kPair < count ? kPairs : static_cast<int>((count - at) / kPair);
    for (int i = 0; i < pairs; ++i) {
      load_pair<Type>(gate + at + i * kPair, powers[i]);
      sigmoid_exponentials(powers[i]);
    }
    for (int i = 0; i < pairs; ++i) {
      Vec g[2], u[2];
      load_pair<Type>(gate + at + i * kPair, g);
      load_pair<Type>(linear + at + i * kPair, u);
      for (int j = 0; j < 2; ++j) g[j] = multiply(multiply(g[j], sigmoid_of_exponential(powers[i][j])), u[j]);
      store_pair<Type>(y + at + i * kPair, g);
    }
  }
}

template <typename Type, typename T = typename Type::Stored>
void activate_as(const T* gate, const T* linear, int64_t count, T* y) {
  const int64_t whole = count / kPair * kPair;
  activate_pairs<Type>(gate, linear, whole, y);
  if (whole == count) return;
  const size_t bytes = static_cast<size_t>(count - whole) * sizeof(T);
  T parts[3][kPair] = {};
  memcpy(parts[0], gate + whole, bytes);
  memcpy(parts[1], linear + whole, bytes);
  activate_pairs<Type>(parts[0], parts[1], kPair, parts[2]);
  memcpy(y + whole, parts[2], bytes);
}

void activate(int32_t dtype, const void* gate, const void* linear, int64_t count, void* y) {
  with_float_type(dtype, [&](auto type) {
    using T = typename decltype(type)::Stored;
    activate_as<decltype(type)>(static_cast<const T*>(gate), static_cast<const T*>(linear), count, static_cast<T*>(y));
  });
}

}  // namespace

ANYNPU_DEFINE_KERNEL(SwigluKernel, swiglu) = {Isa::ANYNPU_KERNEL_TIER, activate};

}  // namespace anynpu
