// 16-bit floats as the tensor-core operations read them.
#pragma once
#include <cstdint>
#include <cstring>

namespace emu {
inline float float_of_f16(uint32_t bits) {
  const uint16_t h = (uint16_t)bits;
  _Float16 f;
  memcpy(&f, &h, 2);
  return (float)f;
}
inline float float_of_bf16(uint32_t bits) {
  bits <<= 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
}  // namespace emu
