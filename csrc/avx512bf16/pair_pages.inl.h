// Attention's pages as pairs of bfloat16: vdpbf16ps multiplies two at once and adds both products to a float32 sum, twice what float32 lanes do. Instead of
// lanes/pages.inl.h, for caches that bfloat16 holds exactly (BF16, and I8 with its scales kept apart). Queries and softmax weights are rounded to
// bfloat16, as keys and values of a BF16 cache are.
//
// 4-bit codes are looked up, as they lie: two keys' dimensions, or two dimensions 16 apart of a value, to a byte. Queries are rounded before anything is computed of
// them, so that offsets meet what the codes meet; values are met less by 8, which makes what rounding of softmax weights loses as small as for other caches.
//
// Interleaving two rows of 32 numbers leaves their pairs in another order: `first` has those of 0..3, 8..11, 16..19 and 24..27, `second` the others. Scores are put
// in order when their sums are done; sums over values stay as they are until the end (mixed).

constexpr int kDimStep = 32;

struct Pairs { __m512i first, second; };
static inline Pairs interleaved(__m512i a, __m512i b) { return {_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)}; }
static inline f32x16 dot(f32x16 sum, __m512i x, __m512i y) { return {_mm512_dpbf16_ps(sum.v, (__m512bh)x, (__m512bh)y)}; }
static inline __m512i to_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
static inline f32x16 ordered(f32x16 first, f32x16 second, bool upper) {
  const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  return {_mm512_permutex2var_ps(first.v, upper ? _mm512_add_epi32(low, _mm512_set1_epi32(8)) : low, second.v)};
}
static inline f32x16 mixed(const CacheLayer& cache, const float* o, int d) {
  if (cache.v_type == CacheType::U4) return load(o + d);
  return ordered(load(o + d / 32 * 32), load(o + d / 32 * 32 + 16), d % 32 != 0);
}

// 32 numbers of the cache, those of `mask`, as bfloat16
static inline __m512i some(const uint16_t* p, __mmask32 mask) { return _mm512_maskz_loadu_epi16(mask, p); }
static inline __m512i some(const int8_t* p, __mmask32 mask) {
  const __m256i codes = _mm256_maskz_loadu_epi8(mask, p);
  return to_bf16(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(codes))), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(codes, 1))));
}
struct Pair4 { uint8_t codes; };
constexpr float kValueZero = 8.f;
static inline void as_met(float* x, int n) {
  for (int i = 0; i < n; i += 16) {
    const int left = n - i;
    alignas(32) uint16_t lanes[16];
    store_bf16(lanes, load_n(x + i, left));
    store_n(x + i, load_bf16(lanes), left < 16 ? left : 16);
  }
}
// The bfloat16 of the low four bits of each half of a lane, less by `zero`; the bit above them may be anything
template <int Zero> static inline __m512i looked_up(__m512i codes) {
  static_assert(Zero == 0 || Zero == 8, "exact");
  const __m512i from_zero = _mm512_set4_epi64(0x4170416041504140, 0x4130412041104100, 0x40e040c040a04080, 0x404040003f800000);
  const __m512i centred = _mm512_set4_epi64(0x40e040c040a04080, 0x404040003f800000, int64_t(0xbf80c000c040c080), int64_t(0xc0a0c0c0c0e0c100));
  return _mm512_permutexvar_epi16(codes, Zero ? centred : from_zero);
}
static inline __m512i sixteen(const Pair4* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }

static inline __mmask32 first_of(int count) { return count >= 32 ? ~__mmask32(0) : count <= 0 ? __mmask32(0) : (__mmask32(1) << count) - 1; }

// Rows d and d + 1 of a page of keys [dim][kPage], as pairs; uint32_t: they were laid out before
template <class T> static inline Pairs keys_at(const T* k, int d, int dim) {
  return interleaved(some(k + d * kPage, ~__mmask32(0)), d + 1 < dim ? some(k + (d + 1) * kPage, ~__mmask32(0)) : _mm512_setzero_si512());
}
static inline Pairs keys_at(const Pair4* k, int d, int) {
  const auto pairs = [](__m512i codes) { return looked_up<0>(_mm512_or_si512(codes, _mm512_slli_epi32(codes, 12))); };
  return {pairs(sixteen(k + d / 2 * kPage)), pairs(sixteen(k + d / 2 * kPage + 16))};
}
static inline Pairs keys_at(const uint32_t* k, int d, int) { return {_mm512_loadu_si512(k + d * 16), _mm512_loadu_si512(k + d * 16 + 16)}; }
// Dimensions [d, d + 32) of tokens t and t + 1 of a page of values [tokens][dim]; laid out: [token pair][padded dim]
template <class T> static inline Pairs values_at(const T* v, int t, int d, int dim, int tokens) {
  const __mmask32 mask = first_of(dim - d);
  return interleaved(some(v + int64_t(t) * dim + d, mask), t + 1 < tokens ? some(v + int64_t(t + 1) * dim + d, mask) : _mm512_setzero_si512());
}
static inline Pairs values_at(const Pair4* v, int t, int d, int dim, int tokens) {
  const Pair4* at = v + (int64_t(t) * dim + d) / 2;
  __m512i codes = sixteen(at);
  if (t + 1 < tokens) codes = _mm512_or_si512(codes, _mm512_slli_epi32(sixteen(at + dim / 2), 16));
  return {looked_up<8>(codes), looked_up<8>(_mm512_srli_epi32(codes, 4))};
}
static inline Pairs values_at(const uint32_t* v, int t, int d, int dim, int) {
  const uint32_t* at = v + int64_t(t / 2) * ((dim + 31) / 32 * 32) + d;
  return {_mm512_loadu_si512(at), _mm512_loadu_si512(at + 16)};
}
static inline void put(Pairs pairs, uint32_t* to) {
  _mm512_storeu_si512(to, pairs.first);
  _mm512_storeu_si512(to + 16, pairs.second);
}
template <class T> static void lay_out_keys(const T* k, int dim, uint32_t* to) {
  for (int d = 0; d < dim; d += 2, to += 32) put(keys_at(k, d, dim), to);
}
template <class T> static void lay_out_values(const T* v, int dim, int tokens, uint32_t* to) {
  for (int t = 0; t < tokens; t += 2)
    for (int d = 0; d < dim; d += 32, to += 32) put(values_at(v, t, d, dim, tokens), to);
}

