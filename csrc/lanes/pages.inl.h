// What attention does to one page of the cache, on float lanes. Included by attention.inl.h.

constexpr int kDimStep = 16;    // rows of floats are padded to a multiple of this
// Vectors of sixteen tokens, or dimensions, that so many rows meet together: few rows take more lanes each
constexpr int score_width(int rows) { return kManyRegisters || rows <= 2 ? 2 : 1; }
constexpr int mix_width(int rows) { return kManyRegisters ? (rows <= 3 ? 4 : 2) : rows == 1 ? 4 : rows == 2 ? 2 : 1; }

// What the bytes of a cache stand for
struct Fp8 { uint8_t code; };
struct Pair4 { uint8_t codes; };

static inline f32x16 lanes_of(const float* p) { return load(p); }
static inline f32x16 lanes_of(const uint16_t* p) { return load_bf16(p); }
static inline f32x16 lanes_of(const int8_t* p) { return load_i8(p); }
static inline f32x16 lanes_of(const Fp8* p) { return load_e4m3(&p->code); }
template <bool High> static inline f32x16 lanes_of(const Pair4* p) { return load_u4<High>(&p->codes); }
static inline float one_of(float x) { return x; }
static inline float one_of(uint16_t x) { const uint32_t b = uint32_t(x) << 16; float f; std::memcpy(&f, &b, 4); return f; }
static inline float one_of(int8_t x) { return float(x); }
static inline float one_of(Fp8 x) { Fp8 all[16]; float f[16]; for (Fp8& one : all) one = x; store(f, lanes_of(all)); return f[0]; }

// `count` values of the cache as float32
template <class T> static void widen(const T* p, int count, float* to) {
  int i = 0;
  for (; i + 16 <= count; i += 16) store(to + i, lanes_of(p + i));
  for (; i < count; i++) to[i] = one_of(p[i]);
}
// Keys of a page, [dim][kPage]
template <class T> static void widen_keys(const T* p, int dim, float* to) { widen(p, dim * kPage, to); }
static void widen_keys(const Pair4* p, int dim, float* to) {
  for (int d = 0; d < dim; d += 2, p += kPage)
    for (int t = 0; t < kPage; t += 16) {
      store(to + d * kPage + t, lanes_of<false>(p + t));
      if (d + 1 < dim) store(to + (d + 1) * kPage + t, lanes_of<true>(p + t));
    }
}
// Values of `tokens` tokens, [tokens][dim]
template <class T> static void widen_values(const T* p, int dim, int tokens, float* to) { widen(p, dim * tokens, to); }
static void widen_values(const Pair4* p, int dim, int tokens, float* to) {
  for (int t = 0; t < tokens; t++, to += dim) {
    int d = 0;
    for (; d + 32 <= dim; d += 32, p += 16) {
      store(to + d, lanes_of<false>(p));
      store(to + d + 16, lanes_of<true>(p));
    }
    const int half = (dim - d + 1) / 2;
    for (int i = 0; i < half; i++) {
      to[d + i] = float(p[i].codes & 15);
      if (d + half + i < dim) to[d + half + i] = float(p[i].codes >> 4);
    }
    p += half;
  }
}

// s[r][0..32) = sum over d of q[d][r] * k[d][0..32), d ascending; W: vectors of sixteen tokens at a time. Loops over sums are unrolled by hand, or gcc
// keeps them in memory. ahead: a page to bring nearer meanwhile, or null.
template <int R, int W, class T>
static inline void score_rows(const float* q, const T* k, int dim, float* s, const T* ahead) {
  for (int from = 0; from < kPage; from += 16 * W) {
    f32x16 acc[R][W];
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int i = 0; i < W; i++) acc[r][i] = zero();
    const auto add = [&](int d, const f32x16* lane) __attribute__((always_inline)) {
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const f32x16 x = set1(q[d * R + r]);
#pragma GCC unroll 2
        for (int i = 0; i < W; i++) acc[r][i] = fmadd(x, lane[i], acc[r][i]);
      }
    };
    if constexpr (std::is_same_v<T, Pair4>) {  // dim is even
      for (int d = 0; d < dim; d += 2) {
        if (ahead && from == 0) prefetch_l2(ahead + d / 2 * kPage);
        f32x16 first[W], second[W];
#pragma GCC unroll 2
        for (int i = 0; i < W; i++) {
          const T* at = k + d / 2 * kPage + from + 16 * i;
          first[i] = lanes_of<false>(at);
          second[i] = lanes_of<true>(at);
        }
        add(d, first);
        add(d + 1, second);
      }
    } else {
      for (int d = 0; d < dim; d++) {
        if (ahead && from == 0)
          for (size_t i = 0; i < kPage; i += 64 / sizeof(T)) prefetch_l2(ahead + d * kPage + i);
        f32x16 lane[W];
#pragma GCC unroll 2
        for (int i = 0; i < W; i++) lane[i] = lanes_of(k + d * kPage + from + 16 * i);
        add(d, lane);
      }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
      for (int i = 0; i < W; i++) store(s + r * kSpan + from + 16 * i, acc[r][i]);
  }
}

