// What attention does to one page of the cache, on float lanes. Included by attention.inl.h.

constexpr int kDimStep = 16;    // rows of floats are padded to a multiple of this
constexpr int kSpan = kPage;    // tokens between two looks at the maximum; longer spans were no faster (LOG)
constexpr int kRows = 6;        // query rows worked on together: 12 accumulators of 8 lanes on AVX2

// So few query rows that they wait for memory: one tile, if dimensions fill their lanes
static inline bool few_rows(int rows, int dim) { return rows <= kRows && dim % 16 == 0; }

// `count` values of the cache as float32
static void widen(CacheType type, const void* from, int64_t at, int count, float* to) {
  if (type == CacheType::F32) std::memcpy(to, static_cast<const float*>(from) + at, sizeof(float) * size_t(count));
  else if (type == CacheType::BF16) {
    const uint16_t* p = static_cast<const uint16_t*>(from) + at;
    int i = 0;
    for (; i + 16 <= count; i += 16) store(to + i, load_bf16(p + i));
    for (; i < count; i++) { const uint32_t b = uint32_t(p[i]) << 16; std::memcpy(to + i, &b, 4); }
  } else {
    const int8_t* p = static_cast<const int8_t*>(from) + at;
    int i = 0;
    for (; i + 16 <= count; i += 16) store(to + i, load_i8(p + i));
    for (; i < count; i++) to[i] = float(p[i]);
  }
}

static inline f32x16 lanes_of(const float* p) { return load(p); }
static inline f32x16 lanes_of(const uint16_t* p) { return load_bf16(p); }
static inline f32x16 lanes_of(const int8_t* p) { return load_i8(p); }

// s[r][0..32) = sum over d of q[d][r] * k[d][0..32), d ascending; W: vectors of sixteen tokens at a time
template <int R, int W, class T>
static inline void score_rows(const float* q, const T* k, int dim, float* s) {
  for (int from = 0; from < kPage; from += 16 * W) {
    f32x16 acc[R][W];
    for (int r = 0; r < R; r++) for (int i = 0; i < W; i++) acc[r][i] = zero();
    for (int d = 0; d < dim; d++)
      for (int i = 0; i < W; i++) {
        const f32x16 lane = lanes_of(k + d * kPage + from + 16 * i);
        for (int r = 0; r < R; r++) acc[r][i] = fmadd(set1(q[d * R + r]), lane, acc[r][i]);
      }
    for (int r = 0; r < R; r++) for (int i = 0; i < W; i++) store(s + r * kSpan + from + 16 * i, acc[r][i]);
  }
}

// o[r][0..dim) = o[r] * alpha[r] + sum over t < tokens of p[r][t] * v[t], t ascending; o has rows of `stride`. First: alpha counts.
template <int R, int W, bool First, class T>
static inline void mix_lanes(const float* p, const float* alpha, const T* v, int dim, int tokens, float* o, int64_t stride) {
  f32x16 acc[R][W];
  for (int r = 0; r < R; r++)
    for (int i = 0; i < W; i++) {
      acc[r][i] = load(o + r * stride + 16 * i);
      if (First) acc[r][i] = mul(acc[r][i], set1(alpha[r]));
    }
  int t = 0;
  do {  // there is at least one token: without the question the sums stay in registers from beginning to end
    for (int i = 0; i < W; i++) {
      const f32x16 value = lanes_of(v + int64_t(t) * dim + 16 * i);
      for (int r = 0; r < R; r++) acc[r][i] = fmadd(set1(p[r * kSpan + t]), value, acc[r][i]);
    }
  } while (++t < tokens);
  for (int r = 0; r < R; r++) for (int i = 0; i < W; i++) store(o + r * stride + 16 * i, acc[r][i]);
}
template <int R, int W, bool First, class T>
static inline void mix_rows(const float* p, const float* alpha, const T* v, int dim, int tokens, float* o, int64_t stride) {
  int d = 0;
  for (; d + 16 * W <= dim; d += 16 * W) mix_lanes<R, W, First>(p, alpha, v + d, dim, tokens, o + d, stride);
  for (; d < dim; d += 16) mix_lanes<R, 1, First>(p, alpha, v + d, dim, tokens, o + d, stride);
}