// Queries of a tile lie [pair of dimensions][rows]
static void lay_out(const float* q, int dim, float* tiles, int row, int rows) {
  const int tile = row / kRows * kRows, n = rows - tile < kRows ? rows - tile : kRows;
  uint32_t* to = reinterpret_cast<uint32_t*>(tiles + int64_t(tile) * dim) + (row - tile);
  for (int d = 0; d < dim; d += 32) {
    const int left = dim - d;
    alignas(64) uint32_t pairs[16];
    _mm512_store_si512(pairs, to_bf16(load_n(q + d, left).v, load_n(q + d + 16, left - 16).v));
    for (int i = 0; i < 16 && 2 * i < left; i++, to += n) *to = pairs[i];
  }
}

// Bytes of the cache in so many numbers
static inline int64_t bytes_of(const uint16_t*, int64_t count) { return 2 * count; }
static inline int64_t bytes_of(const int8_t*, int64_t count) { return count; }
static inline int64_t bytes_of(const Pair4*, int64_t count) { return count / 2; }

// s[r][0..32) = sum over d of q[d][r] * k[d][0..32), in pairs, d ascending. ahead: a page to bring nearer meanwhile, or null. Straight: pairs lie in order.
template <int R, bool Straight, class T> static inline void score_pairs(const uint32_t* q, const T* k, int dim, float* s, const T* ahead) {
  f32x16 first[R], second[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) first[r] = second[r] = zero();
  for (int d = 0; d < dim; d += 2, q += R) {
    if constexpr (!std::is_same_v<T, uint32_t>) {
      if (ahead)
        for (int64_t i = bytes_of(ahead, int64_t(d) * kPage); i < bytes_of(ahead, int64_t(d + 2) * kPage); i += 64) prefetch_l2(reinterpret_cast<const char*>(ahead) + i);
    }
    const Pairs keys = keys_at(k, d, dim);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const __m512i x = _mm512_set1_epi32(int(q[r]));
      first[r] = dot(first[r], keys.first, x);
      second[r] = dot(second[r], keys.second, x);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    store(s + r * kSpan, Straight ? first[r] : ordered(first[r], second[r], false));
    store(s + r * kSpan + 16, Straight ? second[r] : ordered(first[r], second[r], true));
  }
}

// o[r][d0..d0 + 32 B) = o[r] * alpha[r] + sum over t < tokens of p[r][t] * v[t], in pairs, t ascending; p: pairs. First: alpha counts.
template <int R, int B, bool First, class T>
static inline void mix_pairs(const uint32_t* p, const float* alpha, const T* v, int d0, int dim, int tokens, float* o, int64_t stride, const T* ahead) {
  f32x16 sum[R][2 * B];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int i = 0; i < 2 * B; i++) {
      sum[r][i] = load(o + r * stride + d0 + 16 * i);
      if (First) sum[r][i] = mul(sum[r][i], set1(alpha[r]));
    }
  int t = 0;
  do {
    if constexpr (!std::is_same_v<T, uint32_t>) {
      if (ahead && d0 == 0)
        for (int64_t i = bytes_of(ahead, int64_t(t) * dim); i < bytes_of(ahead, int64_t(t + 2) * dim); i += 64) prefetch_l2(reinterpret_cast<const char*>(ahead) + i);
    }
    Pairs values[B];
#pragma GCC unroll 2
    for (int b = 0; b < B; b++) values[b] = values_at(v, t, d0 + 32 * b, dim, tokens);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const __m512i x = _mm512_set1_epi32(int(p[r * kSpan + t / 2]));
#pragma GCC unroll 2
      for (int b = 0; b < B; b++) {
        sum[r][2 * b] = dot(sum[r][2 * b], values[b].first, x);
        sum[r][2 * b + 1] = dot(sum[r][2 * b + 1], values[b].second, x);
      }
    }
  } while ((t += 2) < tokens);
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int i = 0; i < 2 * B; i++) store(o + r * stride + d0 + 16 * i, sum[r][i]);
}

