// Host stand-in for the CUDA device language. prelude.cuh includes it under CUDA_EMU, and a .cu file then
// compiles with g++ -x c++ -std=c++17, once plain and once with the access hooks (EMU_CHECKED=1, with
// -fsanitize=thread,alignment,bounds but without the sanitizers' libraries).
#pragma once
#include <cstdio>
#include "emu_abi.h"
#include "emu_math.h"
#include "emu_types.h"

// ---- language ----
#define __global__ static
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__
// One copy per OS thread, because launches run on several; the runtime saves it when blocks of one thread alternate.
#define __shared__ static thread_local

#define threadIdx (::emu::self()->thread_index)
#define blockIdx (::emu::self()->block_index)
#define blockDim (::emu::self()->block_dim)
#define gridDim (::emu::self()->grid_dim)
constexpr int warpSize = 32;

// ---- kernels ----
// KERNEL(name)(params) { ... } KERNEL_EXPORT(name) defines a kernel; the export is callable through the
// convention of cuLaunchKernel's kernelParams, under a prefix that tells the plain and the checked build apart.
#ifndef EMU_PREFIX
#define EMU_PREFIX emu_
#endif
#ifndef EMU_CHECKED
#define EMU_CHECKED 0
#endif
#define EMU_CAT_(a, b) a##b
#define EMU_CAT(a, b) EMU_CAT_(a, b)
#define KERNEL(name) static void name
#define KERNEL_EXPORT(name)                                                                           \
  extern "C" __attribute__((visibility("default"))) void EMU_CAT(EMU_PREFIX, name)(void** params) {   \
    ::emu::call(&name, params);                                                                       \
  }                                                                                                   \
  __attribute__((used, section("emu_kernels"))) static ::emu::KernelInfo EMU_CAT(emu_info_, name) = { \
      #name, EMU_CAT(EMU_PREFIX, name), EMU_CHECKED, ::emu::Params<decltype(&name)>::count, ::emu::Params<decltype(&name)>::sizes};
// The dynamic shared memory of the block as an array of T, 1024-byte aligned.
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(::emu::self()->dyn_smem)

// SPEC_LAYOUT(Struct, field...) exports name, size and field offsets as `emu_spec_<Struct>` (at most 48 fields).
#if EMU_CHECKED
#define SPEC_LAYOUT(S, ...)
#else
#define EMU_FIELD(S, f) EmuSpecField{#f, (uint32_t)offsetof(S, f), (uint32_t)sizeof(S::f)}
#define EMU_F1(S, a) EMU_FIELD(S, a)
#define EMU_F2(S, a, ...) EMU_FIELD(S, a), EMU_F1(S, __VA_ARGS__)
#define EMU_F3(S, a, ...) EMU_FIELD(S, a), EMU_F2(S, __VA_ARGS__)
#define EMU_F4(S, a, ...) EMU_FIELD(S, a), EMU_F3(S, __VA_ARGS__)
#define EMU_F5(S, a, ...) EMU_FIELD(S, a), EMU_F4(S, __VA_ARGS__)
#define EMU_F6(S, a, ...) EMU_FIELD(S, a), EMU_F5(S, __VA_ARGS__)
#define EMU_F7(S, a, ...) EMU_FIELD(S, a), EMU_F6(S, __VA_ARGS__)
#define EMU_F8(S, a, ...) EMU_FIELD(S, a), EMU_F7(S, __VA_ARGS__)
#define EMU_F9(S, a, ...) EMU_FIELD(S, a), EMU_F8(S, __VA_ARGS__)
#define EMU_F10(S, a, ...) EMU_FIELD(S, a), EMU_F9(S, __VA_ARGS__)
#define EMU_F11(S, a, ...) EMU_FIELD(S, a), EMU_F10(S, __VA_ARGS__)
#define EMU_F12(S, a, ...) EMU_FIELD(S, a), EMU_F11(S, __VA_ARGS__)
#define EMU_F13(S, a, ...) EMU_FIELD(S, a), EMU_F12(S, __VA_ARGS__)
#define EMU_F14(S, a, ...) EMU_FIELD(S, a), EMU_F13(S, __VA_ARGS__)
#define EMU_F15(S, a, ...) EMU_FIELD(S, a), EMU_F14(S, __VA_ARGS__)
#define EMU_F16(S, a, ...) EMU_FIELD(S, a), EMU_F15(S, __VA_ARGS__)
#define EMU_F17(S, a, ...) EMU_FIELD(S, a), EMU_F16(S, __VA_ARGS__)
#define EMU_F18(S, a, ...) EMU_FIELD(S, a), EMU_F17(S, __VA_ARGS__)
#define EMU_F19(S, a, ...) EMU_FIELD(S, a), EMU_F18(S, __VA_ARGS__)
#define EMU_F20(S, a, ...) EMU_FIELD(S, a), EMU_F19(S, __VA_ARGS__)
#define EMU_F21(S, a, ...) EMU_FIELD(S, a), EMU_F20(S, __VA_ARGS__)
#define EMU_F22(S, a, ...) EMU_FIELD(S, a), EMU_F21(S, __VA_ARGS__)
#define EMU_F23(S, a, ...) EMU_FIELD(S, a), EMU_F22(S, __VA_ARGS__)
#define EMU_F24(S, a, ...) EMU_FIELD(S, a), EMU_F23(S, __VA_ARGS__)
#define EMU_F25(S, a, ...) EMU_FIELD(S, a), EMU_F24(S, __VA_ARGS__)
#define EMU_F26(S, a, ...) EMU_FIELD(S, a), EMU_F25(S, __VA_ARGS__)
#define EMU_F27(S, a, ...) EMU_FIELD(S, a), EMU_F26(S, __VA_ARGS__)
#define EMU_F28(S, a, ...) EMU_FIELD(S, a), EMU_F27(S, __VA_ARGS__)
#define EMU_F29(S, a, ...) EMU_FIELD(S, a), EMU_F28(S, __VA_ARGS__)
#define EMU_F30(S, a, ...) EMU_FIELD(S, a), EMU_F29(S, __VA_ARGS__)
#define EMU_F31(S, a, ...) EMU_FIELD(S, a), EMU_F30(S, __VA_ARGS__)
#define EMU_F32(S, a, ...) EMU_FIELD(S, a), EMU_F31(S, __VA_ARGS__)
#define EMU_F33(S, a, ...) EMU_FIELD(S, a), EMU_F32(S, __VA_ARGS__)
#define EMU_F34(S, a, ...) EMU_FIELD(S, a), EMU_F33(S, __VA_ARGS__)
#define EMU_F35(S, a, ...) EMU_FIELD(S, a), EMU_F34(S, __VA_ARGS__)
#define EMU_F36(S, a, ...) EMU_FIELD(S, a), EMU_F35(S, __VA_ARGS__)
#define EMU_F37(S, a, ...) EMU_FIELD(S, a), EMU_F36(S, __VA_ARGS__)
#define EMU_F38(S, a, ...) EMU_FIELD(S, a), EMU_F37(S, __VA_ARGS__)
#define EMU_F39(S, a, ...) EMU_FIELD(S, a), EMU_F38(S, __VA_ARGS__)
#define EMU_F40(S, a, ...) EMU_FIELD(S, a), EMU_F39(S, __VA_ARGS__)
#define EMU_F41(S, a, ...) EMU_FIELD(S, a), EMU_F40(S, __VA_ARGS__)
#define EMU_F42(S, a, ...) EMU_FIELD(S, a), EMU_F41(S, __VA_ARGS__)
#define EMU_F43(S, a, ...) EMU_FIELD(S, a), EMU_F42(S, __VA_ARGS__)
#define EMU_F44(S, a, ...) EMU_FIELD(S, a), EMU_F43(S, __VA_ARGS__)
#define EMU_F45(S, a, ...) EMU_FIELD(S, a), EMU_F44(S, __VA_ARGS__)
#define EMU_F46(S, a, ...) EMU_FIELD(S, a), EMU_F45(S, __VA_ARGS__)
#define EMU_F47(S, a, ...) EMU_FIELD(S, a), EMU_F46(S, __VA_ARGS__)
#define EMU_F48(S, a, ...) EMU_FIELD(S, a), EMU_F47(S, __VA_ARGS__)
#define EMU_COUNT_(a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16, a17, a18, a19, a20, \
  a21, a22, a23, a24, a25, a26, a27, a28, a29, a30, a31, a32, a33, a34, a35, a36, a37, a38, a39, a40, a41, a42, \
  a43, a44, a45, a46, a47, a48, n, ...) n
