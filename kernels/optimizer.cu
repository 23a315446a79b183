// A step of Adam or AdamW on f32 master weights, behind the norm of all gradients: clipping, loss scale, moving average,
// the copy in the compute type. What changes from step to step stands in `values` on the device, so that captured work can
// be replayed; `report` holds what the gradients allow.
//
//   grad_squares_f32    "="  partials[first + b] = sum over chunk b of (grad_scale grad[i])^2          grad: [elements]
//   grad_report_f32     "="  report = the norm, whether it is finite, and the factor of every gradient   partials: [partials]
//   adam_f32                 m, v, w: one step (Kingma & Ba 2015; decoupled decay: Loshchilov & Hutter 2019), as torch.optim's
//   ema_f32                  average += ema_weight (w - average)
//   cast_<dtype>        "="  out[i] = w[i] rounded to the type
//   fill_zero_f32       "="  x[i] = 0
//
// adam and ema leave everything as it is where the gradients are not finite. Their products and sums are explicit
// operations, so the same values and report give the same bits as src/ops/optimizer.rs.
//
// PRECOND grad_squares: grid ceil(elements / 8192), block 256; grad_report: one block of 256.
// PRECOND the others: block 256, any 1-D grid (grid-stride).
#include "block.cuh"

struct SquaresSpec {
  int elements, first;
};
SPEC_LAYOUT(SquaresSpec, elements, first)

struct ReportSpec {
  int partials;
};
SPEC_LAYOUT(ReportSpec, partials)

struct AdamSpec {
  int elements, decoupled;
  float rest1, rest2;  // 1 - beta1, 1 - beta2
  float eps, decay;
};
SPEC_LAYOUT(AdamSpec, elements, decoupled, rest1, rest2, eps, decay)

struct ElementsSpec {
  int elements;
};
SPEC_LAYOUT(ElementsSpec, elements)

namespace {

constexpr int CHUNK = 8192;
// Rows of values and report, as src/ops/optimizer.rs writes and reads them.
enum Value { LR, STEP_SIZE, ROOT2, GRAD_SCALE, MAX_NORM, EMA_WEIGHT };
enum Report { NORM, FINITE, FACTOR };

// N consecutive elements, moved at once; the address is a multiple of their size.
template <int N> __device__ __forceinline__ void load(const float* p, float (&v)[N]) {
  if constexpr (N == 4)
    dev::load_vec(p, v);
  else
    v[0] = *p;
}
template <int N> __device__ __forceinline__ void store(float* p, const float (&v)[N]) {
  if constexpr (N == 4)
    dev::store_vec(p, v);
  else
    *p = v[0];
}

template <int N>
__device__ __forceinline__ void adam(float* w, const float* g, float* m, float* v, float factor, float lr, float step_size,
                                     float root2, const AdamSpec& s) {
  float weight[N], grad[N], mean[N], square[N];
  load(w, weight);
  load(g, grad);
  load(m, mean);
  load(v, square);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    float d = __fmul_rn(grad[e], factor);
    if (s.decoupled)
      weight[e] = __fmaf_rn(-__fmul_rn(lr, s.decay), weight[e], weight[e]);
    else
      d = __fmaf_rn(s.decay, weight[e], d);
    mean[e] = __fmaf_rn(s.rest1, __fsub_rn(d, mean[e]), mean[e]);
    square[e] = __fmaf_rn(s.rest2, __fsub_rn(__fmul_rn(d, d), square[e]), square[e]);
    const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(square[e]), root2), s.eps);
    weight[e] = __fmaf_rn(-step_size, __fdiv_rn(mean[e], root), weight[e]);
  }
  store(w, weight);
  store(m, mean);
  store(v, square);
}

// average + a (w - average), from the nearer end as torch.lerp, so that a of 0 and of 1 are exact.
template <int N> __device__ __forceinline__ void ema(const float* w, float* average, float a) {
  float weight[N], mean[N];
  load(w, weight);
  load(average, mean);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    const float d = __fsub_rn(weight[e], mean[e]);
    mean[e] = a < 0.5f ? __fmaf_rn(a, d, mean[e]) : __fmaf_rn(-__fsub_rn(1.f, a), d, weight[e]);
  }
  store(average, mean);
}

