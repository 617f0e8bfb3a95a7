// The rotation of vectors that are stored in 4 bits: a Walsh-Hadamard transform (QuaRot, arXiv 2404.00456), which spreads a few large dimensions over
// all, so that one scale serves a head. It is its own inverse, and orthogonal: queries that are rotated likewise meet keys in the same products.

template <int H> static inline void butterflies(float* x, int dim) {
  for (int i = 0; i < dim; i += 2 * H)
    for (int j = 0; j < H; j++) {
      const float a = x[i + j], b = x[i + j + H];
      x[i + j] = a + b;
      x[i + j + H] = a - b;
    }
}
constexpr int kWidestHead = 1024;  // that is rotated

// In place, in blocks of the largest power of two that divides dim
static void rotate(float* x, int dim) {
  const int block = dim & -dim;
  if (block >= 2) butterflies<1>(x, dim);
  if (block >= 4) butterflies<2>(x, dim);
  if (block >= 8) butterflies<4>(x, dim);
  if (block >= 16) butterflies<8>(x, dim);
  for (int h = 16; h < block; h *= 2)
    for (int i = 0; i < dim; i += 2 * h)
      for (int j = i; j < i + h; j += 16) {
        const f32x16 a = load(x + j), b = load(x + j + h);
        store(x + j, add(a, b));
        store(x + j + h, sub(a, b));
      }
  const float norm = 1.f / std::sqrt(float(block));
  for (int i = 0; i < dim; i++) x[i] *= norm;
}

// A key as it is stored, of one head; `turned` has room for dim
static inline const float* turned_key(const CacheLayer& cache, int head, const float* k, float* turned) {
  const int dim = cache.head_dim;
  const int64_t at = int64_t(head) * dim;
  if (cache.k_mean) for (int d = 0; d < dim; d++) turned[d] = (k[d] - cache.k_mean[at + d]) * cache.k_inverse[at + d];
  else std::memcpy(turned, k, sizeof(float) * size_t(dim));
  rotate(turned, dim);
  return turned;
}
// A query as it meets such keys
static const float* turned_query(const CacheLayer& cache, int head, const float* q, float* turned) {
  const int dim = cache.head_dim;
  const int64_t at = int64_t(head) * dim;
  if (cache.k_gain) for (int d = 0; d < dim; d++) turned[d] = q[d] * cache.k_gain[at + d];
  else std::memcpy(turned, q, sizeof(float) * size_t(dim));
  rotate(turned, dim);
  return turned;
}
