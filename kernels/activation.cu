// What follows a product where training keeps the product, and its backward. All write with "=". T in {f32, f16, bf16}.
//
//   activation_fwd_<dtype>       y = residual + gate[b] act(a)             act: 0 none, 1 GELU (erf), 2 GELU (tanh), 3 SiLU, 4 ReLU
//   activation_bwd_<dtype>       da = gate[b] act'(a) dy
//   activation_gate_bwd_<dtype>  dgate[b] = sum_t act(a) dy
//   a, residual, y, dy, da: [images, rows_per_image, dim]; gate, dgate: [images, dim]; residual and gate: null means 0 and 1
//
//   geglu_fwd_<dtype>            y = value gelu(gate) with the halves of a row of x (Shazeer, arXiv 2002.05202), GELU (erf)
//   geglu_bwd_<dtype>            dvalue = gelu(gate) dy, dgate = value gelu'(gate) dy
//   x, dx: [rows, 2 dim], values in front of gates; y, dy: [rows, dim]
//
// PRECOND activation_fwd, activation_bwd, geglu_*: block 256, any 1-D grid (grid-stride loops).
// PRECOND activation_gate_bwd: grid (ceil(dim/32), images), block 256.
#include "columns.cuh"

struct ActivationSpec {
  int images, rows_per_image, dim;
  int act;
};
SPEC_LAYOUT(ActivationSpec, images, rows_per_image, dim, act)

struct GegluSpec {
  int rows, dim;
};
SPEC_LAYOUT(GegluSpec, rows, dim)

namespace {

__device__ __forceinline__ float apply(int act, float a) {
  return act == 1 ? dev::gelu_erf(a) : act == 2 ? dev::gelu_tanh(a) : act == 3 ? dev::silu(a) : act == 4 ? dev::relu(a) : a;
}

__device__ __forceinline__ float slope(int act, float a) {
  if (act == 1)  // Phi(a) + a phi(a)
    return fmaf(a * 0.39894228040143268f, expf(-0.5f * a * a), 0.5f * (1.f + erff(a * 0.70710678118654752f)));
  if (act == 2) {
    const float t = tanhf(0.79788456080286536f * (a + 0.044715f * a * a * a));
    const float inner = 0.79788456080286536f * (1.f + 3.f * 0.044715f * a * a);
    return 0.5f * (1.f + t) + 0.5f * a * (1.f - t * t) * inner;
  }
  if (act == 3) {
    const float s = 1.f / (1.f + expf(-a));
    return s * (1.f + a * (1.f - s));
  }
  return act == 4 && !(a > 0.f) ? 0.f : 1.f;
}

template <class T>
__device__ __forceinline__ void forward(const T* __restrict__ a, const T* __restrict__ gate, const T* __restrict__ residual,
                                        T* __restrict__ y, const ActivationSpec& s) {
  dev::grid_begin();
  const size_t image = static_cast<size_t>(s.rows_per_image) * s.dim, n = s.images * image;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    float v = apply(s.act, dev::to_f32(a[i]));
    if (gate) v *= dev::to_f32(gate[i / image * s.dim + i % s.dim]);
    if (residual) v += dev::to_f32(residual[i]);
    y[i] = dev::from_f32<T>(v);
  }
}

template <class T>
__device__ __forceinline__ void backward(const T* __restrict__ a, const T* __restrict__ gate, const T* __restrict__ dy,
                                         T* __restrict__ da, const ActivationSpec& s) {
  dev::grid_begin();
  const size_t image = static_cast<size_t>(s.rows_per_image) * s.dim, n = s.images * image;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    float v = slope(s.act, dev::to_f32(a[i])) * dev::to_f32(dy[i]);
    if (gate) v *= dev::to_f32(gate[i / image * s.dim + i % s.dim]);
    da[i] = dev::from_f32<T>(v);
  }
}

template <class T>
__device__ __forceinline__ void gate_backward(const T* __restrict__ a, const T* __restrict__ dy, T* __restrict__ dgate,
                                              const ActivationSpec& s) {
  dev::grid_begin();
  const size_t image = static_cast<size_t>(blockIdx.y) * s.rows_per_image * s.dim;
  float sum[1];
  const bool mine = dev::column_sums(sum, s.rows_per_image, s.dim, [&](int row, int col, float(&v)[1]) {
    const size_t i = image + static_cast<size_t>(row) * s.dim + col;
    v[0] = fmaf(apply(s.act, dev::to_f32(a[i])), dev::to_f32(dy[i]), v[0]);
  });
  if (mine) dgate[static_cast<size_t>(blockIdx.y) * s.dim + blockIdx.x * 32 + threadIdx.x] = dev::from_f32<T>(sum[0]);
}

template <class T> __device__ __forceinline__ void geglu(const T* __restrict__ x, T* __restrict__ y, const GegluSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.rows) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const T* value = x + i / s.dim * s.dim + i;  // row i / dim, column i % dim
    y[i] = dev::from_f32<T>(dev::to_f32(value[0]) * dev::gelu_erf(dev::to_f32(value[s.dim])));
  }
}

template <class T>
__device__ __forceinline__ void geglu_backward(const T* __restrict__ x, const T* __restrict__ dy, T* __restrict__ dx, const GegluSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.rows) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const size_t at = i / s.dim * s.dim + i;
    const float value = dev::to_f32(x[at]), gate = dev::to_f32(x[at + s.dim]), d = dev::to_f32(dy[i]);
    dx[at] = dev::from_f32<T>(dev::gelu_erf(gate) * d);
    dx[at + s.dim] = dev::from_f32<T>(value * slope(1, gate) * d);
  }
}

}  // namespace

#define ACTIVATION_EXPORTS(T, dtype)                                                                                        \
  KERNEL(__launch_bounds__(256) activation_fwd_##dtype)                                                                     \
  (const T* a, const T* gate, const T* residual, T* y, ActivationSpec s) { forward(a, gate, residual, y, s); }              \
  KERNEL_EXPORT(activation_fwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(256) activation_bwd_##dtype)                                                                     \
  (const T* a, const T* gate, const T* dy, T* da, ActivationSpec s) { backward(a, gate, dy, da, s); }                       \
  KERNEL_EXPORT(activation_bwd_##dtype)                                                                                     \
  KERNEL(__launch_bounds__(256) activation_gate_bwd_##dtype)                                                                \
  (const T* a, const T* dy, T* dgate, ActivationSpec s) { gate_backward(a, dy, dgate, s); }                                 \
  KERNEL_EXPORT(activation_gate_bwd_##dtype)                                                                                \
  KERNEL(__launch_bounds__(256) geglu_fwd_##dtype)(const T* x, T* y, GegluSpec s) { geglu(x, y, s); }                       \
  KERNEL_EXPORT(geglu_fwd_##dtype)                                                                                          \
  KERNEL(__launch_bounds__(256) geglu_bwd_##dtype)                                                                          \
  (const T* x, const T* dy, T* dx, GegluSpec s) { geglu_backward(x, dy, dx, s); }                                           \
  KERNEL_EXPORT(geglu_bwd_##dtype)

ACTIVATION_EXPORTS(float, f32)
ACTIVATION_EXPORTS(__half, f16)
ACTIVATION_EXPORTS(__nv_bfloat16, bf16)
