// What the rings of a trellis tile (ops.h, trellis.h) decode to. Included by linear.inl.h.

#ifdef __AVX2__
// The values of the sixteen rows of panel I of a tile in one column, int16. Sixteen places of a ring, four steps apart, start at whole bytes (for the
// third bits of K = 3: at halves of bytes), so shifts are the same in all lanes. Bits above the twelve of a state do not reach the table.
template <int K, int I> static inline __m256i trellis_values(const uint8_t* ring) {
  __m256i state;
  if constexpr (K == 4) {
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ring));
    state = I ? _mm256_srli_epi16(low, 4 * I) : low;
    if constexpr (I > 1) {
      const __m256i high = _mm256_alignr_epi8(_mm256_permute2x128_si256(low, low, 1), low, 2);
      state = _mm256_or_si256(state, _mm256_slli_epi16(high, 16 - 4 * I));
    }
  } else {
    const __m256i bytes = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(ring)));
    const __m256i low = _mm256_shuffle_epi8(bytes, _mm256_setr_epi8(0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 0));
    state = I ? _mm256_srli_epi16(low, 2 * I) : low;
    if constexpr (K == 2 && I == 3) {
      const __m256i high = _mm256_shuffle_epi8(bytes, _mm256_setr_epi8(2, -1, 3, -1, 4, -1, 5, -1, 6, -1, 7, -1, 8, -1, 9, -1, 10, -1, 11, -1, 12, -1, 13, -1, 14, -1, 15, -1, 0, -1, 1, -1));
      state = _mm256_or_si256(state, _mm256_slli_epi16(high, 10));
    }
    if constexpr (K == 3) {
      int64_t third;
      std::memcpy(&third, ring + 16, 8);
      const __m256i words = _mm256_shuffle_epi8(_mm256_set1_epi64x(third), _mm256_setr_epi8(0, 1, 0, 1, 1, 2, 1, 2, 2, 3, 2, 3, 3, 4, 3, 4, 4, 5, 4, 5, 5, 6, 5, 6, 6, 7, 6, 7, 7, 0, 7, 0));
      const __m256i above = _mm256_srli_epi16(_mm256_mullo_epi16(words, _mm256_set1_epi32(256 | 16 << 16)), I);
      state = _mm256_blendv_epi8(state, above, _mm256_set1_epi16(-256));
    }
  }
  const __m256i product = _mm256_mullo_epi16(state, _mm256_set1_epi16(short(trellis_multiplier(K))));
  const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kTrellisTable)));
  return _mm256_maddubs_epi16(_mm256_set1_epi16(0x0301), _mm256_shuffle_epi8(table, _mm256_and_si256(product, _mm256_set1_epi8(15))));
}
// Four columns of panel I as bytes [16 rows][4 k], the order of Codes8
template <int K, int I> static inline void trellis_fours(const uint8_t* rings, uint8_t* out) {
  const __m256i byte = _mm256_set1_epi16(255);
  const auto pair = [&](const uint8_t* at) {
    return _mm256_or_si256(_mm256_and_si256(trellis_values<K, I>(at), byte), _mm256_slli_epi16(trellis_values<K, I>(at + 8 * K), 8));
  };
  const __m256i a = pair(rings), b = pair(rings + 16 * K), low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(low, high, 0x20));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), _mm256_permute2x128_si256(low, high, 0x31));
}
#else
template <int K> static inline int8_t trellis_at(const uint8_t* ring, int t) {
  const auto bits = [&](const uint8_t* from, int size, int at, int count) {
    int found = 0;
    for (int i = 0; i < count; i++) found |= ((from[(at + i) % size / 8] >> ((at + i) % 8)) & 1) << i;
    return found;
  };
  const int state = K == 3 ? bits(ring, 128, 2 * t, 8) | bits(ring + 16, 64, t, 4) << 8 : bits(ring, 64 * K, K * t, kTrellisState);
  return int8_t(trellis_value(state, K));
}
template <int K, int I> static inline void trellis_fours(const uint8_t* rings, uint8_t* out) {
  for (int r = 0; r < kPanel; r++)
    for (int i = 0; i < 4; i++) out[4 * r + i] = uint8_t(trellis_at<K>(rings + 8 * K * i, 4 * r + I));
}
#endif

// k [k0, k1) of a panel, both multiples of 4, as Codes8 has them
template <int K, int I> static void trellis_bytes(const uint8_t* rings, int count, uint8_t* out) {
  for (int k = 0; k < count; k += 4) trellis_fours<K, I>(rings + k * 8 * K, out + k * kPanel);
}
static void spread_states(const Packed& w, int panel, int k0, int k1, uint8_t* out) {
  using Spread = void (*)(const uint8_t*, int, uint8_t*);
  static const Spread all[3][4] = {{trellis_bytes<2, 0>, trellis_bytes<2, 1>, trellis_bytes<2, 2>, trellis_bytes<2, 3>},
                                   {trellis_bytes<3, 0>, trellis_bytes<3, 1>, trellis_bytes<3, 2>, trellis_bytes<3, 3>},
                                   {trellis_bytes<4, 0>, trellis_bytes<4, 1>, trellis_bytes<4, 2>, trellis_bytes<4, 3>}};
  all[w.bits - 2][panel % 4](w.values(panel) + size_t(k0) * 8 * size_t(w.bits), k1 - k0, out);
}

