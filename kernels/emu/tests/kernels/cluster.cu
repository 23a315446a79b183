// Clusters, dependent launches and the rules of wgmma: correct kernels, and with `bug` set the same with one thing wrong. The
// line that a message must name carries the comment `bug: <kernel> <number>`.
#include "hopper.cuh"

// out[i] = sum over the blocks r of the cluster, in order, of (blockIdx.x of r) + i, for the share i of each block.
KERNEL(emutest_cluster_sum)(float* out, int bug) {
  DYN_SHARED(float, partial);
  const unsigned rank = dev::cluster_rank(), size = dev::cluster_size();
  if (bug == 3) {  // all have started, and nothing more
    dev::cluster_arrive();
    dev::cluster_wait();
  }
  partial[threadIdx.x] = (float)(blockIdx.x + threadIdx.x);  // bug: emutest_cluster_sum 3
  if (bug != 1 && bug != 3) {
    dev::cluster_arrive();
    if (bug == 4) partial[threadIdx.x] = 0.f;  // bug: emutest_cluster_sum 4
    dev::cluster_wait();
  }
  const unsigned share = blockDim.x / size;
  if (threadIdx.x / share == rank) {
    float sum = 0.f;
    for (unsigned r = 0; r < size; ++r) sum += dev::cluster_map(partial + (bug == 6 ? 4096 : 0), bug == 5 ? r + 1 : r)[threadIdx.x];  // bug: emutest_cluster_sum 1 // bug: emutest_cluster_sum 3 // bug: emutest_cluster_sum 4 // bug: emutest_cluster_sum 5 // bug: emutest_cluster_sum 6
    out[blockIdx.x / size * blockDim.x + threadIdx.x] = sum;
  }
  if (bug != 2) dev::cluster_arrive();
  if (bug == 7) dev::cluster_arrive();  // bug: emutest_cluster_sum 7
  if (bug != 2) dev::cluster_wait();
  if (bug == 8) dev::cluster_wait();  // bug: emutest_cluster_sum 8
}
KERNEL_EXPORT(emutest_cluster_sum)

// to[i] = from[i] + weight[i]; the weight is there from the beginning.
KERNEL(emutest_dependent)(const int* from, const int* weight, int* to, int bug) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  const int w = weight[i];
  dev::grid_launch_dependents();
  if (bug == 1) to[i] = from[i] + w;  // reads what the launch in front writes
  if (bug == 2) to[i] = 0;            // writes what the launch in front reads
  if (bug != 3) dev::grid_wait();
  if (bug != 1) to[i] = from[i] + w;
}
KERNEL_EXPORT(emutest_dependent)

// out[64][8] = the sums of a product of ones over 16 k-values, twice.
KERNEL(emutest_wgmma_rules)(float* out, int bug) {
  DYN_SHARED(__half, smem);
  for (int i = (int)threadIdx.x; i < 64 * 64; i += 128) smem[i] = __half(1.f);
  __syncthreads();
  float d[4] = {};
  const uint64_t desc = dev::wgmma_desc_k128(smem);
  if (bug != 1) dev::wgmma_fence();
  dev::wgmma<__half, 8>(d, desc, desc);  // bug: emutest_wgmma_rules 1
  dev::wgmma_commit();
  dev::wgmma<__half, 8>(d, desc, desc);
  dev::wgmma_commit();
  if (bug == 2) d[1] = 5.f;
  float early = 0.f;
  if (bug == 3) early = d[0];
  if (bug == 4) dev::wgmma_wait<1>();
  if (bug == 4) early = d[0];
  if (bug != 5) dev::wgmma_wait<0>();  // bug: emutest_wgmma_rules 2
  const unsigned w = threadIdx.x / 32, l = threadIdx.x % 32;
  for (unsigned e = 0; e < 4; ++e) out[(w * 16 + l / 4 + e / 2 * 8) * 8 + l % 4 * 2 + e % 2] = d[e] + early;
}
KERNEL_EXPORT(emutest_wgmma_rules)