#define EMU_COUNT(...) \
  EMU_COUNT_(__VA_ARGS__, 48, 47, 46, 45, 44, 43, 42, 41, 40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 30, 29, 28, \
  27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define SPEC_LAYOUT(S, ...)                                                                                               \
  static const EmuSpecField emu_fields_##S[] = {EMU_CAT(EMU_F, EMU_COUNT(__VA_ARGS__))(S, __VA_ARGS__)};                   \
  extern "C" __attribute__((weak, visibility("default"))) const EmuSpec emu_spec_##S;                                      \
  extern "C" __attribute__((weak, visibility("default"))) const EmuSpec emu_spec_##S = {#S, (uint32_t)sizeof(S),                                  \
                                                                 (uint32_t)(sizeof emu_fields_##S / sizeof *emu_fields_##S), \
                                                                 emu_fields_##S};
#endif

// ---- synchronisation and warp collectives ----
EMU_INL void __syncthreads(EMU_SITE) { emu::sync_threads(EMU_HERE); }
EMU_INL int __syncthreads_count(int p, EMU_SITE) { return emu::sync_threads_vote(p, 0, EMU_HERE); }
EMU_INL int __syncthreads_and(int p, EMU_SITE) { return emu::sync_threads_vote(p, 1, EMU_HERE); }
EMU_INL int __syncthreads_or(int p, EMU_SITE) { return emu::sync_threads_vote(p, 2, EMU_HERE); }
EMU_INL void __syncwarp(uint32_t mask = 0xffffffffu, EMU_SITE) { emu::sync_warp(mask, EMU_HERE); }
EMU_INL void __threadfence() { emu::threadfence(); }
EMU_INL void __threadfence_block() {}
EMU_INL void __nanosleep(unsigned, EMU_SITE) { emu::nanosleep(EMU_HERE); }
[[noreturn]] EMU_INL void __trap(EMU_SITE) { emu::trap("__trap", EMU_HERE); }

namespace emu {
template <class T> EMU_INL T shuffle(Collective fn, uint32_t mask, T v, int select, int width, const char* what, Site site) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value, "a shuffle moves at most 8 bytes");
  ShuffleArg a{0, 0, select, width};
  memcpy(&a.in, &v, sizeof v);
  warp_collective(fn, &a, mask, what, site);
  memcpy(&v, &a.out, sizeof v);
  return v;
}
}  // namespace emu
template <class T> EMU_INL T __shfl_xor_sync(uint32_t m, T v, int s, int w = 32, EMU_SITE) {
  return emu::shuffle(emu::shuffle_xor, m, v, s, w, "__shfl_xor_sync", EMU_HERE);
}
template <class T> EMU_INL T __shfl_down_sync(uint32_t m, T v, unsigned s, int w = 32, EMU_SITE) {
  return emu::shuffle(emu::shuffle_down, m, v, (int)s, w, "__shfl_down_sync", EMU_HERE);
}
template <class T> EMU_INL T __shfl_up_sync(uint32_t m, T v, unsigned s, int w = 32, EMU_SITE) {
  return emu::shuffle(emu::shuffle_up, m, v, (int)s, w, "__shfl_up_sync", EMU_HERE);
}
template <class T> EMU_INL T __shfl_sync(uint32_t m, T v, int s, int w = 32, EMU_SITE) {
  return emu::shuffle(emu::shuffle_index, m, v, s, w, "__shfl_sync", EMU_HERE);
}
EMU_INL uint32_t __ballot_sync(uint32_t m, int pred, EMU_SITE) {
  emu::ShuffleArg a{(uint64_t)(pred != 0), 0, 0, 32};
  emu::warp_collective(emu::vote, &a, m, "__ballot_sync", EMU_HERE);
  return (uint32_t)a.out;
}
EMU_INL int __any_sync(uint32_t m, int pred, EMU_SITE) { return __ballot_sync(m, pred, f_, l_) != 0; }
EMU_INL int __all_sync(uint32_t m, int pred, EMU_SITE) { return __ballot_sync(m, !pred, f_, l_) == 0; }

