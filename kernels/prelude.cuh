// The one header every kernel includes: CUDA, or the host emulation of it under CUDA_EMU.
//
// Rules for kernels, so that the same source compiles with nvcc and as host C++17:
//   KERNEL(name)(parameters) { ... } KERNEL_EXPORT(name)     an entry point; __launch_bounds__ goes before the name
//   dev::grid_begin(), or dev::grid_wait() where it is due   in every kernel, because all may be launched dependent
//   SPEC_LAYOUT(Struct, field, ...)                          after each geometry struct: its layout, for the test against Rust
//   DYN_SHARED(T, name)                                      dynamic shared memory
//   helpers are __device__ __forceinline__ in an anonymous namespace; no <<<>>>; inline PTX only behind wrappers in a .cuh.
//
// T is a storage type: float, __half or __nv_bfloat16. Arithmetic is in f32: values widen on load and round once on store.
#pragma once

#ifdef CUDA_EMU
#include "emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>
#include <string.h>

#define KERNEL(name) extern "C" __global__ void name
#define KERNEL_EXPORT(name)
#define SPEC_LAYOUT(...)
#define DYN_SHARED(T, name)                                     \
  extern __shared__ __align__(1024) unsigned char dyn_smem_[]; \
  T* name = reinterpret_cast<T*>(dyn_smem_)
#endif

namespace dev {

#ifndef CUDA_EMU
// ---- dependent launches ----------------------------------------------------------------------------------------

// A kernel that may be launched dependent (programmatic stream serialization) calls this before it reads or writes what
// a kernel in front of it touches: everything in front has ended then. Nothing below sm_90, or in an ordinary launch.
__device__ __forceinline__ void grid_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n" ::: "memory");
#endif
}
// Lets a dependent launch behind this one start, once every block has called it or ended.
__device__ __forceinline__ void grid_launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
#endif
// First in every kernel that does nothing ahead of the launches in front of it.
__device__ __forceinline__ void grid_begin() {
  grid_launch_dependents();
  grid_wait();
}

// ---- storage types ----------------------------------------------------------------------------------------------

// Elements of T in the 16 bytes that one access moves.
template <class T> constexpr int VEC = 16 / static_cast<int>(sizeof(T));

__device__ __forceinline__ float to_f32(float v) { return v; }
__device__ __forceinline__ float to_f32(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_f32(__nv_bfloat16 v) { return __bfloat162float(v); }

// T from f32, rounded to nearest even.
template <class T> __device__ __forceinline__ T from_f32(float v);
template <> __device__ __forceinline__ float from_f32<float>(float v) { return v; }
template <> __device__ __forceinline__ __half from_f32<__half>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ __nv_bfloat16 from_f32<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

// Bits of a value seen as another type of the same size.
template <class To, class From> __device__ __forceinline__ To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// Two 16-bit elements in one 32-bit word, `lo` in the lower half (the lower address).
template <class T> __device__ __forceinline__ uint32_t pack2(float lo, float hi);
template <> __device__ __forceinline__ uint32_t pack2<__half>(float lo, float hi) {
  return bit_cast<uint32_t>(__floats2half2_rn(lo, hi));
}
template <> __device__ __forceinline__ uint32_t pack2<__nv_bfloat16>(float lo, float hi) {
  return bit_cast<uint32_t>(__floats2bfloat162_rn(lo, hi));
}
template <class T> __device__ __forceinline__ void unpack2(uint32_t word, float& lo, float& hi);
template <> __device__ __forceinline__ void unpack2<__half>(uint32_t word, float& lo, float& hi) {
  const float2 v = __half22float2(bit_cast<__half2>(word));
  lo = v.x;
  hi = v.y;
}
template <> __device__ __forceinline__ void unpack2<__nv_bfloat16>(uint32_t word, float& lo, float& hi) {
  lo = bit_cast<float>(word << 16);
  hi = bit_cast<float>(word & 0xffff0000u);
}

// ---- 16-byte accesses -------------------------------------------------------------------------------------------

// True where every pointer (null counts as aligned) is a multiple of 16 bytes.
template <class... P> __device__ __forceinline__ bool aligned16(const P*... p) {
  return ((reinterpret_cast<uintptr_t>(p) | ... | uintptr_t{0}) & 15) == 0;
}

// v[0..VEC) = p[0..VEC), p 16-byte aligned.
__device__ __forceinline__ void load_vec(const float* p, float (&v)[4]) {
  const float4 u = *reinterpret_cast<const float4*>(p);
  v[0] = u.x;
  v[1] = u.y;
  v[2] = u.z;
  v[3] = u.w;
}
template <class T> __device__ __forceinline__ void load_vec(const T* p, float (&v)[8]) {
  const uint4 u = *reinterpret_cast<const uint4*>(p);
  unpack2<T>(u.x, v[0], v[1]);
  unpack2<T>(u.y, v[2], v[3]);
  unpack2<T>(u.z, v[4], v[5]);
  unpack2<T>(u.w, v[6], v[7]);
}

// p[0..VEC) = v[0..VEC), p 16-byte aligned.
__device__ __forceinline__ void store_vec(float* p, const float (&v)[4]) {
  *reinterpret_cast<float4*>(p) = make_float4(v[0], v[1], v[2], v[3]);
}
template <class T> __device__ __forceinline__ void store_vec(T* p, const float (&v)[8]) {
  *reinterpret_cast<uint4*>(p) =
      make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
}

// ---- indices ----------------------------------------------------------------------------------------------------

// Grid-stride loops over a 1-D launch: for (i = first_index(); i < n; i += index_stride()).
__device__ __forceinline__ size_t first_index() { return static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ size_t index_stride() { return static_cast<size_t>(gridDim.x) * blockDim.x; }

// ---- functions --------------------------------------------------------------------------------------------------

// 2^x with a relative error of 2^-22; results below 2^-126 are zero, 2^-inf = 0.
__device__ __forceinline__ float exp2_approx(float x) {
#ifdef CUDA_EMU
  return x < -126.f ? 0.f : exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ __forceinline__ float silu(float v) { return v / (1.f + expf(-v)); }
__device__ __forceinline__ float relu(float v) { return v < 0.f ? 0.f : v; }  // NaN stays NaN
__device__ __forceinline__ float gelu_erf(float v) { return 0.5f * v * (1.f + erff(v * 0.70710678118654752f)); }
__device__ __forceinline__ float gelu_tanh(float v) {  // Hendrycks & Gimpel 2016, as torch's approximate="tanh"
  return 0.5f * v * (1.f + tanhf(0.79788456080286536f * (v + 0.044715f * v * v * v)));
}

}  // namespace dev