// Sixteen values from dimension d on, of a row of `dim`
template <class T> static inline f32x16 values_at(const T* row, int d) { return lanes_of(row + d); }
static inline f32x16 values_at(const Pair4* row, int d) { return d % 32 ? lanes_of<true>(row + d / 32 * 16) : lanes_of<false>(row + d / 32 * 16); }
template <class T> static inline int64_t row_of(const T*, int64_t dim) { return dim; }
static inline int64_t row_of(const Pair4*, int64_t dim) { return dim / 2; }

// o[r][d0..d0 + 16 W) = o[r] * alpha[r] + sum over t < tokens of p[r][t] * v[t], t ascending; o has rows of `stride`. First: alpha counts.
template <int R, int W, bool First, class T>
static inline void mix_lanes(const float* p, const float* alpha, const T* v, int d0, int dim, int tokens, float* o, int64_t stride, const T* ahead) {
  f32x16 acc[R][W];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int i = 0; i < W; i++) {
      acc[r][i] = load(o + r * stride + d0 + 16 * i);
      if (First) acc[r][i] = mul(acc[r][i], set1(alpha[r]));
    }
  const int64_t row = row_of(v, dim), line = 64 / int64_t(sizeof(T));
  int t = 0;
  do {  // there is at least one token: without the question the sums stay in registers from beginning to end
    if (ahead && d0 == 0)
      for (int64_t i = t * row; i < (t + 1) * row; i += line) prefetch_l2(ahead + i);
    f32x16 value[W];
#pragma GCC unroll 4
    for (int i = 0; i < W; i++) value[i] = values_at(v + t * row, d0 + 16 * i);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const f32x16 x = set1(p[r * kSpan + t]);
#pragma GCC unroll 4
      for (int i = 0; i < W; i++) acc[r][i] = fmadd(x, value[i], acc[r][i]);
    }
  } while (++t < tokens);
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int i = 0; i < W; i++) store(o + r * stride + d0 + 16 * i, acc[r][i]);
}
template <int R, int W, bool First, class T>
static inline void mix_rows(const float* p, const float* alpha, const T* v, int dim, int tokens, float* o, int64_t stride, const T* ahead) {
  int d = 0;
  for (; d + 16 * W <= dim; d += 16 * W) mix_lanes<R, W, First>(p, alpha, v, d, dim, tokens, o, stride, ahead);
  for (; d < dim; d += 16) mix_lanes<R, 1, First>(p, alpha, v, d, dim, tokens, o, stride, ahead);
}

// Rows by the most that registers hold
template <int R = kRows, class T>
static void scores(int rows, const float* q, const T* k, int dim, float* s, const T* ahead) {
  if constexpr (R > 1) {
    if (rows < R) return scores<R - 1>(rows, q, k, dim, s, ahead);
  }
  score_rows<R, score_width(R)>(q, k, dim, s, ahead);
}
template <bool First, int R = kRows, class T>
static void mix(int rows, const float* p, const float* alpha, const T* v, int dim, int tokens, float* o, int64_t stride, const T* ahead) {
  if constexpr (R > 1) {
    if (rows < R) return mix<First, R - 1>(rows, p, alpha, v, dim, tokens, o, stride, ahead);
  }
  mix_rows<R, mix_width(R), First>(p, alpha, v, dim, tokens, o, stride, ahead);
}

