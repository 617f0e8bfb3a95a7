// "pairs": float activations against weights whose values or codes bfloat16 holds exactly. The activations are rounded to bfloat16 (ties to even), and vdpbf16ps
// adds two products at a time to each sum: twice the rate of float lanes. For every number of rows, one too, so that results do not depend on company; the other
// kernels leave these weights alone. A tile is up to 24 sums in registers, R rows by P panels that lie far apart (avx512vnni/streams.inl.h).
//
// K is cut into segments, at ends of groups and of chunks. A segment's sums begin at 0 and are added to the row's, times the scale; what a zero takes away is
// the sum of the segment's activations times it. Codes become pairs once for all rows of a block, a chunk at a time; for a few rows, in registers.

constexpr int kPairTwo = 12, kPairFour = 6;  // rows of a tile of two and of four panels
constexpr int kPairFew = 4;                  // rows at most for which codes become pairs in registers
constexpr int kPairRows = 120;               // of a block
constexpr int kPairChunk = 256;              // k of a chunk: its pairs stay in the L1 cache while the block's rows pass by
constexpr int kPairNear = 384 << 8;          // pairs of a block's activations: less than half of an L2 cache
constexpr int kPairMost = 1 << 14;           // pairs of a row at most
constexpr int kPairSpare = 16384;            // rows times segments for which there is room
constexpr int kPairSegments = kPairSpare / kPairTwo;

struct PairSegment { int begin, end, group; };  // k

struct PairScratch {
  PairSegment segments[kPairSegments];
  alignas(64) uint32_t x[kPairTwo * kPairMost];          // activations [row][pair]
  alignas(64) uint32_t pairs[2][kPairChunk / 2 * 16];    // of codes, [panel][pair][16 rows]
  alignas(64) float totals[kPairRows * 4 * kPanel];
  alignas(64) float sums[kPairSpare];                    // of activations [segment][row]
};
static_assert(kPairTwo * kPairMost >= kPairNear);

static int pair_segments(const Packed& w, PairSegment* out) {
  int count = 0;
  for (int k = 0, group = 0; k < w.k; count++) {
    const int chunk_end = (k / kPairChunk + 1) * kPairChunk, group_end = w.is_float() || w.group >= w.k ? w.k : (group + 1) * w.group;
    const int end = std::min(std::min(chunk_end, group_end), w.k);
    if (out) out[count] = {k, end, group};
    if (end == group_end) group++;
    k = end;
  }
  return count;
}
static bool is_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return !(bits & 0xffff);
}
static bool pairs_support(const Packed& w, int in_group, int) {
  if (!w.rounds_inputs || w.k > 2 * kPairMost || w.store == Store::F32 || w.store == Store::Trellis) return false;
  if (w.store == Store::BF16) return true;
  if (in_group != 0 || w.group % 4 || (w.meaning == Meaning::Table && !std::all_of(w.table, w.table + 16, is_bf16))) return false;
  return pair_segments(w, nullptr) <= kPairSegments;
}
static bool few_pairs_support(const Packed& w, int in_group, int rows) {
  return pairs_support(w, in_group, rows) && (w.store == Store::BF16 || rows <= kPairFew);
}

enum class Values { BF16, Int8, Codes4, E4M3, E5M2 };

