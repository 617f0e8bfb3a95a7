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

// In place, any number of them: in blocks of powers of two, from the largest at the beginning down, and once more the other way round, so that nearly all meet
static void rotate_all(float* x, int count) {
  for (int way = 0; way < 2; way++) {
    float* at = x;
    for (int i = 0; i < 31; i++) {
      const int block = 1 << (way ? i : 30 - i);
      if (!(count & block)) continue;
      rotate(at, block);
      at += block;
    }
    if ((count & (count - 1)) == 0) break;  // one block
  }
}

// A key as it is stored, of one head; `turned` has room for dim
static inline const float* turned_key(const CacheLayer& cache, int head, const float* k, float* turned) {
  const int dim = cache.head_dim;
  const int64_t at = int64_t(head) * dim;
  for (int d = 0; d < dim; d++) turned[d] = (k[d] - cache.k_mean[at + d]) * cache.k_inverse[at + d];
  rotate(turned, dim);
  return turned;
}
// The components of a key as U4 stores them, without the jump of sinks where they are nearer to that: then true
static inline bool key_components(const CacheLayer& cache, int head, const float* k, float* turned) {
  const int dim = cache.head_dim;
  const int64_t at = int64_t(head) * dim;
  for (int i = 0; i < dim; i++) {
    const int d = cache.k_order[at + i];
    turned[i] = (k[d] - cache.k_mean[at + d]) * cache.k_inverse[at + i];
  }
  rotate_all(turned + cache.k_lead, dim - cache.k_lead);
  if (cache.k_even) return false;  // the scale has a sign of its own
  const float* jump = cache.k_jump + at;
  float plain = 0.f, jumped = 0.f;
  for (int i = 0; i < dim; i++) {
    plain += turned[i] * turned[i];
    jumped += (turned[i] - jump[i]) * (turned[i] - jump[i]);
  }
  if (!(jumped < plain)) return false;
  for (int i = 0; i < dim; i++) turned[i] -= jump[i];
  return true;
}
// A query as it meets them: key_rows numbers, of a leading component what its low and its high bits count
static inline void query_components(const CacheLayer& cache, int head, const float* q, float* turned, float* rows) {
  const int dim = cache.head_dim, lead = cache.k_lead;
  const int64_t at = int64_t(head) * dim;
  for (int i = 0; i < dim; i++) turned[i] = q[cache.k_order[at + i]] * cache.k_gain[at + i];
  rotate_all(turned + lead, dim - lead);
  for (int i = 0; i < lead; i++) {
    rows[2 * i] = turned[i] * 0.0625f;
    rows[2 * i + 1] = turned[i];
  }
  std::memcpy(rows + 2 * lead, turned + lead, sizeof(float) * size_t(dim - lead));
}
// A query as it meets such keys
static inline const float* turned_query(const CacheLayer& cache, int head, const float* q, float* turned) {
  const int dim = cache.head_dim;
  const int64_t at = int64_t(head) * dim;
  if (!cache.k_gain) return q;
  for (int d = 0; d < dim; d++) turned[d] = q[d] * cache.k_gain[at + d];
  rotate(turned, dim);
  return turned;
}
