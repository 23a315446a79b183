// Planted defects. The line that a message must name carries the comment `bug: <kernel>`.
#include "emu.h"

// ---- order among threads ----
KERNEL(emutest_no_syncwarp)(int* out) {
  DYN_SHARED(int, s);
  s[threadIdx.x] = (int)threadIdx.x;  // bug: emutest_no_syncwarp
  out[threadIdx.x] = s[threadIdx.x ^ 1];  // bug: emutest_no_syncwarp
}
KERNEL_EXPORT(emutest_no_syncwarp)

KERNEL(emutest_with_syncwarp)(int* out) {
  DYN_SHARED(int, s);
  s[threadIdx.x] = (int)threadIdx.x;
  __syncwarp();
  out[threadIdx.x] = s[threadIdx.x ^ 1];
}
KERNEL_EXPORT(emutest_with_syncwarp)

// A shuffle moves values, but does not order memory.
KERNEL(emutest_shuffle_is_no_barrier)(int* out) {
  DYN_SHARED(int, s);
  s[threadIdx.x] = (int)threadIdx.x;  // bug: emutest_shuffle_is_no_barrier
  const int v = __shfl_xor_sync(0xffffffffu, (int)threadIdx.x, 1);
  out[threadIdx.x] = v + s[threadIdx.x ^ 1];  // bug: emutest_shuffle_is_no_barrier
}
KERNEL_EXPORT(emutest_shuffle_is_no_barrier)

KERNEL(emutest_no_syncthreads)(int* out) {
  __shared__ int s[64];
  s[threadIdx.x] = (int)threadIdx.x;  // bug: emutest_no_syncthreads
  out[threadIdx.x] = s[63 - threadIdx.x];  // bug: emutest_no_syncthreads
}
KERNEL_EXPORT(emutest_no_syncthreads)

// The second barrier of a tile loop is missing: a fast warp overwrites what a slow one still reads.
KERNEL(emutest_no_second_barrier)(const int* x, int* out, int tiles) {
  __shared__ int s[64];
  int sum = 0;
  for (int t = 0; t < tiles; ++t) {
    s[threadIdx.x] = x[t * 64 + threadIdx.x];  // bug: emutest_no_second_barrier
    __syncthreads();
    sum += s[63 - threadIdx.x];  // bug: emutest_no_second_barrier
  }
  out[threadIdx.x] = sum;
}
KERNEL_EXPORT(emutest_no_second_barrier)

// Neighbouring halves of one word belong to different threads, in shared and in global memory; with `shift` 1 two
// threads meet in one half.
KERNEL(emutest_half_words)(unsigned short* out, int shift) {
  __shared__ unsigned short s[72];
  unsigned short* const mine = s + threadIdx.x + (threadIdx.x == 5 ? shift : 0);
  *mine = (unsigned short)threadIdx.x;  // bug: emutest_half_words
  if (threadIdx.x < 2) reinterpret_cast<unsigned*>(s + 64)[threadIdx.x] = 7u;
  out[threadIdx.x] = *mine;
}
KERNEL_EXPORT(emutest_half_words)
KERNEL(emutest_global_half_words)(unsigned short* out, int shift) {
  out[threadIdx.x + (threadIdx.x == 5 ? shift : 0)] = (unsigned short)threadIdx.x;  // bug: emutest_global_half_words
}
KERNEL_EXPORT(emutest_global_half_words)

// Reads what other threads wrote to global memory, without a barrier.
KERNEL(emutest_global_no_syncthreads)(int* out) {
  out[threadIdx.x] = (int)threadIdx.x;  // bug: emutest_global_no_syncthreads
  out[64 + threadIdx.x] = out[63 - threadIdx.x];  // bug: emutest_global_no_syncthreads
}
KERNEL_EXPORT(emutest_global_no_syncthreads)

KERNEL(emutest_divergent_barrier)(int* out) {
  if (threadIdx.x < 32) {
    out[threadIdx.x] = 1;
    __syncthreads();  // bug: emutest_divergent_barrier
  } else {
    out[threadIdx.x] = 2;
    __syncthreads();
  }
}
KERNEL_EXPORT(emutest_divergent_barrier)

KERNEL(emutest_early_exit)(int* out, int n) {
  if ((int)threadIdx.x >= n) return;
  out[threadIdx.x] = 1;
  __syncthreads();  // bug: emutest_early_exit
}
KERNEL_EXPORT(emutest_early_exit)

KERNEL(emutest_divergent_shuffle)(int* out) {
  int v = (int)threadIdx.x;
  if (threadIdx.x % 2) v = __shfl_xor_sync(0xffffffffu, v, 2);  // bug: emutest_divergent_shuffle
  out[threadIdx.x] = v;
}
KERNEL_EXPORT(emutest_divergent_shuffle)