// Pairs of sixteen rows
template <Values V> struct PairLane {
  __m512i table, first, second;
  explicit PairLane(const Packed& w) {
    const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    if (V == Values::BF16) first = _mm512_or_si512(numbers, _mm512_slli_epi32(_mm512_add_epi32(numbers, _mm512_set1_epi32(16)), 16));
    if (V != Values::Codes4) return;
    const __m512 values = w.meaning == Meaning::Table ? _mm512_loadu_ps(w.table) : _mm512_cvtepi32_ps(_mm512_sub_epi32(numbers, _mm512_set1_epi32(w.has_zeros ? 0 : 8)));
    const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(values), 16));
    table = _mm512_inserti64x4(_mm512_castsi256_si512(words), words, 1);  // twice: vpermw looks at five bits, of which the fifth is another code's
    first = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13));
    second = _mm512_broadcast_i32x4(_mm_setr_epi8(2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15));
  }
  // BF16: the pair at `at`
  inline __attribute__((always_inline)) __m512i operator()(const uint8_t* at) const { return _mm512_permutexvar_epi16(first, _mm512_loadu_si512(at)); }
  // Codes: two pairs, four k, in the 64 bytes at `at`; those of 4 bits in the low or the high halves
  inline __attribute__((always_inline)) void operator()(const uint8_t* at, bool high, __m512i& one, __m512i& two) const {
    if (V == Values::Codes4) {
      __m512i v = _mm512_loadu_si512(at);
      if (high) v = _mm512_srli_epi16(v, 4);
      one = _mm512_permutexvar_epi16(_mm512_shuffle_epi8(v, first), table);
      two = _mm512_permutexvar_epi16(_mm512_shuffle_epi8(v, second), table);
    } else {
      f32x16 x[4];
      if (V == Values::Int8) signed_lanes(at, x);
      else float8_lanes<V == Values::E5M2>(at, x);
      const auto pair = [&](int i) __attribute__((always_inline)) {  // of floats whose lower halves are zero
        return _mm512_or_si512(_mm512_srli_epi32(_mm512_castps_si512(x[i].v), 16), _mm512_castps_si512(x[i + 1].v));
      };
      one = pair(0);
      two = pair(2);
    }
  }
};
// Where codes of the four k from 4 * quad on lie, from the values of a panel on
template <Values V> static inline __attribute__((always_inline)) int64_t quad_at(int64_t quad) {
  return V == Values::Codes4 ? quad / 16 * 512 + quad % 8 * 64 : quad * 64;
}

struct PairTile {
  const Packed& w;
  const uint8_t *base[4], *at[4];    // of the panels; where their values begin
  const uint32_t* chunk;             // of codes that became pairs: two panels of kPairChunk
  const PairSegment *first, *last;
  const uint32_t* x;                 // of the first row
  int64_t stride;
  const float* sums;                 // of the first segment and row, `rows` apart from segment to segment
  int rows;
  float* totals;
};

