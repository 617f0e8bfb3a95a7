// "floats": float activations against any weight but a trellis, codes widened in registers. Included after linear.inl.h, whose sums it repeats bit for bit.
//
// A tile is R rows by P panels. The first tile widens a step of 64 k and multiplies at once, so that shifts and table lookups run on units the
// products leave idle; further tiles find the widened step in the L1 cache. One or two rows take two panels: an addition takes 4 cycles, and two sums
// of each row would leave the units waiting. Three rows of two panels would not fit the registers.

constexpr int kFloatTile = 6;     // rows of a tile at most
constexpr int kFloatRows = 64;    // rows whose activations and sums should stay in the L2 cache while panels pass by

struct FloatScratch {
  alignas(64) float wide[2][kStep * kPanel];
  alignas(64) float sums[2][kFloatRows * kPanel];
  alignas(64) uint8_t planes[4][16];  // of a table: byte i of each of its 16 numbers
};

enum class Widen { BF16, Int8, Int4, Int4Zeros, Table, Table16, E4M3 };  // Table16: of numbers that bfloat16 holds
constexpr bool is_small(Widen s) { return s != Widen::BF16 && s != Widen::Int8 && s != Widen::E4M3; }
// More rows than that would not leave registers for the widening
constexpr int tile_rows(Widen s) { return s == Widen::E4M3 ? 4 : kFloatTile; }
constexpr int step_bytes(Widen s) { return kStep * kPanel * (s == Widen::BF16 ? 2 : 1) / (is_small(s) ? 2 : 1); }

// Four k of eight rows, the bytes of each row in one word, as floats by k
template <Widen S, bool High> struct Lanes8 {
  __m256i plane[4];   // see FloatScratch
  explicit Lanes8(const FloatScratch& s) {
    if (S == Widen::Table || S == Widen::Table16)
      for (int i = 0; i < 4; i++) plane[i] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(s.planes[i])));
  }
  // What the four k have in common: halves of the floats of tables, else the words as they are
  struct Common { __m256i low0, high0, low2, high2; };
  inline __attribute__((always_inline)) Common prepare(__m256i v) const {
    if (S == Widen::Int4) v = _mm256_xor_si256(v, _mm256_set1_epi8(char(0x88)));  // codes less 8, as signed numbers
    if (S != Widen::Table && S != Widen::Table16) return {v, v, v, v};
    // Bytes by k, then a table for each byte of a float, and the bytes put together again
    const __m256i by_k = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m256i code = _mm256_shuffle_epi8(_mm256_and_si256(High ? _mm256_srli_epi16(v, 4) : v, _mm256_set1_epi8(15)), by_k);
    const __m256i p2 = _mm256_shuffle_epi8(plane[2], code), p3 = _mm256_shuffle_epi8(plane[3], code);
    Common c = {_mm256_setzero_si256(), _mm256_unpacklo_epi8(p2, p3), _mm256_setzero_si256(), _mm256_unpackhi_epi8(p2, p3)};
    if (S == Widen::Table) {
      const __m256i p0 = _mm256_shuffle_epi8(plane[0], code), p1 = _mm256_shuffle_epi8(plane[1], code);
      c.low0 = _mm256_unpacklo_epi8(p0, p1);
      c.low2 = _mm256_unpackhi_epi8(p0, p1);
    }
    return c;
  }
  // k number i
  static inline __attribute__((always_inline)) __m256 lane(const Common& c, int i) {
    if (S == Widen::Int4 || S == Widen::Int4Zeros) {
      const int bit = 8 * i + (High ? 4 : 0);
      const __m256i top = bit < 28 ? _mm256_slli_epi32(c.low0, 28 - bit) : c.low0;
      return _mm256_cvtepi32_ps(S == Widen::Int4 ? _mm256_srai_epi32(top, 28) : _mm256_srli_epi32(top, 28));
    }
    if (S == Widen::Table || S == Widen::Table16) {
      const __m256i low = i < 2 ? c.low0 : c.low2, high = i < 2 ? c.high0 : c.high2;
      return _mm256_castsi256_ps(i % 2 ? _mm256_unpackhi_epi16(low, high) : _mm256_unpacklo_epi16(low, high));
    }
    const __m256i top = i < 3 ? _mm256_slli_epi32(c.low0, 24 - 8 * i) : c.low0;
    if (S == Widen::Int8) return _mm256_cvtepi32_ps(_mm256_srai_epi32(top, 24));
    return _mm256_mul_ps(_mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32(top, 4), _mm256_set1_epi32(int(0x87f00000)))), _mm256_set1_ps(0x1p120f));  // see float8_lanes
  }
};

// What a panel's codes are multiplied by, from some k on
struct PanelScale {
  const uint8_t* base;
  int next = 0, group = 0;   // at which k it changes, and to that of which group
  f32x16 scale, zeros;
};

// Sixteen bfloat16: even rows in `a` and odd ones in `b`, which is one operation for eight numbers; `in_order` puts the sums in order
static inline __attribute__((always_inline)) f32x16 apart(const uint8_t* p) {
  const __m256i v = bytes(p);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(v, 16)), _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(int(0xffff0000))))};
}