// Rows by the most that registers hold
template <bool Straight, int R = kRows, class T> static void pair_scores(int rows, const uint32_t* q, const T* k, int dim, float* s, const T* ahead) {
  if constexpr (R > 1) {
    if (rows < R) return pair_scores<Straight, R - 1>(rows, q, k, dim, s, ahead);
  }
  score_pairs<R, Straight>(q, k, dim, s, ahead);
}
template <bool First, int R = kRows, class T>
static void pair_mix(int rows, const uint32_t* p, const float* alpha, const T* v, int dim, int tokens, float* o, int64_t stride, const T* ahead) {
  if constexpr (R > 1) {
    if (rows < R) return pair_mix<First, R - 1>(rows, p, alpha, v, dim, tokens, o, stride, ahead);
  }
  constexpr int B = R <= 3 ? 2 : 1;
  int d = 0;
  for (; d + 32 * B <= dim; d += 32 * B) mix_pairs<R, B, First>(p, alpha, v, d, dim, tokens, o, stride, ahead);
  for (; d < dim; d += 32) mix_pairs<R, 1, First>(p, alpha, v, d, dim, tokens, o, stride, ahead);
}

template <class F> static inline void held(CacheType type, const void* bytes, F&& fn) {
  if (type == CacheType::BF16) fn(static_cast<const uint16_t*>(bytes));
  else if (type == CacheType::U4) fn(static_cast<const Pair4*>(bytes));
  else fn(static_cast<const int8_t*>(bytes));
}

// Scores of one page for rows that lie in tiles; `direct`: one tile, for which pairs are made as the cache is read
static void score_page(const AttentionCall& c, const Walk& w, int64_t cell, int rows, const float* q, float* p, bool direct) {
  const CacheLayer& cache = *c.cache;
  const int dim = cache.key_rows();
  const int64_t bytes = cache_bytes(cache.k_type, kPage, dim);
  const auto score = [&](const auto* k, decltype(k) ahead) {
    for (int r = 0; r < rows; r += kRows) {
      const int n = rows - r < kRows ? rows - r : kRows;
      const uint32_t* mine = reinterpret_cast<const uint32_t*>(q + int64_t(r) * dim);
      if (cache.k_type == CacheType::U4) pair_scores<true>(n, mine, k, dim, p + int64_t(r) * kSpan, ahead);
      else pair_scores<false>(n, mine, k, dim, p + int64_t(r) * kSpan, ahead);
    }
  };
  held(cache.k_type, static_cast<const char*>(cache.k) + cell * bytes, [&](const auto* k) {
    if (direct) return score(k, w.ahead < 0 ? nullptr : decltype(k)(static_cast<const char*>(cache.k) + w.ahead * bytes));
    uint32_t* pairs = reinterpret_cast<uint32_t*>(w.keys);
    lay_out_keys(k, dim, pairs);
    score(static_cast<const uint32_t*>(pairs), nullptr);
  });
}

// Adds the values of one page, weighted, to rows [row, row + rows); `opens`: the first of its span, where alpha counts
static void mix_page(const AttentionCall& c, const Walk& w, int64_t cell, int row, int rows, float* p, int tokens, bool opens, bool direct) {
  static_assert(kSpan == kPage, "a row's weights are met once");
  const CacheLayer& cache = *c.cache;
  const int dim = cache.head_dim, wide = (cache.key_rows() + kDimStep - 1) / kDimStep * kDimStep;
  const int64_t bytes = cache_bytes(cache.v_type, kPage, dim);
  uint32_t* weights = reinterpret_cast<uint32_t*>(p);
  for (int r = 0; r < rows; r++) _mm512_storeu_si512(weights + r * kSpan, to_bf16(load(p + r * kSpan).v, load(p + r * kSpan + 16).v));
  const auto blend = [&](const auto* v, decltype(v) ahead) {
    for (int r = 0; r < rows; r += kRows) {
      const int n = rows - r < kRows ? rows - r : kRows;
      float* o = w.o + int64_t(row + r) * wide;
      if (opens) pair_mix<true>(n, weights + int64_t(r) * kSpan, w.alpha + row + r, v, dim, tokens, o, int64_t(wide), ahead);
      else pair_mix<false>(n, weights + int64_t(r) * kSpan, w.alpha + row + r, v, dim, tokens, o, int64_t(wide), ahead);
    }
  };
  held(cache.v_type, static_cast<const char*>(cache.v) + cell * bytes, [&](const auto* v) {
    if (direct) return blend(v, w.ahead < 0 ? nullptr : decltype(v)(static_cast<const char*>(cache.v) + w.ahead * bytes));
    uint32_t* pairs = reinterpret_cast<uint32_t*>(w.values);
    lay_out_values(v, dim, tokens, pairs);
    blend(static_cast<const uint32_t*>(pairs), nullptr);
  });
}