// ---- addresses ----
KERNEL(emutest_misaligned)(float* out) {
  *reinterpret_cast<float4*>(out + 1) = make_float4(1, 2, 3, 4);  // bug: emutest_misaligned
}
KERNEL_EXPORT(emutest_misaligned)

KERNEL(emutest_static_oob)(int* out, int i) {
  __shared__ int s[32];
  s[threadIdx.x + i] = 1;  // bug: emutest_static_oob
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
KERNEL_EXPORT(emutest_static_oob)

KERNEL(emutest_dynamic_oob)(int* out, int i) {
  DYN_SHARED(int, s);
  s[threadIdx.x + i] = 1;  // bug: emutest_dynamic_oob
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
}
KERNEL_EXPORT(emutest_dynamic_oob)

KERNEL(emutest_store)(int* out, long long i) {
  out[(long long)threadIdx.x + i] = 1;  // bug: emutest_store
}
KERNEL_EXPORT(emutest_store)

KERNEL(emutest_uninitialised)(float* out) {
  DYN_SHARED(float, s);
  __shared__ float t[32];
  if (threadIdx.x < 31) s[threadIdx.x] = t[threadIdx.x] = 1.f;
  __syncthreads();
  out[threadIdx.x] = s[threadIdx.x];
  out[32 + threadIdx.x] = t[threadIdx.x];
}
KERNEL_EXPORT(emutest_uninitialised)

__device__ __noinline__ int deep(volatile int* from, int n) {  // bug: emutest_stack_overflow
  volatile int big[1024];
  big[n & 1023] = *from + n;  // bug: emutest_stack_overflow
  return n == 0 ? big[0] : deep(big, n - 1) + big[n & 1023];  // bug: emutest_stack_overflow
}
KERNEL(emutest_stack_overflow)(int* out) {
  volatile int start = 0;
  out[0] = deep(&start, 1000);
}
KERNEL_EXPORT(emutest_stack_overflow)

// ---- asynchronous copies ----
KERNEL(emutest_early_refill)(float* out, const float* in) {  // refills a buffer that others still read
  DYN_SHARED(float, s);
  dev::cp_async16(s + threadIdx.x * 4, in + threadIdx.x * 4);
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
  __syncthreads();
  const float v = s[(threadIdx.x * 4 + 128) % 256];  // bug: emutest_early_refill
  dev::cp_async16(s + threadIdx.x * 4, in + threadIdx.x * 4);  // bug: emutest_early_refill
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
  out[threadIdx.x] = v;
}
KERNEL_EXPORT(emutest_early_refill)

KERNEL(emutest_copy_not_waited)(float* out, const float* in) {
  DYN_SHARED(float, s);
  dev::cp_async16(s + threadIdx.x * 4, in + threadIdx.x * 4);  // bug: emutest_copy_not_waited
  dev::cp_async_commit();
  out[threadIdx.x] = s[threadIdx.x * 4];
}
KERNEL_EXPORT(emutest_copy_not_waited)

// Waits for all but one group, and reads that one.
KERNEL(emutest_copy_waited_too_little)(float* out, const float* in) {
  DYN_SHARED(float, s);
  for (int i = 0; i < 2; ++i) {
    dev::cp_async16(s + i * 128 + threadIdx.x * 4, in + i * 128 + threadIdx.x * 4);
    dev::cp_async_commit();
  }
  dev::cp_async_wait<1>();
  out[threadIdx.x] = s[threadIdx.x * 4];
  out[32 + threadIdx.x] = s[128 + threadIdx.x * 4];
  dev::cp_async_wait<0>();
}
KERNEL_EXPORT(emutest_copy_waited_too_little)

// Waits, but without the barrier that makes the others' copies visible.
KERNEL(emutest_copy_no_barrier)(float* out, const float* in) {
  DYN_SHARED(float, s);
  dev::cp_async16(s + threadIdx.x * 4, in + threadIdx.x * 4);  // bug: emutest_copy_no_barrier
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
  out[threadIdx.x] = s[(threadIdx.x * 4 + 128) % 256];  // bug: emutest_copy_no_barrier
}
KERNEL_EXPORT(emutest_copy_no_barrier)

KERNEL(emutest_copy_misaligned)(float* out, const float* in, int dst, int src) {
  DYN_SHARED(float, s);
  dev::cp_async16(s + threadIdx.x * 4 + dst, in + threadIdx.x * 4 + src);  // bug: emutest_copy_misaligned
  dev::cp_async_commit();
  dev::cp_async_wait<0>();
  out[threadIdx.x] = s[threadIdx.x * 4 + dst];
}
KERNEL_EXPORT(emutest_copy_misaligned)

// ---- between blocks ----
KERNEL(emutest_blocks_write_same)(int* out) {
  out[threadIdx.x] = (int)blockIdx.x;  // bug: emutest_blocks_write_same
}
KERNEL_EXPORT(emutest_blocks_write_same)

KERNEL(emutest_blocks_read_neighbour)(float* x) {
  const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), n = (int)(gridDim.x * blockDim.x);
  const float v = x[(i + 1) % n];  // bug: emutest_blocks_read_neighbour
  x[i] = v;  // bug: emutest_blocks_read_neighbour
}
KERNEL_EXPORT(emutest_blocks_read_neighbour)

