// SPDX-License-Identifier: Apache-2.0
// The AVX-512 intrinsics that the kernels use, in AVX2: the library anynpu_emulated includes this file first in every
// AVX-512 unit, and the tests of those tiers run on any CPU with AVX2. A name in namespace anynpu hides the one of
// <immintrin.h>. Where one is missing, GCC finds no conversion or says "target specific option mismatch": add it here,
// and to tests/native/avx512_calls.inc, with which both are compared on a CPU that has both.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wignored-attributes"  // __m256i as an argument of a template

namespace anynpu {
namespace {

#define ANYNPU_EMULATED inline __attribute__((always_inline, unused))

struct alignas(64) __m512i {
  __m256i low, high;
};
struct alignas(64) __m512 {
  __m256 low, high;
};

// A vector as an array, and back.
template <typename T, typename V>
struct Elements {
  static constexpr int count = sizeof(V) / sizeof(T);
  T at[count];
  Elements() = default;
  explicit ANYNPU_EMULATED Elements(const V& vector) { memcpy(at, &vector, sizeof(at)); }
  ANYNPU_EMULATED operator V() const {
    V vector;
    memcpy(&vector, at, sizeof(at));
    return vector;
  }
};

// The vector whose element i is element(i).
template <typename T, typename V = __m512i, typename Element>
ANYNPU_EMULATED V generate(const Element& element) {
  Elements<T, V> out;
  for (int i = 0; i < out.count; ++i) out.at[i] = element(i);
  return out;
}

template <typename T, typename V, typename Test>
ANYNPU_EMULATED uint64_t mask_of(V a, V b, const Test& test) {
  const Elements<T, V> of_a(a), of_b(b);
  uint64_t mask = 0;
  for (int i = 0; i < of_a.count; ++i) mask |= uint64_t{test(of_a.at[i], of_b.at[i])} << i;
  return mask;
}

template <typename T, typename V>
ANYNPU_EMULATED V select(uint64_t mask, V set, V clear) {
  const Elements<T, V> of_set(set), of_clear(clear);
  return generate<T, V>([&](int i) { return mask >> i & 1 ? of_set.at[i] : of_clear.at[i]; });
}

// Memory, constants, casts.
ANYNPU_EMULATED __m512i _mm512_loadu_si512(const void* from) {
  const __m256i* halves = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
ANYNPU_EMULATED __m512i _mm512_load_si512(const void* from) {
  return _mm512_loadu_si512(__builtin_assume_aligned(from, 64));
}
ANYNPU_EMULATED __m512 _mm512_loadu_ps(const void* from) {
  const float* floats = static_cast<const float*>(from);
  return {_mm256_loadu_ps(floats), _mm256_loadu_ps(floats + 8)};
}
ANYNPU_EMULATED void _mm512_storeu_si512(void* to, __m512i value) { memcpy(to, &value, sizeof(value)); }
ANYNPU_EMULATED void _mm512_store_si512(void* to, __m512i value) {
  _mm512_storeu_si512(__builtin_assume_aligned(to, 64), value);
}
ANYNPU_EMULATED void _mm512_storeu_ps(void* to, __m512 value) { memcpy(to, &value, sizeof(value)); }

#define ANYNPU_EMULATE_MASKED_MEMORY(prefix, V, element, suffix)                                 \
  ANYNPU_EMULATED V prefix##_maskz_loadu_##suffix(uint64_t mask, const void* from) {             \
    const element* elements = static_cast<const element*>(from);                                 \
    return generate<element, V>([&](int i) { return mask >> i & 1 ? elements[i] : element{}; }); \
  }                                                                                              \
  ANYNPU_EMULATED void prefix##_mask_storeu_##suffix(void* to, uint64_t mask, V value) {         \
    const Elements<element, V> elements(value);                                                  \
    for (int i = 0; i < elements.count; ++i) {                                                   \
      if (mask >> i & 1) static_cast<element*>(to)[i] = elements.at[i];                          \
    }                                                                                            \
  }
ANYNPU_EMULATE_MASKED_MEMORY(_mm256, __m256i, int8_t, epi8)
ANYNPU_EMULATE_MASKED_MEMORY(_mm512, __m512i, int8_t, epi8)
ANYNPU_EMULATE_MASKED_MEMORY(_mm512, __m512i, int32_t, epi32)
ANYNPU_EMULATE_MASKED_MEMORY(_mm512, __m512, float, ps)

ANYNPU_EMULATED __m512i both(__m256i half) { return {half, half}; }
ANYNPU_EMULATED __m512i _mm512_setzero_si512() { return both(_mm256_setzero_si256()); }
ANYNPU_EMULATED __m512 _mm512_setzero_ps() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
ANYNPU_EMULATED __m512i _mm512_set1_epi8(char value) { return both(_mm256_set1_epi8(value)); }
ANYNPU_EMULATED __m512i _mm512_set1_epi16(short value) { return both(_mm256_set1_epi16(value)); }
ANYNPU_EMULATED __m512i _mm512_set1_epi32(int value) { return both(_mm256_set1_epi32(value)); }
ANYNPU_EMULATED __m512i _mm512_set1_epi64(long long value) { return both(_mm256_set1_epi64x(value)); }
ANYNPU_EMULATED __m512 _mm512_set1_ps(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
ANYNPU_EMULATED __m512i _mm512_set4_epi32(int d, int c, int b, int a) {
  return both(_mm256_set_epi32(d, c, b, a, d, c, b, a));
}
// _mm512_setr_* are macros that call these.
ANYNPU_EMULATED __m512i _mm512_set_epi64(long long h, long long g, long long f, long long e, long long d, long long c,
                                         long long b, long long a) {
  return {_mm256_set_epi64x(d, c, b, a), _mm256_set_epi64x(h, g, f, e)};
}
ANYNPU_EMULATED __m512i _mm512_set_epi32(int p, int o, int n, int m, int l, int k, int j, int i, int h, int g, int f,
                                         int e, int d, int c, int b, int a) {
  return {_mm256_set_epi32(h, g, f, e, d, c, b, a), _mm256_set_epi32(p, o, n, m, l, k, j, i)};
}
ANYNPU_EMULATED __m512i _mm512_broadcast_i32x4(__m128i value) { return both(_mm256_broadcastsi128_si256(value)); }

ANYNPU_EMULATED __m512 _mm512_castsi512_ps(__m512i value) {
  return {_mm256_castsi256_ps(value.low), _mm256_castsi256_ps(value.high)};
}
ANYNPU_EMULATED __m512i _mm512_castps_si512(__m512 value) {
  return {_mm256_castps_si256(value.low), _mm256_castps_si256(value.high)};
}
ANYNPU_EMULATED __m512i _mm512_castsi256_si512(__m256i value) { return {value, _mm256_setzero_si256()}; }
ANYNPU_EMULATED __m256i _mm512_castsi512_si256(__m512i value) { return value.low; }
ANYNPU_EMULATED __m128i _mm512_castsi512_si128(__m512i value) { return _mm256_castsi256_si128(value.low); }
ANYNPU_EMULATED __m256 _mm512_castps512_ps256(__m512 value) { return value.low; }
ANYNPU_EMULATED __m512i _mm512_inserti64x4(__m512i into, __m256i value, int half) {
  return half % 2 == 0 ? __m512i{value, into.high} : __m512i{into.low, value};
}
ANYNPU_EMULATED __m256i _mm512_extracti64x4_epi64(__m512i from, int half) {
  return half % 2 == 0 ? from.low : from.high;
}
ANYNPU_EMULATED __m256 _mm512_extractf32x8_ps(__m512 from, int half) { return half % 2 == 0 ? from.low : from.high; }

// What AVX2 does to each half, and the same under a mask.
#define ANYNPU_EMULATE_BINARY_AS(V, element, name, half)                                                             \
  ANYNPU_EMULATED V _mm512_##name(V a, V b) { return {_mm256_##half(a.low, b.low), _mm256_##half(a.high, b.high)}; } \
  ANYNPU_EMULATED V _mm512_mask_##name(V from, uint64_t mask, V a, V b) {                                            \
    return select<element>(mask, _mm512_##name(a, b), from);                                                         \
  }                                                                                                                  \
  ANYNPU_EMULATED V _mm512_maskz_##name(uint64_t mask, V a, V b) {                                                   \
    return select<element>(mask, _mm512_##name(a, b), V{});                                                          \
  }
#define ANYNPU_EMULATE_BINARY(V, element, name) ANYNPU_EMULATE_BINARY_AS(V, element, name, name)
#define ANYNPU_EMULATE_BINARY_8_TO_32(name)             \
  ANYNPU_EMULATE_BINARY(__m512i, int8_t, name##_epi8)   \
  ANYNPU_EMULATE_BINARY(__m512i, int16_t, name##_epi16) \
  ANYNPU_EMULATE_BINARY(__m512i, int32_t, name##_epi32)
#define ANYNPU_EMULATE_BINARY_8_TO_64(name) \
  ANYNPU_EMULATE_BINARY_8_TO_32(name)       \
  ANYNPU_EMULATE_BINARY(__m512i, int64_t, name##_epi64)
ANYNPU_EMULATE_BINARY_8_TO_64(add)
ANYNPU_EMULATE_BINARY_8_TO_64(sub)
ANYNPU_EMULATE_BINARY_8_TO_64(unpacklo)
ANYNPU_EMULATE_BINARY_8_TO_64(unpackhi)
ANYNPU_EMULATE_BINARY_8_TO_32(min)
ANYNPU_EMULATE_BINARY_8_TO_32(max)
ANYNPU_EMULATE_BINARY(__m512i, uint8_t, min_epu8)
ANYNPU_EMULATE_BINARY(__m512i, uint8_t, max_epu8)
ANYNPU_EMULATE_BINARY(__m512i, uint8_t, subs_epu8)
ANYNPU_EMULATE_BINARY(__m512i, uint32_t, min_epu32)
ANYNPU_EMULATE_BINARY(__m512i, uint32_t, max_epu32)
ANYNPU_EMULATE_BINARY(__m512i, int8_t, shuffle_epi8)
ANYNPU_EMULATE_BINARY(__m512i, int16_t, maddubs_epi16)
ANYNPU_EMULATE_BINARY(__m512i, int32_t, madd_epi16)
ANYNPU_EMULATE_BINARY(__m512i, int16_t, mullo_epi16)
ANYNPU_EMULATE_BINARY(__m512i, int32_t, mullo_epi32)
ANYNPU_EMULATE_BINARY(__m512i, int16_t, packs_epi32)
ANYNPU_EMULATE_BINARY(__m512i, int8_t, packs_epi16)
ANYNPU_EMULATE_BINARY(__m512i, uint8_t, packus_epi16)
ANYNPU_EMULATE_BINARY(__m512i, int32_t, sllv_epi32)
ANYNPU_EMULATE_BINARY(__m512i, int64_t, sllv_epi64)
ANYNPU_EMULATE_BINARY(__m512i, int32_t, srlv_epi32)
ANYNPU_EMULATE_BINARY(__m512i, int64_t, srlv_epi64)
ANYNPU_EMULATED __m512i _mm512_sad_epu8(__m512i a, __m512i b) {
  return {_mm256_sad_epu8(a.low, b.low), _mm256_sad_epu8(a.high, b.high)};
}
ANYNPU_EMULATED __m512i _mm512_sllv_epi16(__m512i value, __m512i counts) {
  const Elements<uint16_t, __m512i> from(value), by(counts);
  return generate<uint16_t>([&](int i) { return by.at[i] < 16 ? from.at[i] << by.at[i] : 0; });
}
ANYNPU_EMULATED __m512i _mm512_mullo_epi64(__m512i a, __m512i b) {
  const Elements<uint64_t, __m512i> of_a(a), of_b(b);
  return generate<uint64_t>([&](int i) { return of_a.at[i] * of_b.at[i]; });
}
ANYNPU_EMULATE_BINARY_AS(__m512i, int32_t, and_epi32, and_si256)
ANYNPU_EMULATE_BINARY_AS(__m512i, int32_t, or_epi32, or_si256)
ANYNPU_EMULATE_BINARY_AS(__m512i, int32_t, xor_epi32, xor_si256)
ANYNPU_EMULATE_BINARY_AS(__m512i, int32_t, andnot_epi32, andnot_si256)
ANYNPU_EMULATE_BINARY(__m512, float, add_ps)
ANYNPU_EMULATE_BINARY(__m512, float, sub_ps)
ANYNPU_EMULATE_BINARY(__m512, float, mul_ps)
ANYNPU_EMULATE_BINARY(__m512, float, div_ps)
ANYNPU_EMULATE_BINARY(__m512, float, min_ps)
ANYNPU_EMULATE_BINARY(__m512, float, max_ps)
ANYNPU_EMULATE_BINARY(__m512, float, unpacklo_ps)
ANYNPU_EMULATE_BINARY(__m512, float, unpackhi_ps)
ANYNPU_EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return _mm512_and_epi32(a, b); }
ANYNPU_EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return _mm512_or_epi32(a, b); }
ANYNPU_EMULATED __m512i _mm512_xor_si512(__m512i a, __m512i b) { return _mm512_xor_epi32(a, b); }
ANYNPU_EMULATED __m512i _mm512_andnot_si512(__m512i a, __m512i b) { return _mm512_andnot_epi32(a, b); }

#define ANYNPU_EMULATE_TERNARY(name)                                                    \
  ANYNPU_EMULATED __m512 _mm512_##name(__m512 a, __m512 b, __m512 c) {                  \
    return {_mm256_##name(a.low, b.low, c.low), _mm256_##name(a.high, b.high, c.high)}; \
  }
ANYNPU_EMULATE_TERNARY(fmadd_ps)
ANYNPU_EMULATE_TERNARY(fmsub_ps)
ANYNPU_EMULATE_TERNARY(fnmadd_ps)

#define ANYNPU_EMULATE_SHIFT(name, Count)                                       \
  ANYNPU_EMULATED __m512i _mm512_##name(__m512i value, Count count) {           \
    return {_mm256_##name(value.low, count), _mm256_##name(value.high, count)}; \
  }
ANYNPU_EMULATE_SHIFT(slli_epi16, unsigned)
ANYNPU_EMULATE_SHIFT(slli_epi32, unsigned)
ANYNPU_EMULATE_SHIFT(slli_epi64, unsigned)
ANYNPU_EMULATE_SHIFT(srli_epi16, unsigned)
ANYNPU_EMULATE_SHIFT(srli_epi32, unsigned)
ANYNPU_EMULATE_SHIFT(srli_epi64, unsigned)
ANYNPU_EMULATE_SHIFT(srai_epi16, unsigned)
ANYNPU_EMULATE_SHIFT(srai_epi32, unsigned)
ANYNPU_EMULATE_SHIFT(srl_epi32, __m128i)
ANYNPU_EMULATE_SHIFT(shuffle_epi32, const int)

#define ANYNPU_EMULATE_UNARY(To, From, name) \
  ANYNPU_EMULATED To _mm512_##name(From value) { return {_mm256_##name(value.low), _mm256_##name(value.high)}; }
ANYNPU_EMULATE_UNARY(__m512i, __m512i, abs_epi8)
ANYNPU_EMULATE_UNARY(__m512i, __m512i, abs_epi32)
ANYNPU_EMULATE_UNARY(__m512, __m512i, cvtepi32_ps)
ANYNPU_EMULATE_UNARY(__m512i, __m512, cvtps_epi32)
ANYNPU_EMULATE_UNARY(__m512i, __m512, cvttps_epi32)
ANYNPU_EMULATED __m512 _mm512_abs_ps(__m512 value) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(value), magnitude));
}
ANYNPU_EMULATED __m512i _mm512_cvt_roundps_epi32(__m512 value, const int rounding) {
  return {_mm256_cvtps_epi32(_mm256_round_ps(value.low, rounding)),
          _mm256_cvtps_epi32(_mm256_round_ps(value.high, rounding))};
}
ANYNPU_EMULATED __m512 _mm512_cvtph_ps(__m256i halves) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)), _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
}
ANYNPU_EMULATED __m256i _mm512_cvtps_ph(__m512 value, const int rounding) {
  return _mm256_set_m128i(_mm256_cvtps_ph(value.high, rounding), _mm256_cvtps_ph(value.low, rounding));
}