// k [4i, 4i + 4) of a step of a panel, one by one
template <Widen S, bool High> struct Widened {
  const uint8_t* at;
  typename Lanes8<S, High>::Common a, b;
  inline __attribute__((always_inline)) Widened(const Lanes8<S, High>& lanes, const uint8_t* values, int i) {
    at = values + (S == Widen::BF16 ? 128 * i : is_small(S) ? i % 8 * 64 : i * 64);
    if (!is_small(S) || !High) prefetch(at + 4096);
    if (S == Widen::BF16) {
      prefetch(at + 4096 + 64);
    } else {
      a = lanes.prepare(bytes(at));
      b = lanes.prepare(bytes(at + 32));
    }
  }
  inline __attribute__((always_inline)) f32x16 operator()(int j, const PanelScale& by) const {
    if (S == Widen::BF16) return apart(at + 32 * j);
    const f32x16 v = {Lanes8<S, High>::lane(a, j), Lanes8<S, High>::lane(b, j)};
    return mul(S == Widen::Int4Zeros ? sub(v, by.zeros) : v, by.scale);
  }
};

template <Widen S> static inline f32x16 in_order(f32x16 y) {
  if (S != Widen::BF16) return y;
  const __m256 low = _mm256_unpacklo_ps(y.a, y.b), high = _mm256_unpackhi_ps(y.a, y.b);  // rows 0-3 and 8-11, 4-7 and 12-15
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}

static inline __attribute__((always_inline)) void scale_at(const Packed& w, int k, PanelScale& by) {
  if (k != by.next) return;
  by.scale = load_scales(w, by.base, by.group);
  if (w.has_zeros) by.zeros = load_zeros(w, by.base, by.group);
  by.next += w.group;
  by.group++;
}

// Half a step (32 k) of P panels, widened, for R rows; kept in `wide` for others
template <Widen S, int R, int P, bool Keep, bool High>
static inline __attribute__((always_inline)) void widening_half(const Packed& w, const uint8_t* const* values, PanelScale* by, int k, const float* x, int64_t stride, f32x16 (*acc)[P], FloatScratch& s) {
  const Lanes8<S, High> lanes(s);
  for (int i = 0; i < 8; i++, x += 4) {
    if (S != Widen::BF16 && i % 4 == 0)
      for (int p = 0; p < P; p++) scale_at(w, k + 4 * i, by[p]);
    const Widened<S, High> one(lanes, values[0], i + 8 * High), other(lanes, values[P - 1], i + 8 * High);
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      f32x16 v[P];
      v[0] = one(j, by[0]);
      if (P == 2) v[P - 1] = other(j, by[P - 1]);
      if (Keep) store(s.wide[0] + (4 * i + 32 * High + j) * kPanel, v[0]);
#pragma GCC unroll 6
      for (int r = 0; r < R; r++) {
        const f32x16 a = set1(x[r * stride + j]);
#pragma GCC unroll 2
        for (int p = 0; p < P; p++) {
          acc[r][p] = fmadd(a, v[p], acc[r][p]);
        }
      }
    }
  }
}

template <Widen S, int R, int P, bool Keep>
static void widening_tile(const Packed& w, const uint8_t* const* values, PanelScale* by, int k, const float* x, int64_t stride, FloatScratch& s) {
  f32x16 acc[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) acc[r][p] = load(s.sums[p] + r * kPanel);
  widening_half<S, R, P, Keep, false>(w, values, by, k, x, stride, acc, s);
  widening_half<S, R, P, Keep, true>(w, values, by, k + 32, x + 32, stride, acc, s);
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(s.sums[p] + r * kPanel, acc[r][p]);
}

