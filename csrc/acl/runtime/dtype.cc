// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "acl/acl_base.h"

extern "C" size_t aclDataTypeSize(aclDataType dataType) {
  switch (dataType) {
    case ACL_INT8:
    case ACL_UINT8:
    case ACL_BOOL:
    case ACL_HIFLOAT8:
    case ACL_FLOAT8_E5M2:
    case ACL_FLOAT8_E4M3FN:
    case ACL_FLOAT8_E8M0: return 1;
    case ACL_FLOAT16:
    case ACL_BF16:
    case ACL_INT16:
    case ACL_UINT16: return 2;
    case ACL_FLOAT:
    case ACL_INT32:
    case ACL_UINT32:
    case ACL_COMPLEX32: return 4;
    case ACL_DOUBLE:
    case ACL_INT64:
    case ACL_UINT64:
    case ACL_COMPLEX64: return 8;
    case ACL_COMPLEX128: return 16;
    default: return 0;
  }
}

extern "C" float aclFloat16ToFloat(aclFloat16 value) {
  const uint32_t sign = static_cast<uint32_t>(value & 0x8000) << 16;
  const uint32_t exponent = value >> 10 & 0x1F, fraction = value & 0x3FF;
  float magnitude = static_cast<float>(fraction) * 0x1p-24f;  // zero and subnormal numbers
  if (exponent != 0) {
    const uint32_t bits = exponent == 31 ? 0x7F800000u | fraction << 13 : (exponent + 112) << 23 | fraction << 13;
    std::memcpy(&magnitude, &bits, sizeof(bits));
  }
  uint32_t bits;
  std::memcpy(&bits, &magnitude, sizeof(bits));
  bits |= sign;
  std::memcpy(&magnitude, &bits, sizeof(bits));
  return magnitude;
}

extern "C" aclFloat16 aclFloatToFloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return static_cast<aclFloat16>(sign | 0x7E00);
  if (bits >= 0x47800000) return static_cast<aclFloat16>(sign | 0x7C00);
  if (bits < 0x38800000) {
    // Adding 0.5 leaves the subnormal half in the low bits, rounded half to even by the addition itself.
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(bits));
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, sizeof(bits));
    return static_cast<aclFloat16>(sign | (bits - 0x3F000000));
  }
  const uint32_t odd = bits >> 13 & 1;
  return static_cast<aclFloat16>(sign | (bits - 0x38000000 + 0xFFF + odd) >> 13);
}