// Toward zero, the only rounding used: float products are exact in double, and a float beyond it is one step too far.
ANYNPU_EMULATED __m512 _mm512_mul_round_ps(__m512 a, __m512 b, const int) {
  const Elements<float, __m512> of_a(a), of_b(b);
  return generate<float, __m512>([&](int i) {
    const double exact = double{of_a.at[i]} * of_b.at[i];
    const float nearest = static_cast<float>(exact);
    const bool beyond = __builtin_fabs(double{nearest}) > __builtin_fabs(exact);
    return beyond ? __builtin_nextafterf(nearest, 0.0f) : nearest;
  });
}

// Conversions of integers, which cut what does not fit; cvts* saturates.
#define ANYNPU_EMULATE_CONVERT(To, to_element, From, from_element, name)                         \
  ANYNPU_EMULATED To _mm512_##name(From value) {                                                 \
    const Elements<from_element, From> from(value);                                              \
    return generate<to_element, To>([&](int i) { return static_cast<to_element>(from.at[i]); }); \
  }
ANYNPU_EMULATE_CONVERT(__m512i, int16_t, __m256i, int8_t, cvtepi8_epi16)
ANYNPU_EMULATE_CONVERT(__m512i, int16_t, __m256i, uint8_t, cvtepu8_epi16)
ANYNPU_EMULATE_CONVERT(__m512i, int32_t, __m128i, int8_t, cvtepi8_epi32)
ANYNPU_EMULATE_CONVERT(__m512i, int32_t, __m128i, uint8_t, cvtepu8_epi32)
ANYNPU_EMULATE_CONVERT(__m512i, int32_t, __m256i, int16_t, cvtepi16_epi32)
ANYNPU_EMULATE_CONVERT(__m512i, int32_t, __m256i, uint16_t, cvtepu16_epi32)
ANYNPU_EMULATE_CONVERT(__m512i, int64_t, __m256i, uint32_t, cvtepu32_epi64)
ANYNPU_EMULATE_CONVERT(__m128i, int8_t, __m512i, int32_t, cvtepi32_epi8)
ANYNPU_EMULATE_CONVERT(__m256i, int16_t, __m512i, int32_t, cvtepi32_epi16)
ANYNPU_EMULATE_CONVERT(__m256i, int8_t, __m512i, int16_t, cvtepi16_epi8)
ANYNPU_EMULATED __m128i _mm512_cvtsepi32_epi8(__m512i value) {
  const __m512i low = _mm512_max_epi32(value, _mm512_set1_epi32(-128));
  return _mm512_cvtepi32_epi8(_mm512_min_epi32(low, _mm512_set1_epi32(127)));
}