// R rows x P panels; few: values straight from the panels, otherwise codes have become pairs
template <Values V, int R, int P, bool Few> static __attribute__((noinline)) void pair_tile(const PairTile& t) {
  const Packed& w = t.w;
  const PairLane<V> lane(w);
  const uint32_t* rows[4] = {t.x, t.x + 3 * t.stride, t.x + 6 * t.stride, t.x + 9 * t.stride};
  asm volatile("" : "+r"(rows[0]), "+r"(rows[1]), "+r"(rows[2]), "+r"(rows[3]));  // opaque: otherwise gcc keeps a pointer for every row
  const int64_t stride = t.stride;
  const float* sums = t.sums;
  for (const PairSegment* s = t.first; s < t.last; s++, sums += t.rows) {
    __m512 acc[R][P];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[r][p] = _mm512_setzero_ps();
    const auto add = [&](int64_t i, const __m512i* v) __attribute__((always_inline)) {
#pragma GCC unroll 12
      for (int r = 0; r < R; r++) {
        const uint32_t& two = rows[r / 3][(r % 3) * stride + i];
        __m512i x;
        if constexpr (P == 4)
          asm("vpbroadcastd %5, %4\n\tvdpbf16ps %4, %6, %0\n\tvdpbf16ps %4, %7, %1\n\tvdpbf16ps %4, %8, %2\n\tvdpbf16ps %4, %9, %3"
              : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "+v"(acc[r][3]), "=&v"(x) : "m"(two), "v"(v[0]), "v"(v[1]), "v"(v[2]), "v"(v[3]));
        else
          asm("vpbroadcastd %3, %2\n\tvdpbf16ps %2, %4, %0\n\tvdpbf16ps %2, %5, %1" : "+v"(acc[r][0]), "+v"(acc[r][1]), "=&v"(x) : "m"(two), "v"(v[0]), "v"(v[1]));
      }
    };
    if constexpr (!Few) {
      const uint32_t* at = t.chunk + s->begin % kPairChunk * 8;
      for (int64_t i = s->begin / 2; i < (s->end + 1) / 2; i++, at += 16) {
        __m512i v[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) v[p] = _mm512_load_si512(at + p * (kPairChunk * 8));
        add(i, v);
      }
    } else if constexpr (V == Values::BF16) {
      const int64_t whole = s->end / 2;
      __m512i v[P];
      for (int64_t i = s->begin / 2; i < whole; i++) {
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) v[p] = lane(t.at[p] + 64 * i);
        add(i, v);
      }
      if (s->end % 2) {  // half a pair: nothing lies behind it
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) v[p] = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.at[p] + 64 * whole)));
        add(whole, v);
      }
    } else {
      for (int64_t quad = s->begin / 4, last = (s->end + 3) / 4; quad < last;) {
        const int64_t stop = V == Values::Codes4 ? std::min((quad | 7) + 1, last) : last;
        const auto pass = [&](bool high) __attribute__((always_inline)) {
          for (; quad < stop; quad++) {
            __m512i one[P], two[P];
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) lane(t.at[p] + quad_at<V>(quad), high, one[p], two[p]);
            add(2 * quad, one);
            add(2 * quad + 1, two);
          }
        };
        if (V == Values::Codes4 && quad & 8) pass(true);
        else pass(false);
      }
    }
    float* total = t.totals;
    f32x16 scale[P], zeros[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      scale[p] = V == Values::BF16 ? set1(1.f) : load_scales(w, t.base[p], s->group);
      zeros[p] = V != Values::BF16 && w.has_zeros ? load_zeros(w, t.base[p], s->group) : zero();
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int p = 0; p < P; p++, total += kPanel) {
        f32x16 value = {acc[r][p]};
        if (V != Values::BF16 && w.has_zeros) value = sub(value, mul(zeros[p], set1(sums[r])));
        const f32x16 before = s->begin == 0 ? zero() : load(total);
        store(total, V == Values::BF16 ? octavo::avx512vnni::add(value, before) : fmadd(value, scale[p], before));
      }
  }
}
template <Values V, int P, bool Few, int R = P == 4 ? (V == Values::BF16 ? kPairFour : kPairFew) : kPairTwo> static void pair_tile_of(int rows, const PairTile& t) {
  if constexpr (R > 1) {
    if (rows < R) return pair_tile_of<V, P, Few, R - 1>(rows, t);
  }
  pair_tile<V, R, P, Few>(t);
}

template <Values V> static void become_pairs(const Packed& w, const uint8_t* values, int begin, int end, uint32_t* out) {
  const PairLane<V> lane(w);
  for (int64_t quad = begin / 4; quad < (end + 3) / 4; quad++, out += 32) {
    __m512i one, two;
    lane(values + quad_at<V>(quad), V == Values::Codes4 && (quad & 8), one, two);
    _mm512_store_si512(out, one);
    _mm512_store_si512(out + 16, two);
  }
}

template <int P> static __attribute__((noinline)) void gate_pairs(const LinearCall& c, int first_panel, int apart, int panel1, int row0, int rows, const float* totals) {
  for (int p = 0; p < P / 2 && first_panel + p * apart < panel1; p++)
    for (int r = 0; r < rows; r++)
      finish(c, first_panel + p * apart, row0 + r, mul(activate(c.gate, load(totals + (P * r + p) * kPanel)), load(totals + (P * r + p + P / 2) * kPanel)));
}

