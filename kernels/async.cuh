// Asynchronous 16-byte copies from global to shared memory (cp.async, sm_80). A thread sees its own copies after
// cp_async_wait, other threads see them after a barrier that follows that wait.
#pragma once
#include "prelude.cuh"

#ifndef CUDA_EMU
namespace dev {

// dst[0..16) = src[0..src_bytes), the rest zero. Both 16-byte aligned; src is not read where src_bytes is 0.
__device__ __forceinline__ void cp_async16(void* dst, const void* src, int src_bytes = 16) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(dst));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(src), "r"(src_bytes) : "memory");
}
// Closes the group of copies issued since the last commit (an empty group counts).
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most KEEP of this thread's groups are in flight.
template <int KEEP> __device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(KEEP) : "memory");
}

}  // namespace dev
#endif