// Masks.
#define ANYNPU_EMULATE_COMPARE(element, suffix)                                 \
  ANYNPU_EMULATED uint64_t _mm512_cmpeq_##suffix##_mask(__m512i a, __m512i b) { \
    return mask_of<element>(a, b, [](element x, element y) { return x == y; }); \
  }                                                                             \
  ANYNPU_EMULATED uint64_t _mm512_cmpgt_##suffix##_mask(__m512i a, __m512i b) { \
    return mask_of<element>(a, b, [](element x, element y) { return x > y; });  \
  }                                                                             \
  ANYNPU_EMULATED uint64_t _mm512_cmplt_##suffix##_mask(__m512i a, __m512i b) { \
    return mask_of<element>(a, b, [](element x, element y) { return x < y; });  \
  }
ANYNPU_EMULATE_COMPARE(int8_t, epi8)
ANYNPU_EMULATE_COMPARE(uint8_t, epu8)
ANYNPU_EMULATE_COMPARE(int32_t, epi32)
ANYNPU_EMULATE_COMPARE(uint32_t, epu32)

#define ANYNPU_EMULATE_MASKS(element, suffix)                                                 \
  ANYNPU_EMULATED uint64_t _mm512_test_##suffix##_mask(__m512i a, __m512i b) {                \
    return mask_of<element>(a, b, [](element x, element y) { return (x & y) != 0; });         \
  }                                                                                           \
  ANYNPU_EMULATED __m512i _mm512_mask_mov_##suffix(__m512i from, uint64_t mask, __m512i to) { \
    return select<element>(mask, to, from);                                                   \
  }                                                                                           \
  ANYNPU_EMULATED __m512i _mm512_maskz_mov_##suffix(uint64_t mask, __m512i to) {              \
    return select<element>(mask, to, __m512i{});                                              \
  }                                                                                           \
  ANYNPU_EMULATED __m512i _mm512_mask_blend_##suffix(uint64_t mask, __m512i a, __m512i b) {   \
    return select<element>(mask, b, a);                                                       \
  }                                                                                           \
  ANYNPU_EMULATED __m512i _mm512_movm_##suffix(uint64_t mask) {                               \
    return select<element>(mask, _mm512_set1_epi32(-1), __m512i{});                           \
  }
