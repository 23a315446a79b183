// Vector types, half and bfloat16 of the CUDA language.
#pragma once
#include "emu_abi.h"

struct alignas(8) float2 { float x, y; };
struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct float3 { float x, y, z; };
struct int3 { int x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(16) ulonglong2 { unsigned long long x, y; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
EMU_INL float2 make_float2(float x, float y) { return {x, y}; }
EMU_INL int2 make_int2(int x, int y) { return {x, y}; }
EMU_INL uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
EMU_INL float3 make_float3(float x, float y, float z) { return {x, y, z}; }
EMU_INL int3 make_int3(int x, int y, int z) { return {x, y, z}; }
EMU_INL float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
EMU_INL int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
EMU_INL uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
EMU_INL double2 make_double2(double x, double y) { return {x, y}; }
EMU_INL uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }

// ---- half ----
struct __half {
  _Float16 v;
  __half() = default;
  __half(float f) : v((_Float16)f) {}
  operator float() const { return (float)v; }
};
struct alignas(4) __half2 { __half x, y; };
using half = __half;
using half2 = __half2;
EMU_INL __half __float2half(float f) { return __half(f); }
EMU_INL __half __float2half_rn(float f) { return __half(f); }
EMU_INL float __half2float(__half h) { return (float)h.v; }
EMU_INL __half __int2half_rn(int i) { __half r; r.v = (_Float16)i; return r; }
EMU_INL __half __ushort_as_half(unsigned short u) { __half h; memcpy(&h, &u, 2); return h; }
EMU_INL unsigned short __half_as_ushort(__half h) { unsigned short u; memcpy(&u, &h, 2); return u; }
EMU_INL __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
EMU_INL __half2 __float22half2_rn(float2 f) { return {__half(f.x), __half(f.y)}; }
EMU_INL __half2 __float2half2_rn(float a) { return {__half(a), __half(a)}; }
EMU_INL __half2 __halves2half2(__half a, __half b) { return {a, b}; }
EMU_INL __half2 __half2half2(__half a) { return {a, a}; }
EMU_INL float2 __half22float2(__half2 h) { return {(float)h.x.v, (float)h.y.v}; }
EMU_INL float __low2float(__half2 h) { return (float)h.x.v; }
EMU_INL float __high2float(__half2 h) { return (float)h.y.v; }
EMU_INL __half __low2half(__half2 h) { return h.x; }
EMU_INL __half __high2half(__half2 h) { return h.y; }
// f32 holds the exact sum and product of two halves closely enough that rounding twice changes nothing
EMU_INL __half __hadd(__half a, __half b) { return __half((float)a.v + (float)b.v); }
EMU_INL __half __hsub(__half a, __half b) { return __half((float)a.v - (float)b.v); }
EMU_INL __half __hmul(__half a, __half b) { return __half((float)a.v * (float)b.v); }
EMU_INL __half __hfma(__half a, __half b, __half c) { __half r; r.v = (_Float16)((double)a.v * (double)b.v + (double)c.v); return r; }
EMU_INL __half2 __hadd2(__half2 a, __half2 b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }
EMU_INL __half2 __hmul2(__half2 a, __half2 b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }
EMU_INL __half2 __hfma2(__half2 a, __half2 b, __half2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; }

// ---- bfloat16 ----
struct __nv_bfloat16 {
  uint16_t u;
  __nv_bfloat16() = default;
  __nv_bfloat16(float f) {  // nearest, ties to even; NaN becomes the canonical one
    uint32_t x;
    memcpy(&x, &f, 4);
    u = f != f ? 0x7fff : (uint16_t)((x + 0x7fff + ((x >> 16) & 1)) >> 16);
  }
  operator float() const {
    uint32_t x = (uint32_t)u << 16;
    float f;
    memcpy(&f, &x, 4);
    return f;
  }
};
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
EMU_INL __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
EMU_INL __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
EMU_INL float __bfloat162float(__nv_bfloat16 h) { return (float)h; }
EMU_INL __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { __nv_bfloat16 h; h.u = u; return h; }
EMU_INL unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.u; }
EMU_INL __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
EMU_INL __nv_bfloat162 __float22bfloat162_rn(float2 f) { return {__nv_bfloat16(f.x), __nv_bfloat16(f.y)}; }
EMU_INL __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
EMU_INL __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 a) { return {a, a}; }
EMU_INL float2 __bfloat1622float2(__nv_bfloat162 h) { return {(float)h.x, (float)h.y}; }
EMU_INL float __low2float(__nv_bfloat162 h) { return (float)h.x; }
EMU_INL float __high2float(__nv_bfloat162 h) { return (float)h.y; }
