// Hopper (sm_90a): mbarriers, TMA tile loads, wgmma, named barriers, clusters. Nothing of it exists for other
// architectures: a kernel file that includes this is compiled for sm_90a alone (build/compile.rs).
//
// How the pieces fit (PTX ISA, "Asynchronous copy", "wgmma"): one thread tells an mbarrier how many bytes will come and
// issues TMA loads that count them down; who waits for the barrier's phase then sees the tile. wgmma reads it from shared
// memory; after wgmma_wait the tile may be overwritten, which the readers say by arriving at a second mbarrier.
#pragma once
#include "prelude.cuh"

namespace dev {
// What cuTensorMapEncodeTiled writes: a kernel takes it as `const __grid_constant__ dev::TensorMap`.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};
}  // namespace dev

#ifdef CUDA_EMU
#include "emu_hopper.h"
#else
namespace dev {

__device__ __forceinline__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// ---- mbarriers: 64 bits of shared memory; phases alternate 0, 1, 0, ... and each ends after `count` arrivals and all
// expected bytes ----
__device__ __forceinline__ void mbar_init(uint64_t* b, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(b)), "r"(count) : "memory");
}
// Makes initialised barriers visible to TMA and to the cluster; a barrier of the block follows.
__device__ __forceinline__ void mbar_fence_init() {
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
}
// One arrival, and `bytes` more that the phase waits for.
__device__ __forceinline__ void mbar_expect_tx(uint64_t* b, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(b)), "r"(bytes) : "memory");
}
__device__ __forceinline__ void mbar_arrive(uint64_t* b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(b)) : "memory");
}
// Waits for the end of the phase with this parity; parity 1 of a new barrier counts as ended.
__device__ __forceinline__ void mbar_wait(uint64_t* b, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n"
      "}\n" ::"r"(shared_address(b)),
      "r"(parity)
      : "memory");
}

// ---- TMA ----
__device__ __forceinline__ void tma_prefetch(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
}
// dst[box1][box0] = the map's tensor from (x, y) on, zero outside it, swizzled as the map says; counts the bytes at `bar`.
// dst is aligned to 1024 bytes with the 128-byte swizzle.
__device__ __forceinline__ void tma_load_2d(void* dst, const TensorMap* map, uint64_t* bar, int x, int y) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];\n" ::"r"(
          shared_address(dst)),
      "l"(map), "r"(shared_address(bar)), "r"(x), "r"(y)
      : "memory");
}

// ---- wgmma: the four warps of a warpgroup together ----
// Descriptor of a K-major operand in shared memory with the 128-byte swizzle, 8-row groups 1024 bytes apart. `p`: row 0, k
// a multiple of 16 in the 64 of a row.
__device__ __forceinline__ uint64_t wgmma_desc_k128(const void* p) {
  return static_cast<uint64_t>((shared_address(p) & 0x3FFFF) >> 4) | uint64_t{1} << 16 | uint64_t{64} << 32 | uint64_t{1} << 62;
}
// Before the first wgmma and after other uses of its registers.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
// Closes the group of products issued since the last commit.
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most KEEP groups are in flight.
template <int KEEP> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(KEEP) : "memory");
}

// The places of the registers in the instruction, and eight registers from d[i] on.
#define WGMMA_0_51 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51"
#define WGMMA_52_63 \
  ", %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WGMMA_64_99 \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
  ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95" \
  ", %96, %97, %98, %99"
#define WGMMA_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WGMMA_12(i) WGMMA_4(i), WGMMA_4(i + 4), WGMMA_4(i + 8)
#define WGMMA_52(i) WGMMA_12(i), WGMMA_12(i + 12), WGMMA_12(i + 24), WGMMA_12(i + 36), WGMMA_4(i + 48)

// d[64, N] += a[64, 16] . b[N, 16]^T for the warpgroup. Lane 4 g + t of warp w holds in d[4 j + 2 h + e] row
// 16 w + g + 8 h, column 8 j + 2 t + e. Available for the N listed below.
template <class T, int N> __device__ __forceinline__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b);
#define WGMMA(T, type, N, places, a_place, b_place, ...)                                                            \
  template <> __device__ __forceinline__ void wgmma<T, N>(float (&d)[N / 2], uint64_t a, uint64_t b) {              \
    asm volatile("{\n.reg .pred accumulate;\nsetp.eq.u32 accumulate, 0, 0;\n"                                       \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." type "." type " {" places "}, " a_place ", " b_place \
                 ", accumulate, 1, 1, 0, 0;\n}\n"                                                                   \
                 : __VA_ARGS__                                                                                      \
                 : "l"(a), "l"(b));                                                                                 \
  }
#define WGMMA_SHAPES(T, type)                                                                                       \
  WGMMA(T, type, 104, WGMMA_0_51, "%52", "%53", WGMMA_52(0))                                                        \
  WGMMA(T, type, 128, WGMMA_0_51 WGMMA_52_63, "%64", "%65", WGMMA_52(0), WGMMA_12(52))                              \
  WGMMA(T, type, 200, WGMMA_0_51 WGMMA_52_63 WGMMA_64_99, "%100", "%101", WGMMA_52(0), WGMMA_12(52), WGMMA_12(64),  \
        WGMMA_12(76), WGMMA_12(88))
WGMMA_SHAPES(__half, "f16")
WGMMA_SHAPES(__nv_bfloat16, "bf16")

// ---- warpgroups and named barriers ----
// Registers per thread of the warpgroup from here on: at most, or at least, N (a multiple of 8).
template <int N> __device__ __forceinline__ void reg_dealloc() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(N)); }
template <int N> __device__ __forceinline__ void reg_alloc() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(N)); }
// Barrier `id` (1 to 15; 0 is __syncthreads) among `threads` threads, a multiple of 32.
__device__ __forceinline__ void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters: without one a block is its own, of rank 0 ----
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(r));
  return r;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned n;
  asm("mov.u32 %0, %%cluster_nctarank;\n" : "=r"(n));
  return n;
}
// The barrier of all threads of the cluster, in two halves: what came before anyone's arrival is seen after the wait. A block
// must not touch a peer's memory before a first barrier, nor end before the last use of its own.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;\n" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;\n" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// The place of `p`, in this block's dynamic shared memory, in that of block `rank` of the cluster.
template <class T> __device__ __forceinline__ T* cluster_map(T* p, unsigned rank) {
  uint64_t at;
  asm("mapa.u64 %0, %1, %2;\n" : "=l"(at) : "l"(p), "r"(rank));
  return reinterpret_cast<T*>(at);
}

}  // namespace dev
#endif