// Rows by the most that registers hold: few rows take more lanes each
template <class T>
static void scores(int rows, const float* q, const T* k, int dim, float* s) {
  switch (rows) {
    case 1: score_rows<1, 2>(q, k, dim, s); break;
    case 2: score_rows<2, 2>(q, k, dim, s); break;
    case 3: score_rows<3, 1>(q, k, dim, s); break;
    case 4: score_rows<4, 1>(q, k, dim, s); break;
    case 5: score_rows<5, 1>(q, k, dim, s); break;
    default: score_rows<6, 1>(q, k, dim, s); break;
  }
}
template <bool First, class T>
static void mix(int rows, const float* p, const float* alpha, const T* v, int dim, int tokens, float* o, int64_t stride) {
  switch (rows) {
    case 1: mix_rows<1, 4, First>(p, alpha, v, dim, tokens, o, stride); break;
    case 2: mix_rows<2, 2, First>(p, alpha, v, dim, tokens, o, stride); break;
    case 3: mix_rows<3, 1, First>(p, alpha, v, dim, tokens, o, stride); break;
    case 4: mix_rows<4, 1, First>(p, alpha, v, dim, tokens, o, stride); break;
    case 5: mix_rows<5, 1, First>(p, alpha, v, dim, tokens, o, stride); break;
    default: mix_rows<6, 1, First>(p, alpha, v, dim, tokens, o, stride); break;
  }
}

// Queries of a tile lie [dim][rows], so that one pointer walks over them
static void lay_out(const AttentionCall& c, const float* from, int64_t head, int token, int lane, int dim, float* tiles, int row, int rows) {
  const int tile = row / kRows * kRows, n = rows - tile < kRows ? rows - tile : kRows;
  const float* q = from + int64_t(token) * c.q_stride + (head * group_of(c) + lane) * dim;
  float* to = tiles + int64_t(tile) * dim + (row - tile);
  for (int d = 0; d < dim; d++) to[d * n] = q[d];
}

// Scores of one page for rows that lie in tiles; `direct`: one tile, for which the cache is widened as it is read
static void score_page(const AttentionCall& c, const Walk& w, int64_t cell, int rows, const float* q, float* p, bool direct) {
  const CacheLayer& cache = *c.cache;
  const int dim = cache.head_dim;
  const int64_t offset = cell * dim * kPage;
  const auto score = [&](const auto* k) {
    for (int r = 0; r < rows; r += kRows) scores(rows - r < kRows ? rows - r : kRows, q + int64_t(r) * dim, k, dim, p + int64_t(r) * kSpan);
  };
  if (cache.k_type == CacheType::F32) score(static_cast<const float*>(cache.k) + offset);
  else if (direct && cache.k_type == CacheType::BF16) score(static_cast<const uint16_t*>(cache.k) + offset);
  else if (direct) score(static_cast<const int8_t*>(cache.k) + offset);
  else {
    widen(cache.k_type, cache.k, offset, dim * kPage, w.keys);
    score(static_cast<const float*>(w.keys));
  }
}

// Adds the values of one page, weighted, to rows [row, row + rows); `opens`: the first of its span, where alpha counts
static void mix_page(const AttentionCall& c, const Walk& w, int64_t cell, int row, int rows, float* p, int tokens, bool opens, bool direct) {
  const CacheLayer& cache = *c.cache;
  const int dim = cache.head_dim, wide = (dim + 15) / 16 * 16;
  const int64_t offset = cell * dim * kPage;
  const auto blend = [&](const auto* v) {
    for (int r = 0; r < rows; r += kRows) {
      const int n = rows - r < kRows ? rows - r : kRows;
      float* o = w.o + int64_t(row + r) * wide;
      if (opens) mix<true>(n, p + int64_t(r) * kSpan, w.alpha + row + r, v, dim, tokens, o, int64_t(wide));
      else mix<false>(n, p + int64_t(r) * kSpan, w.alpha + row + r, v, dim, tokens, o, int64_t(wide));
    }
  };
  if (cache.v_type == CacheType::F32 && dim % 16 == 0) blend(static_cast<const float*>(cache.v) + offset);
  else if (direct && cache.v_type == CacheType::BF16) blend(static_cast<const uint16_t*>(cache.v) + offset);
  else if (direct) blend(static_cast<const int8_t*>(cache.v) + offset);
  else {
    widen(cache.v_type, cache.v, offset, dim * tokens, w.values);
    blend(static_cast<const float*>(w.values));
  }
}