// ---- atomics (relaxed, device scope): they order other memory only together with __threadfence ----
namespace emu {
template <class T> struct AtomicTypeOf;
template <> struct AtomicTypeOf<int> { static constexpr AtomicType value = AtomicType::I32; };
template <> struct AtomicTypeOf<unsigned> { static constexpr AtomicType value = AtomicType::U32; };
template <> struct AtomicTypeOf<long long> { static constexpr AtomicType value = AtomicType::I64; };
template <> struct AtomicTypeOf<unsigned long long> { static constexpr AtomicType value = AtomicType::U64; };
template <> struct AtomicTypeOf<float> { static constexpr AtomicType value = AtomicType::F32; };
template <> struct AtomicTypeOf<double> { static constexpr AtomicType value = AtomicType::F64; };
template <class T> EMU_INL T atomic_typed(volatile T* p, AtomicOp op, T v, T compare, Site site) {
  uint64_t bits = 0, cmp = 0;
  memcpy(&bits, &v, sizeof v);
  memcpy(&cmp, &compare, sizeof v);
  bits = atomic(const_cast<T*>(p), op, AtomicTypeOf<T>::value, bits, cmp, site);
  memcpy(&v, &bits, sizeof v);
  return v;
}
}  // namespace emu
#define EMU_ATOMIC(fn, op)                                                                      \
  template <class T> EMU_INL T fn(T* p, std::common_type_t<T> v, EMU_SITE) {                    \
    return emu::atomic_typed<T>(p, emu::AtomicOp::op, v, T(), EMU_HERE);                        \
  }