// The last block to finish adds up what every block left. FENCES: 1 on the releasing side, 2 on the acquiring side;
// 4: the barrier before the release.
template <int FENCES> __device__ void last_block_sums(float* partial, unsigned* ticket, float* out) {
  __shared__ bool last;
  partial[blockIdx.x * blockDim.x + threadIdx.x] = (float)(blockIdx.x + threadIdx.x);  // bug: last_block_sums
  if (FENCES & 4) __syncthreads();
  if (threadIdx.x == 0) {
    if (FENCES & 1) __threadfence();
    last = atomicAdd(ticket, 1u) == gridDim.x - 1;
    if (FENCES & 2) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * blockDim.x + threadIdx.x];  // bug: last_block_sums
  out[threadIdx.x] = sum;
}
#define LAST_BLOCK(name, fences)                                                                                                \
  KERNEL(name)(float* partial, unsigned* ticket, float* out) { last_block_sums<fences>(partial, ticket, out); } KERNEL_EXPORT(name)
LAST_BLOCK(emutest_last_block, 7)
LAST_BLOCK(emutest_last_block_no_release, 6)
LAST_BLOCK(emutest_last_block_no_acquire, 5)
LAST_BLOCK(emutest_last_block_no_barrier, 3)

// Every thread fences, then the barrier, then one thread's atomic: as good, because fences are cumulative.
KERNEL(emutest_last_block_all_fence)(float* partial, unsigned* ticket, float* out) {
  __shared__ bool last;
  partial[blockIdx.x * blockDim.x + threadIdx.x] = (float)(blockIdx.x + threadIdx.x);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ticket, 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  float sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i * blockDim.x + threadIdx.x];
  out[threadIdx.x] = sum;
}
KERNEL_EXPORT(emutest_last_block_all_fence)

// A counter that is bumped atomically and read plainly.
KERNEL(emutest_plain_read_of_atomic)(int* counter, int* out) {
  atomicAdd(counter, 1);  // bug: emutest_plain_read_of_atomic
  out[blockIdx.x] = *counter;  // bug: emutest_plain_read_of_atomic
}
KERNEL_EXPORT(emutest_plain_read_of_atomic)

// A barrier of the whole grid: every block waits for all others, in whichever order they run. Uses static and dynamic
// shared memory across the wait, which each block must find unchanged.
KERNEL(emutest_grid_barrier)(int* x, unsigned* arrived, int rounds) {
  DYN_SHARED(int, d);
  __shared__ int s[64];
  const int b = (int)blockIdx.x, n = (int)gridDim.x, t = (int)threadIdx.x;
  s[t] = d[t] = 1000 * b + t;
  for (int r = 0; r < rounds; ++r) {
    x[(r * n + b) * 64 + t] = (r ? x[((r - 1) * n + (b + 1) % n) * 64 + t] : b) + 1;
    __syncthreads();
    if (t == 0) {
      __threadfence();
      atomicAdd(arrived, 1u);
      while (atomicAdd(arrived, 0u) < (unsigned)((r + 1) * n)) __nanosleep(20);
      __threadfence();
    }
    __syncthreads();
    if (s[t] != 1000 * b + t || d[t] != 1000 * b + t) __trap();
  }
}
KERNEL_EXPORT(emutest_grid_barrier)

// Waits for a flag that nobody sets.
KERNEL(emutest_spin_forever)(int* flag) {
  if (blockIdx.x == 0)
    while (atomicAdd(flag, 0) == 0) {  // bug: emutest_spin_forever
    }
}
KERNEL_EXPORT(emutest_spin_forever)

// One block hands values to the next, through a flag that is read as a volatile.
KERNEL(emutest_volatile_chain)(int* x, int* flags) {
  const unsigned b = blockIdx.x;
  if (b > 0) {
    while (atomicAdd(&flags[b - 1], 0) == 0) {
    }
    __threadfence();
  }
  x[b] = b ? x[b - 1] + 1 : 1;
  __threadfence();
  *const_cast<volatile int*>(&flags[b]) = 1;
}
KERNEL_EXPORT(emutest_volatile_chain)

KERNEL(emutest_trap)() {
  if (threadIdx.x == 3) __trap();  // bug: emutest_trap
}
KERNEL_EXPORT(emutest_trap)