ANYNPU_EMULATE_MASKS(int8_t, epi8)
ANYNPU_EMULATE_MASKS(int16_t, epi16)
ANYNPU_EMULATE_MASKS(int32_t, epi32)
ANYNPU_EMULATE_MASKS(int64_t, epi64)
ANYNPU_EMULATED __m512 _mm512_mask_mov_ps(__m512 from, uint64_t mask, __m512 to) {
  return select<float>(mask, to, from);
}
ANYNPU_EMULATED uint64_t _mm512_movepi8_mask(__m512i value) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(value.low)) |
         uint64_t{static_cast<uint32_t>(_mm256_movemask_epi8(value.high))} << 32;
}
ANYNPU_EMULATED uint64_t _mm512_movepi32_mask(__m512i value) { return _mm512_cmplt_epi32_mask(value, __m512i{}); }
ANYNPU_EMULATED uint64_t _mm512_cmp_ps_mask(__m512 a, __m512 b, const int relation) {
  return _mm512_movepi32_mask(
      _mm512_castps_si512({_mm256_cmp_ps(a.low, b.low, relation), _mm256_cmp_ps(a.high, b.high, relation)}));
}

// Across the halves.
#define ANYNPU_EMULATE_PERMUTE(V, element, index, suffix)                                                 \
  ANYNPU_EMULATED V _mm512_permutexvar_##suffix(__m512i order, V value) {                                 \
    const Elements<element, V> from(value);                                                               \
    const Elements<index, __m512i> at(order);                                                             \
    return generate<element, V>([&](int i) { return from.at[at.at[i] % from.count]; });                   \
  }                                                                                                       \
  ANYNPU_EMULATED V _mm512_maskz_permutexvar_##suffix(uint64_t mask, __m512i order, V value) {            \
    return select<element>(mask, _mm512_permutexvar_##suffix(order, value), V{});                         \
  }                                                                                                       \
  ANYNPU_EMULATED V _mm512_permutex2var_##suffix(V a, __m512i order, V b) {                               \
    const Elements<element, V> of_a(a), of_b(b);                                                          \
    const Elements<index, __m512i> at(order);                                                             \
    return generate<element, V>(                                                                          \
        [&](int i) { return (at.at[i] / of_a.count % 2 == 0 ? of_a : of_b).at[at.at[i] % of_a.count]; }); \
  }