#ifdef __AVX2__
// One row of activations against whole tiles: each ring is read once, its values go from registers into products.

static inline f32x16 trellis_floats(__m256i v) {
#ifdef __AVX512F__
  return {_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(v))};
#else
  return {_mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(v))), _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(v, 1)))};
#endif
}
template <int K> static void trellis_float_tile(const LinearCall& c, int panel) {
  const Packed& w = *c.w;
  const uint8_t* ring = w.values(panel);
  f32x16 scale[4], total[4];
  for (int i = 0; i < 4; i++) {
    scale[i] = load_scales(w, w.base(panel + i), 0);
    total[i] = zero();
  }
  for (int k = 0; k < w.k; k++, ring += 8 * K) {
    prefetch(ring + 1024);
    const f32x16 x = set1(c.in.x[k]);
    total[0] = fmadd(x, mul(trellis_floats(trellis_values<K, 0>(ring)), scale[0]), total[0]);
    total[1] = fmadd(x, mul(trellis_floats(trellis_values<K, 1>(ring)), scale[1]), total[1]);
    total[2] = fmadd(x, mul(trellis_floats(trellis_values<K, 2>(ring)), scale[2]), total[2]);
    total[3] = fmadd(x, mul(trellis_floats(trellis_values<K, 3>(ring)), scale[3]), total[3]);
  }
  for (int i = 0; i < 4; i++) finish(c, panel + i, 0, total[i]);
}

// Sums of two columns: rows 0-3 and 8-11 in `a`, the others in `b`
struct TrellisSums { __m256i a, b; };
static inline void trellis_pair(TrellisSums& sum, __m256i v0, __m256i v1, __m256i x) {
  sum.a = _mm256_add_epi32(sum.a, _mm256_madd_epi16(_mm256_unpacklo_epi16(v0, v1), x));
  sum.b = _mm256_add_epi32(sum.b, _mm256_madd_epi16(_mm256_unpackhi_epi16(v0, v1), x));
}
static inline f32x16 trellis_sum(const TrellisSums& s) {
  const __m256i low = _mm256_permute2x128_si256(s.a, s.b, 0x20), high = _mm256_permute2x128_si256(s.a, s.b, 0x31);
#ifdef __AVX512F__
  return {_mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1))};
#else
  return {_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high)};
#endif
}
template <int K> static void trellis_int_tile(const LinearCall& c, int panel) {
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  const uint8_t* ring = w.values(panel);
  f32x16 total[4];
  for (int i = 0; i < 4; i++) total[i] = zero();
  for (int k = 0; k < w.kpad;) {
    const int run = (k / runs.size + 1) * runs.size, chunk = (k / kChunk + 1) * kChunk;
    const int end = std::min(std::min(run, chunk), w.kpad), start = k;
    TrellisSums sum[4] = {};
    for (; k < end; k += 2, ring += 16 * K) {
      prefetch(ring + 1024);
      int16_t both[2] = {c.in.q[k], c.in.q[k + 1]};
      int32_t pair;
      std::memcpy(&pair, both, 4);
      const __m256i x = _mm256_set1_epi32(pair);
      trellis_pair(sum[0], trellis_values<K, 0>(ring), trellis_values<K, 0>(ring + 8 * K), x);
      trellis_pair(sum[1], trellis_values<K, 1>(ring), trellis_values<K, 1>(ring + 8 * K), x);
      trellis_pair(sum[2], trellis_values<K, 2>(ring), trellis_values<K, 2>(ring + 8 * K), x);
      trellis_pair(sum[3], trellis_values<K, 3>(ring), trellis_values<K, 3>(ring + 8 * K), x);
    }
    for (int i = 0; i < 4; i++) {
      const f32x16 scale = runs.weight_varies ? load_scales(w, w.base(panel + i), 0) : zero();
      total[i] = fmadd(trellis_sum(sum[i]), run_factor(c.in, runs, start, 0, scale), total[i]);
    }
  }
  for (int i = 0; i < 4; i++) finish(c, panel + i, 0, mul(total[i], row_factor(w, w.base(panel + i), c.in, runs, 0)));
}
// Tiles that lie wholly in [panel, last): returns the first panel that is left
static int trellis_tiles(const LinearCall& c, int panel, int last, bool integer) {
  using Tile = void (*)(const LinearCall&, int);
  static const Tile all[2][3] = {{trellis_float_tile<2>, trellis_float_tile<3>, trellis_float_tile<4>}, {trellis_int_tile<2>, trellis_int_tile<3>, trellis_int_tile<4>}};
  for (; panel + 4 <= last; panel += 4) all[integer][c.w->bits - 2](c, panel);
  return panel;
}
#endif