template <Values V, int P, bool Few> static void pair_panels(const LinearCall& c, int panel0, int panel1, PairScratch& s) {
  const Packed& w = *c.w;
  constexpr int tile = P == 2 ? kPairTwo : V == Values::BF16 ? kPairFour : kPairFew;
  const int each = c.up ? P / 2 : P;  // gated: half of a tile's panels are of `up`
  const int count = pair_segments(w, s.segments), all = (w.k + 3) / 4 * 2, apart = (panel1 - panel0 + each - 1) / each;
  int most = std::min(kPairRows, std::max(kPairTwo, kPairNear / std::max(all, 1) / kPairTwo * kPairTwo));
  if (w.has_zeros) most = std::min(most, kPairSpare / count / kPairTwo * kPairTwo);
  most = even_blocks(c.in.rows, most, tile);
  for (int row0 = 0; row0 < c.in.rows; row0 += most) {
    const int rows = std::min(most, c.in.rows - row0), tiles = (rows + tile - 1) / tile;
    for (int r = 0; r < rows; r++) pair_row(c.in.x + int64_t(row0 + r) * c.in.stride, w.k, all, s.x + int64_t(r) * all);
    if (w.has_zeros)
      for (int i = 0; i < count; i++)
        for (int r = 0; r < rows; r++) s.sums[i * rows + r] = pair_sum(s.x + int64_t(r) * all + s.segments[i].begin / 2, (s.segments[i].end - s.segments[i].begin + 1) / 2);
    for (int first_panel = panel0; first_panel < panel0 + apart; first_panel++) {
      PairTile t{w, {}, {}, s.pairs[0], nullptr, nullptr, nullptr, all, nullptr, rows, nullptr};
      for (int p = 0; p < P; p++) {
        const Packed& of = p < each ? w : *c.up;
        const int panel = first_panel + p % each * apart < panel1 ? first_panel + p % each * apart : first_panel;
        t.base[p] = of.base(panel);
        t.at[p] = of.values(panel);
        if (V != Values::BF16 && rows <= kPairFew) touch_scales(w, t.base[p]);
      }
      for (int first = 0, last; first < count; first = last) {
        const int begin = s.segments[first].begin;
        for (last = first + 1; last < count && s.segments[last].begin / kPairChunk == begin / kPairChunk;) last++;
        if (!Few)
          for (int p = 0; p < P; p++) become_pairs<V>(w, t.at[p], begin, s.segments[last - 1].end, s.pairs[p]);
        t.first = s.segments + first;
        t.last = s.segments + last;
        for (int i = 0, r = 0; i < tiles; i++) {
          const int height = (rows - r + tiles - i - 1) / (tiles - i);  // tiles as equal as can be
          if (last == count) expect_results(c, row0 + r, height, first_panel, apart, each, panel1);
          t.x = s.x + int64_t(r) * all;
          t.sums = s.sums + first * rows + r;
          t.totals = s.totals + r * P * kPanel;
          pair_tile_of<V, P, Few>(height, t);
          r += height;
        }
      }
      if (c.up) {
        gate_pairs<P>(c, first_panel, apart, panel1, row0, rows, s.totals);
        continue;
      }
      for (int p = 0; p < P && first_panel + p * apart < panel1; p++)
        for (int r = 0; r < rows; r++) finish(c, first_panel + p * apart, row0 + r, load(s.totals + (P * r + p) * kPanel));
    }
  }
}

// P panels at a time; codes become pairs before with two, in registers with four
template <int P> static void linear_pairs(const LinearCall& c, int panel0, int panel1, void* scratch) {
  PairScratch& s = *static_cast<PairScratch*>(scratch);
  constexpr bool few = P == 4;
  const Packed& w = *c.w;
  switch (w.store) {
    case Store::BF16: return panel1 - panel0 <= (c.up ? 1 : 2) ? pair_panels<Values::BF16, 2, true>(c, panel0, panel1, s) : pair_panels<Values::BF16, P, true>(c, panel0, panel1, s);
    case Store::E4M3: return pair_panels<Values::E4M3, P, few>(c, panel0, panel1, s);
    case Store::E5M2: return pair_panels<Values::E5M2, P, few>(c, panel0, panel1, s);
    case Store::Codes8: return pair_panels<Values::Int8, P, few>(c, panel0, panel1, s);
    default: return pair_panels<Values::Codes4, P, few>(c, panel0, panel1, s);
  }
}