ANYNPU_EMULATE_PERMUTE(__m512i, uint8_t, uint8_t, epi8)
ANYNPU_EMULATE_PERMUTE(__m512i, uint16_t, uint16_t, epi16)
ANYNPU_EMULATE_PERMUTE(__m512i, uint32_t, uint32_t, epi32)
ANYNPU_EMULATE_PERMUTE(__m512i, uint64_t, uint64_t, epi64)
ANYNPU_EMULATE_PERMUTE(__m512, float, uint32_t, ps)

ANYNPU_EMULATED __m512i _mm512_alignr_epi64(__m512i high, __m512i low, const int count) {
  const Elements<int64_t, __m512i> of_high(high), of_low(low);
  return generate<int64_t>([&](int i) {
    const int at = i + count % 8;
    return at < 8 ? of_low.at[at] : of_high.at[at - 8];
  });
}
ANYNPU_EMULATED __m512i _mm512_shuffle_i64x2(__m512i a, __m512i b, const int order) {
  const Elements<int64_t, __m512i> of_a(a), of_b(b);
  return generate<int64_t>([&](int i) { return (i < 4 ? of_a : of_b).at[(order >> i / 2 * 2 & 3) * 2 + i % 2]; });
}

#define ANYNPU_EMULATE_REDUCE(V, element, name, suffix, combined)    \
  ANYNPU_EMULATED element _mm512_reduce_##name##_##suffix(V value) { \
    Elements<element, V> parts(value);                               \
    for (int width = parts.count / 2; width > 0; width /= 2) {       \
      for (int i = 0; i < width; ++i) {                              \
        const element high = parts.at[i + width], low = parts.at[i]; \
        parts.at[i] = combined;                                      \
      }                                                              \
    }                                                                \
    return parts.at[0];                                              \
  }