template <class T> __device__ __forceinline__ void cast(const float* __restrict__ w, T* __restrict__ out, const ElementsSpec& s) {
  dev::grid_begin();
  const size_t n = s.elements;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) out[i] = dev::from_f32<T>(w[i]);
}

}  // namespace

KERNEL(__launch_bounds__(256) grad_squares_f32)(const float* __restrict__ grad, const float* __restrict__ values,
                                                float* __restrict__ partials, SquaresSpec s) {
  dev::grid_begin();
  const size_t begin = static_cast<size_t>(blockIdx.x) * CHUNK;
  const size_t left = s.elements - begin;
  const int n = left < CHUNK ? static_cast<int>(left) : CHUNK;
  const float scale = values[GRAD_SCALE];
  float sum = 0.f;
#pragma unroll 8
  for (int i = threadIdx.x; i < n; i += 256) {
    const float g = grad[begin + i] * scale;
    sum = fmaf(g, g, sum);
  }
  sum = dev::block_sum(sum);
  if (threadIdx.x == 0) partials[s.first + blockIdx.x] = sum;
}
KERNEL_EXPORT(grad_squares_f32)

KERNEL(__launch_bounds__(256) grad_report_f32)(const float* __restrict__ partials, const float* __restrict__ values,
                                               float* __restrict__ report, ReportSpec s) {
  dev::grid_begin();
  float sum = 0.f;
  for (int i = threadIdx.x; i < s.partials; i += 256) sum += partials[i];
  sum = dev::block_sum(sum);
  if (threadIdx.x != 0) return;
  const float norm = sqrtf(sum);
  report[NORM] = norm;
  report[FINITE] = norm - norm == 0.f ? 1.f : 0.f;
  report[FACTOR] = values[GRAD_SCALE] * fminf(1.f, values[MAX_NORM] / (norm + 1e-6f));
}
KERNEL_EXPORT(grad_report_f32)

KERNEL(__launch_bounds__(256) adam_f32)(float* w, const float* g, float* m, float* v, const float* values, const float* report,
                                        AdamSpec s) {
  dev::grid_begin();
  if (report[FINITE] == 0.f) return;
  const float factor = report[FACTOR], lr = values[LR], step_size = values[STEP_SIZE], root2 = values[ROOT2];
  const size_t n = s.elements, first = dev::first_index(), stride = dev::index_stride();
  const size_t fours = dev::aligned16(w, g, m, v) ? n / 4 * 4 : 0;
  for (size_t i = first * 4; i < fours; i += stride * 4)
    adam<4>(w + i, g + i, m + i, v + i, factor, lr, step_size, root2, s);
  for (size_t i = fours + first; i < n; i += stride) adam<1>(w + i, g + i, m + i, v + i, factor, lr, step_size, root2, s);
}
KERNEL_EXPORT(adam_f32)

KERNEL(__launch_bounds__(256) ema_f32)(const float* w, float* average, const float* values, const float* report, ElementsSpec s) {
  dev::grid_begin();
  if (report[FINITE] == 0.f) return;
  const float a = values[EMA_WEIGHT];
  const size_t n = s.elements, first = dev::first_index(), stride = dev::index_stride();
  const size_t fours = dev::aligned16(w, average) ? n / 4 * 4 : 0;
  for (size_t i = first * 4; i < fours; i += stride * 4) ema<4>(w + i, average + i, a);
  for (size_t i = fours + first; i < n; i += stride) ema<1>(w + i, average + i, a);
}
KERNEL_EXPORT(ema_f32)

KERNEL(__launch_bounds__(256) fill_zero_f32)(float* x, ElementsSpec s) {
  dev::grid_begin();
  const size_t n = s.elements;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) x[i] = 0.f;
}
KERNEL_EXPORT(fill_zero_f32)

#define CAST_EXPORT(T, dtype)                                                                                          \
  KERNEL(__launch_bounds__(256) cast_##dtype)(const float* w, T* out, ElementsSpec s) { cast(w, out, s); }             \
  KERNEL_EXPORT(cast_##dtype)

CAST_EXPORT(float, f32)
CAST_EXPORT(__half, f16)
CAST_EXPORT(__nv_bfloat16, bf16)
