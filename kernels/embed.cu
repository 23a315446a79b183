// Conditioning vectors: time plus label; and class tokens put before or taken from token sequences.
//
//   label_embed_fwd_<dtype>   "="   c[e, l] = silu(time[e] + table[labels[l]])   time: [evaluations, dim]; labels: [labels];
//                                   table: [classes + 1, dim]; c: [evaluations, labels, dim]
//   prepend_token_fwd_<dtype> "="   y[b] = first, then x[b]          first: [dim]; x: [batch, tokens, dim]; y: [batch, tokens + 1, dim]
//   take_token_fwd_<dtype>    "="   y[b] = x[b, 0]                   x: [batch, tokens, dim]; y: [batch, dim]
//   label_add_fwd_<dtype>     "="   y[b] = time[b] + table[labels[b]]      time, y: [batch, dim]; table: [classes, dim]
//   label_table_bwd_<dtype>   "+="  dtable[r] += sum of dy[b] over the b with labels[b] = r, in order; dtable in f32
//
// Sums and silu are computed in f32 and rounded once.
//
// PRECOND: block 256, any 1-D grid (grid-stride loops); one thread per element of what is written; every label is a row of
//          the table (the host checks).
#include "prelude.cuh"

struct LabelEmbedSpec {
  int evaluations, labels, dim;
};
SPEC_LAYOUT(LabelEmbedSpec, evaluations, labels, dim)

struct TokensSpec {
  int batch, tokens, dim;
};
SPEC_LAYOUT(TokensSpec, batch, tokens, dim)

struct LabelAddSpec {
  int batch, classes, dim;
};
SPEC_LAYOUT(LabelAddSpec, batch, classes, dim)

namespace {

template <class T>
__device__ __forceinline__ void label_add(const T* __restrict__ time, const T* __restrict__ table,
                                          const unsigned* __restrict__ labels, T* __restrict__ y, const LabelAddSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.batch) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const float label = dev::to_f32(table[static_cast<size_t>(labels[i / s.dim]) * s.dim + i % s.dim]);
    y[i] = dev::from_f32<T>(dev::to_f32(time[i]) + label);
  }
}

template <class T>
__device__ __forceinline__ void label_table_backward(const unsigned* __restrict__ labels, const T* __restrict__ dy,
                                                     float* __restrict__ dtable, const LabelAddSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.classes) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const unsigned row = static_cast<unsigned>(i / s.dim);
    float sum = 0.f;
    for (int b = 0; b < s.batch; ++b)
      if (labels[b] == row) sum += dev::to_f32(dy[static_cast<size_t>(b) * s.dim + i % s.dim]);
    dtable[i] += sum;
  }
}

template <class T>
__device__ __forceinline__ void label_embed(const T* __restrict__ time, const T* __restrict__ table,
                                            const unsigned* __restrict__ labels, T* __restrict__ c, const LabelEmbedSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.evaluations) * s.labels * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const size_t row = i / s.dim, col = i % s.dim;
    const float t = dev::to_f32(time[row / s.labels * s.dim + col]);
    c[i] = dev::from_f32<T>(dev::silu(t + dev::to_f32(table[static_cast<size_t>(labels[row % s.labels]) * s.dim + col])));
  }
}

// y row 0 of each image = first; the rows behind it = x.
template <class T>
__device__ __forceinline__ void prepend_token(const T* __restrict__ first, const T* __restrict__ x, T* __restrict__ y,
                                              const TokensSpec& s) {
  dev::grid_begin();
  const size_t image = static_cast<size_t>(s.tokens + 1) * s.dim, n = s.batch * image;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) {
    const size_t b = i / image, e = i % image;
    y[i] = e < static_cast<size_t>(s.dim) ? first[e] : x[b * (image - s.dim) + e - s.dim];
  }
}

template <class T>
__device__ __forceinline__ void take_token(const T* __restrict__ x, T* __restrict__ y, const TokensSpec& s) {
  dev::grid_begin();
  const size_t n = static_cast<size_t>(s.batch) * s.dim;
  for (size_t i = dev::first_index(); i < n; i += dev::index_stride()) y[i] = x[i / s.dim * s.tokens * s.dim + i % s.dim];
}

}  // namespace

#define EMBED_EXPORTS(T, dtype)                                                                                        \
  KERNEL(__launch_bounds__(256) label_embed_fwd_##dtype)                                                               \
  (const T* time, const T* table, const unsigned* labels, T* c, LabelEmbedSpec s) {                                     \
    label_embed<T>(time, table, labels, c, s);                                                                         \
  }                                                                                                                    \
  KERNEL_EXPORT(label_embed_fwd_##dtype)                                                                               \
  KERNEL(__launch_bounds__(256) prepend_token_fwd_##dtype)                                                             \
  (const T* first, const T* x, T* y, TokensSpec s) { prepend_token<T>(first, x, y, s); }                              \
  KERNEL_EXPORT(prepend_token_fwd_##dtype)                                                                             \
  KERNEL(__launch_bounds__(256) take_token_fwd_##dtype)(const T* x, T* y, TokensSpec s) { take_token<T>(x, y, s); }    \
  KERNEL_EXPORT(take_token_fwd_##dtype)                                                                                \
  KERNEL(__launch_bounds__(256) label_add_fwd_##dtype)                                                                 \
  (const T* time, const T* table, const unsigned* labels, T* y, LabelAddSpec s) { label_add<T>(time, table, labels, y, s); } \
  KERNEL_EXPORT(label_add_fwd_##dtype)                                                                                 \
  KERNEL(__launch_bounds__(256) label_table_bwd_##dtype)                                                               \
  (const unsigned* labels, const T* dy, float* dtable, LabelAddSpec s) { label_table_backward<T>(labels, dy, dtable, s); } \
  KERNEL_EXPORT(label_table_bwd_##dtype)

EMBED_EXPORTS(float, f32)
EMBED_EXPORTS(__half, f16)
EMBED_EXPORTS(__nv_bfloat16, bf16)