// Queries of a tile lie [dim][rows], so that one pointer walks over them
static void lay_out(const float* q, int dim, float* tiles, int row, int rows) {
  const int tile = row / kRows * kRows, n = rows - tile < kRows ? rows - tile : kRows;
  float* to = tiles + int64_t(tile) * dim + (row - tile);
  for (int d = 0; d < dim; d++) to[d * n] = q[d];
}

// fn(pointer of the type that the bytes stand for)
template <class F> static inline void typed(CacheType type, const void* bytes, F&& fn) {
  switch (type) {
    case CacheType::F32: return fn(static_cast<const float*>(bytes));
    case CacheType::BF16: return fn(static_cast<const uint16_t*>(bytes));
    case CacheType::I8: return fn(static_cast<const int8_t*>(bytes));
    case CacheType::E4M3: return fn(static_cast<const Fp8*>(bytes));
    case CacheType::U4: return fn(static_cast<const Pair4*>(bytes));
  }
}

// Scores of one page for rows that lie in tiles; `direct`: one tile, for which the cache is widened as it is read
static void score_page(const AttentionCall& c, const Walk& w, int64_t cell, int rows, const float* q, float* p, bool direct) {
  const CacheLayer& cache = *c.cache;
  const int dim = cache.key_rows();
  const int64_t bytes = cache_bytes(cache.k_type, kPage, dim);
  const auto score = [&](const auto* k, decltype(k) ahead) {
    for (int r = 0; r < rows; r += kRows) scores(rows - r < kRows ? rows - r : kRows, q + int64_t(r) * dim, k, dim, p + int64_t(r) * kSpan, r ? nullptr : ahead);
  };
  typed(cache.k_type, static_cast<const char*>(cache.k) + cell * bytes, [&](const auto* k) {
    if (direct || cache.k_type == CacheType::F32) return score(k, w.ahead < 0 ? nullptr : decltype(k)(static_cast<const char*>(cache.k) + w.ahead * bytes));
    widen_keys(k, dim, w.keys);
    score(static_cast<const float*>(w.keys), nullptr);
  });
}

// Adds the values of one page, weighted, to rows [row, row + rows); `opens`: the first of its span, where alpha counts
static void mix_page(const AttentionCall& c, const Walk& w, int64_t cell, int row, int rows, float* p, int tokens, bool opens, bool direct) {
  const CacheLayer& cache = *c.cache;
  const int dim = cache.head_dim, wide = (cache.key_rows() + kDimStep - 1) / kDimStep * kDimStep;
  const int64_t bytes = cache_bytes(cache.v_type, kPage, dim);
  const auto blend = [&](const auto* v, decltype(v) ahead) {
    for (int r = 0; r < rows; r += kRows) {
      const int n = rows - r < kRows ? rows - r : kRows;
      float* o = w.o + int64_t(row + r) * wide;
      if (opens) mix<true>(n, p + int64_t(r) * kSpan, w.alpha + row + r, v, dim, tokens, o, int64_t(wide), r ? nullptr : ahead);
      else mix<false>(n, p + int64_t(r) * kSpan, w.alpha + row + r, v, dim, tokens, o, int64_t(wide), r ? nullptr : ahead);
    }
  };
  typed(cache.v_type, static_cast<const char*>(cache.v) + cell * bytes, [&](const auto* v) {
    if (direct || (cache.v_type == CacheType::F32 && dim % 16 == 0))
      return blend(v, w.ahead < 0 ? nullptr : decltype(v)(static_cast<const char*>(cache.v) + w.ahead * bytes));
    widen_values(v, dim, tokens, w.values);
    blend(static_cast<const float*>(w.values), nullptr);
  });
}

// Sixteen of a row's sums, from dimension d on
static inline f32x16 mixed(const CacheLayer&, const float* o, int d) { return load(o + d); }
// What a query becomes before anything is computed of it: rows meet keys as floats
static inline void as_met(float*, int) {}
// What 4-bit values, 0..15, are less by when they are met
constexpr float kValueZero = 0.f;