EMU_ATOMIC(atomicAdd, Add)
EMU_ATOMIC(atomicMin, Min)
EMU_ATOMIC(atomicMax, Max)
EMU_ATOMIC(atomicExch, Exch)
EMU_ATOMIC(atomicAnd, And)
EMU_ATOMIC(atomicOr, Or)
EMU_ATOMIC(atomicXor, Xor)
EMU_ATOMIC(atomicInc, Inc)
EMU_ATOMIC(atomicDec, Dec)
template <class T> EMU_INL T atomicSub(T* p, std::common_type_t<T> v, EMU_SITE) {
  return emu::atomic_typed<T>(p, emu::AtomicOp::Add, (T)(0 - v), T(), EMU_HERE);
}
template <class T> EMU_INL T atomicCAS(T* p, std::common_type_t<T> compare, std::common_type_t<T> v, EMU_SITE) {
  return emu::atomic_typed<T>(p, emu::AtomicOp::Cas, v, compare, EMU_HERE);
}

// ---- loads and stores with a cache hint ----
template <class T> EMU_INL T __ldg(const T* p) { return *p; }
template <class T> EMU_INL T __ldcg(const T* p) { return *p; }
template <class T> EMU_INL T __ldcs(const T* p) { return *p; }
template <class T> EMU_INL void __stcg(T* p, T v) { *p = v; }
template <class T> EMU_INL void __stcs(T* p, T v) { *p = v; }

// ---- the wrappers that are inline PTX on the device (prelude.cuh, mma.cuh, async.cuh) ----
namespace dev {
EMU_INL void grid_wait(EMU_SITE) { emu::grid_wait(EMU_HERE); }
EMU_INL void grid_launch_dependents() {}  // a dependent launch runs ahead as far as it may, whether its way is cleared or not
EMU_INL void cp_async16(void* dst, const void* src, int src_bytes = 16, EMU_SITE) { emu::cp_async(dst, src, 16, src_bytes, EMU_HERE); }
EMU_INL void cp_async8(void* dst, const void* src, int src_bytes = 8, EMU_SITE) { emu::cp_async(dst, src, 8, src_bytes, EMU_HERE); }
EMU_INL void cp_async4(void* dst, const void* src, int src_bytes = 4, EMU_SITE) { emu::cp_async(dst, src, 4, src_bytes, EMU_HERE); }
EMU_INL void cp_async_commit() { emu::cp_async_commit(); }
template <int N> EMU_INL void cp_async_wait() { emu::cp_async_wait(N); }
EMU_INL void ldmatrix_x2(uint32_t (&r)[2], const void* row, EMU_SITE) { emu::ldmatrix(r, row, 2, false, EMU_HERE); }
EMU_INL void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, EMU_SITE) { emu::ldmatrix(r, row, 2, true, EMU_HERE); }
EMU_INL void ldmatrix_x4(uint32_t (&r)[4], const void* row, EMU_SITE) { emu::ldmatrix(r, row, 4, false, EMU_HERE); }
EMU_INL void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, EMU_SITE) { emu::ldmatrix(r, row, 4, true, EMU_HERE); }
// D += A (16x16) * B (16x8), f32 accumulators
EMU_INL void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMU_SITE) {
  emu::mma_m16n8k16(d, a, b0, b1, false, EMU_HERE);
}
EMU_INL void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMU_SITE) {
  emu::mma_m16n8k16(d, a, b0, b1, true, EMU_HERE);
}
}  // namespace dev
