// Conditioning vectors: time, label, and their addition to token rows.
//
//   time_embed_fwd_<dtype>    "="   y[b] = table[*counter]           y: [batch, dim]; counter: evaluations done;
//                                   table: [evaluations, dim] f32, sines and cosines computed in f64 on the host
//   label_embed_fwd_<dtype>   "="   c = silu(time + table[label])    time, c: [batch, dim] (c may be time itself);
//                                   table: [classes + 1, dim]; labels: [batch]
//   add_rows_fwd_<dtype>      "+="  x[b, t] += v[b]                  x: [batch, tokens, dim]; v: [batch, dim]
//   prepend_token_fwd_<dtype>: y = first, then x, per image              "="    first: [dim]; x: [batch, tokens, dim]; y: [batch, tokens + 1, dim]
//   take_token_fwd_<dtype>:   y[b] = x[b, 0]                              "="    x: [batch, tokens, dim]; y: [batch, dim]
//
// Sums and silu are computed in f32 and rounded once.
//
// PRECOND: block 256, any 1-D grid (grid-stride loops); one thread per element, in add_rows per 16 bytes where dim is a multiple
//          of 16 bytes; *counter < evaluations and every label in 0..=classes (the host checks).
#include "prelude.cuh"

struct TimeEmbedSpec {
  int batch, dim;
};
SPEC_LAYOUT(TimeEmbedSpec, batch, dim)

struct LabelEmbedSpec {
  int batch, dim;
};
SPEC_LAYOUT(LabelEmbedSpec, batch, dim)

struct AddRowsSpec {
  int batch, tokens, dim;
};
SPEC_LAYOUT(AddRowsSpec, batch, tokens, dim)

namespace {

template <class T>
__device__ __forceinline__ void time_embed(const float* __restrict__ table, const unsigned* __restrict__ counter,
                                           T* __restrict__ y, const TimeEmbedSpec& s) {
  const float* row = table + static_cast<size_t>(*counter) * s.dim;
  const size_t n = static_cast<size_t>(s.batch) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) y[i] = dev::from_f32<T>(row[i % s.dim]);
}

template <class T>
__device__ __forceinline__ void label_embed(const T* time, const T* __restrict__ table, const int* __restrict__ labels, T* c,
                                            const LabelEmbedSpec& s) {
  const size_t n = static_cast<size_t>(s.batch) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const size_t row = static_cast<size_t>(labels[i / s.dim]) * s.dim;
    c[i] = dev::from_f32<T>(dev::silu(dev::to_f32(time[i]) + dev::to_f32(table[row + i % s.dim])));
  }
}

template <class T> __device__ __forceinline__ void add_rows(T* __restrict__ x, const T* __restrict__ v, const AddRowsSpec& s) {
  constexpr int V = dev::VEC<T>;
  const size_t image = static_cast<size_t>(s.tokens) * s.dim, n = s.batch * image;
  if (s.dim % V == 0 && dev::aligned16(x, v)) {
    for (size_t i = dev::first_index() * V; i < n; i += dev::index_stride() * V) {
      float a[V], b[V];
      dev::load_vec(x + i, a);
      dev::load_vec(v + i / image * s.dim + i % s.dim, b);
#pragma unroll
      for (int e = 0; e < V; ++e) a[e] += b[e];
      dev::store_vec(x + i, a);
    }
  } else {
    for (size_t i = dev::first_index(); i < n; i += dev::index_stride())
      x[i] = dev::from_f32<T>(dev::to_f32(x[i]) + dev::to_f32(v[i / image * s.dim + i % s.dim]));
  }
}

// y row 0 of each image = first; the rows behind it = x.
template <class T>
__device__ __forceinline__ void prepend_token(const T* __restrict__ first, const T* __restrict__ x, T* __restrict__ y,
                                              const AddRowsSpec& s) {
  const size_t image = static_cast<size_t>(s.tokens + 1) * s.dim, n = s.batch * image;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const size_t b = i / image, e = i % image;
    y[i] = e < static_cast<size_t>(s.dim) ? first[e] : x[b * (image - s.dim) + e - s.dim];
  }
}

template <class T>
__device__ __forceinline__ void take_token(const T* __restrict__ x, T* __restrict__ y, const AddRowsSpec& s) {
  const size_t n = static_cast<size_t>(s.batch) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) y[i] = x[i / s.dim * s.tokens * s.dim + i % s.dim];
}

}  // namespace

#define EMBED_EXPORTS(T, dtype)                                                                                        \
  KERNEL(__launch_bounds__(256) time_embed_fwd_##dtype)                                                                \
  (const float* table, const unsigned* counter, T* y, TimeEmbedSpec s) { time_embed<T>(table, counter, y, s); }        \
  KERNEL_EXPORT(time_embed_fwd_##dtype)                                                                                \
  KERNEL(__launch_bounds__(256) label_embed_fwd_##dtype)                                                               \
  (const T* time, const T* table, const int* labels, T* c, LabelEmbedSpec s) { label_embed<T>(time, table, labels, c, s); } \
  KERNEL_EXPORT(label_embed_fwd_##dtype)                                                                               \
  KERNEL(__launch_bounds__(256) add_rows_fwd_##dtype)(T* x, const T* v, AddRowsSpec s) { add_rows<T>(x, v, s); }        \
  KERNEL_EXPORT(add_rows_fwd_##dtype)                                                                                   \
  KERNEL(__launch_bounds__(256) prepend_token_fwd_##dtype)                                                             \
  (const T* first, const T* x, T* y, AddRowsSpec s) { prepend_token<T>(first, x, y, s); }                              \
  KERNEL_EXPORT(prepend_token_fwd_##dtype)                                                                             \
  KERNEL(__launch_bounds__(256) take_token_fwd_##dtype)(const T* x, T* y, AddRowsSpec s) { take_token<T>(x, y, s); }    \
  KERNEL_EXPORT(take_token_fwd_##dtype)

EMBED_EXPORTS(float, f32)
EMBED_EXPORTS(__half, f16)
EMBED_EXPORTS(__nv_bfloat16, bf16)