ANYNPU_EMULATE_REDUCE(__m512, float, add, ps, high + low)
ANYNPU_EMULATE_REDUCE(__m512, float, max, ps, high > low ? high : low)
ANYNPU_EMULATE_REDUCE(__m512i, int32_t, add, epi32, static_cast<int32_t>(uint32_t(high) + uint32_t(low)))
ANYNPU_EMULATE_REDUCE(__m512i, int32_t, max, epi32, high > low ? high : low)
ANYNPU_EMULATE_REDUCE(__m512i, uint32_t, max, epu32, high > low ? high : low)

// Instructions of their own.
ANYNPU_EMULATED __m512i _mm512_rol_epi32(__m512i value, const int count) {
  return _mm512_or_si512(_mm512_slli_epi32(value, count % 32), _mm512_srli_epi32(value, 32 - count % 32));
}
// Bit i of the table is the result where the bits of a, b and c are those of i.
ANYNPU_EMULATED __m512i _mm512_ternarylogic_epi64(__m512i a, __m512i b, __m512i c, const int table) {
  const __m512i ones = _mm512_set1_epi32(-1);
  const auto bits = [=](__m512i value, bool set) { return set ? value : _mm512_xor_si512(value, ones); };
  __m512i result = _mm512_setzero_si512();
  for (int i = 0; i < 8; ++i) {
    if ((table >> i & 1) == 0) continue;
    const __m512i here = _mm512_and_si512(bits(a, i & 4), _mm512_and_si512(bits(b, i & 2), bits(c, i & 1)));
    result = _mm512_or_si512(result, here);
  }
  return result;
}
ANYNPU_EMULATED __m512i _mm512_popcnt_epi8(__m512i value) {
  const Elements<uint8_t, __m512i> bytes(value);
  return generate<uint8_t>([&](int i) { return static_cast<uint8_t>(__builtin_popcount(bytes.at[i])); });
}
ANYNPU_EMULATED __m512i _mm512_multishift_epi64_epi8(__m512i places, __m512i numbers) {
  const Elements<uint8_t, __m512i> place(places);
  const Elements<uint64_t, __m512i> number(numbers);
  return generate<uint8_t>([&](int i) {
    const int shift = place.at[i] % 64;
    return static_cast<uint8_t>(number.at[i / 8] >> shift | number.at[i / 8] << (64 - shift) % 64);
  });
}
// Bit i of a byte is the parity of the bits that byte 7 - i of its matrix selects, and bit i of `added`.
ANYNPU_EMULATED __m512i _mm512_gf2p8affine_epi64_epi8(__m512i value, __m512i matrices, const int added) {
  const Elements<uint8_t, __m512i> bytes(value), rows(matrices);
  return generate<uint8_t>([&](int at) {
    int result = added;
    for (int i = 0; i < 8; ++i) result ^= __builtin_parity(bytes.at[at] & rows.at[at / 8 * 8 + 7 - i]) << i;
    return static_cast<uint8_t>(result);
  });
}
ANYNPU_EMULATED __m512i _mm512_dpwssd_epi32(__m512i sums, __m512i a, __m512i b) {
  return _mm512_add_epi32(sums, _mm512_madd_epi16(a, b));
}
ANYNPU_EMULATED __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i weights, __m512i x) {
  const __m512i even = _mm512_and_si512(weights, _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(weights, 8);
  sums = _mm512_dpwssd_epi32(sums, even, _mm512_srai_epi16(_mm512_slli_epi16(x, 8), 8));
  return _mm512_dpwssd_epi32(sums, odd, _mm512_srai_epi16(x, 8));
}
// The instruction takes subnormals as zero, which this does not.
ANYNPU_EMULATED __m512 _mm512_dpbf16_ps(__m512 sums, __m512i a, __m512i b) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  const auto odd = [=](__m512i pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, high)); };
  const auto even = [](__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); };
  return _mm512_fmadd_ps(even(a), even(b), _mm512_fmadd_ps(odd(a), odd(b), sums));
}

}  // namespace
}  // namespace anynpu