// The same of `count` k that are widened already
template <int R, int P>
static void widened_tile(int count, const float* x, int64_t stride, FloatScratch& s, int row) {
  f32x16 acc[R][P];
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) acc[r][p] = load(s.sums[p] + (row + r) * kPanel);
  for (int k = 0; k < count; k++) {
    f32x16 v[P];
    for (int p = 0; p < P; p++) v[p] = load(s.wide[p] + k * kPanel);
    for (int r = 0; r < R; r++) {
      const f32x16 a = set1(x[r * stride + k]);
      for (int p = 0; p < P; p++) acc[r][p] = fmadd(a, v[p], acc[r][p]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int p = 0; p < P; p++) store(s.sums[p] + (row + r) * kPanel, acc[r][p]);
}
template <int P> static void widened_rows(int take, int count, const float* x, int64_t stride, FloatScratch& s, int row) {
  switch (take) {
    case 6: return widened_tile<6, P>(count, x, stride, s, row);
    case 5: return widened_tile<5, P>(count, x, stride, s, row);
    case 4: return widened_tile<4, P>(count, x, stride, s, row);
    case 3: return widened_tile<3, P>(count, x, stride, s, row);
    case 2: return widened_tile<2, P>(count, x, stride, s, row);
    default: return widened_tile<1, P>(count, x, stride, s, row);
  }
}

// P panels from `panel` on, rows [row0, row1)
template <Widen S, int P>
static void floats_panels(const LinearCall& c, int panel, int row0, int row1, FloatScratch& s) {
  const Packed& w = *c.w;
  const int rows = row1 - row0, tiles = (rows + tile_rows(S) - 1) / tile_rows(S), take = (rows + tiles - 1) / tiles;
  const int64_t stride = c.in.stride;
  const uint8_t* values[P];
  PanelScale by[P];
  for (int p = 0; p < P; p++) {
    by[p].base = w.base(panel + p);
    values[p] = w.values(panel + p);
    std::memset(s.sums[p], 0, sizeof(float) * size_t(rows) * kPanel);
  }
  for (int k = 0; k < w.k; k += kStep) {
    const float* x = c.in.x + row0 * stride + k;
    const int count = w.k - k < kStep ? w.k - k : kStep;
    int done = take;
    if (count < kStep) {  // the last step, not whole: only widened here
      for (int i = 0; 4 * i < count; i++)
        for (int p = 0; p < P; p++) {
          if (S != Widen::BF16 && i % 4 == 0) scale_at(w, k + 4 * i, by[p]);
          const Widened<S, false> low(Lanes8<S, false>(s), values[p], i);
          const Widened<S, true> high(Lanes8<S, true>(s), values[p], i);
          for (int j = 0; j < 4 && 4 * i + j < count; j++) store(s.wide[p] + (4 * i + j) * kPanel, i < 8 ? low(j, by[p]) : high(j, by[p]));
        }
      done = 0;
    } else {
      const auto first = [&](auto r) __attribute__((always_inline)) {
        constexpr int R = decltype(r)::value;
        if (R < 3 || rows == R) widening_tile<S, R, P, false>(w, values, by, k, x, stride, s);
        else widening_tile<S, R, P, true>(w, values, by, k, x, stride, s);
      };
      if constexpr (P == 1) {
        if (take == 6) first(std::integral_constant<int, 6>());
        if (take == 5) first(std::integral_constant<int, 5>());
        if (take == 4) first(std::integral_constant<int, 4>());
      }
      switch (take) {
        case 3: first(std::integral_constant<int, 3>()); break;
        case 2: first(std::integral_constant<int, 2>()); break;
        case 1: first(std::integral_constant<int, 1>()); break;
        default: break;
      }
    }
    for (int r = done; r < rows; r += take) widened_rows<P>(rows - r < take ? rows - r : take, count, x + r * stride, stride, s, r);
    for (int p = 0; p < P; p++) values[p] += step_bytes(S);
  }
  for (int p = 0; p < P; p++)
    for (int r = 0; r < rows; r++) finish(c, panel + p, row0 + r, in_order<S>(load(s.sums[p] + r * kPanel)));
}

template <Widen S>
static void floats_all(const LinearCall& c, int panel0, int panel1, FloatScratch& s) {
  for (int row0 = 0; row0 < c.in.rows; row0 += kFloatRows) {
    const int row1 = row0 + kFloatRows < c.in.rows ? row0 + kFloatRows : c.in.rows;
    int p = panel0;
    if (row1 - row0 <= 2)
      for (; p + 2 <= panel1; p += 2) floats_panels<S, 2>(c, p, row0, row1, s);
    for (; p < panel1; p++) floats_panels<S, 1>(c, p, row0, row1, s);
  }
}

static bool bfloat16_holds(const float* table) {
  for (int i = 0; i < 16; i++) {
    uint32_t word;
    std::memcpy(&word, table + i, 4);
    if (word & 0xffff) return false;
  }
  return true;
}

static void floats_linear(const LinearCall& c, int panel0, int panel1, void* scratch) {
  FloatScratch& s = *static_cast<FloatScratch*>(scratch);
  const Packed& w = *c.w;
  if (w.store == Store::BF16) return floats_all<Widen::BF16>(c, panel0, panel1, s);
  if (w.store == Store::E4M3) return floats_all<Widen::E4M3>(c, panel0, panel1, s);
  if (w.store == Store::Codes8) return floats_all<Widen::Int8>(c, panel0, panel1, s);
  for (int i = 0; i < 4; i++)
    for (int code = 0; code < 16; code++) s.planes[i][code] = reinterpret_cast<const uint8_t*>(w.table + code)[i];
  if (w.meaning == Meaning::Table) return bfloat16_holds(w.table) ? floats_all<Widen::Table16>(c, panel0, panel1, s) : floats_all<Widen::Table>(c, panel0, panel1, s);
  return w.has_zeros ? floats_all<Widen::Int4Zeros>(c, panel0, panel1, s) : floats_all<Widen::Int4>(c, panel0, panel1, s);
}

// A scale holds for 16 k or a multiple of it, where it does not hold for the whole row. What is rare is left to the general kernel.
static bool floats_support(const Packed& w, int in_group, int) {
  if (w.store == Store::BF16) return true;
  if (in_group || (w.group < w.kpad && w.group % 16)) return false;
  return w.store == Store::E4M3 || w.store == Store::Codes4 ? w.meaning == Meaning::Int || !w.has_zeros : w.store == Store::Codes8 && !w.has_zeros;
}
