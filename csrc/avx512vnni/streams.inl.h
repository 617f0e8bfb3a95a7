// int8 activations against codes of 4 or 8 bits, straight from the packed codes: R rows by P panels at a time, up to 24 sums in registers. Included after
// linear.inl.h, whose sums these repeat bit for bit. "two panels" by up to twelve rows: a product costs little more than its instruction, with 14 loads for 24
// of them, and what prepares codes is shared by twelve rows. "four panels" by six: fewer loads per code, better for some rows and codes of 4 bits. The panels of a
// tile lie far apart, because several streams come faster from memory than one. For one row nothing is prefetched but scales: on Zen 4 that cost a fifth (LOG).
//
// K is cut into segments, at whose ends linear.inl.h goes from integers to floats. A few segments are a chunk: its codes stay in the L1 cache while all
// rows pass by, and floats wait in memory from chunk to chunk.

constexpr int kFourTile = 6, kTwoTile = 12;  // rows of four and of two panels
constexpr int kStreamRows = 120;       // of a block, whose activations and floats stay near
constexpr int kStreamChunk = 512;      // k of a chunk, at least, where there is so much
constexpr int kFetchTiles = 4;         // so few do not take long enough for the next panels to come by themselves; more lost 1%
constexpr int kStreamSegments = 1024;
constexpr int kStreamSpare = 16384;    // rows times segments for which there is room

enum class Codes { Int4, Table4, Int8 };

struct Segment { int begin, end, group, in_group; };

struct StreamScratch {
  Segment segments[kStreamSegments];
  alignas(64) float totals[kStreamRows * 4 * kPanel];
  alignas(64) int32_t counts[kStreamSpare];   // sums of the activations [segment][row]
  alignas(64) float scales[kStreamSpare];     // of the activations [segment][row]
};

static int stream_segments(const Packed& w, const Runs& runs, Segment* out) {
  const int most = w.store == Store::Codes8 ? w.kpad : kChunk;  // where linear.inl.h goes to floats, besides ends of runs
  int count = 0, run_end = runs.size, most_end = most;
  for (int k = 0; k < w.kpad;) {
    int end = run_end < most_end ? run_end : most_end;
    if (end > w.kpad) end = w.kpad;
    if (end == run_end) run_end += runs.size;
    if (end == most_end) most_end += most;
    if (out) out[count] = {k, end, weight_group_at(w, runs, k), k / runs.in_group};
    count++;
    k = end;
  }
  return count;
}

static bool stream_support(const Packed& w, int in_group, int) {
  if (in_group == 0 || !w.meets_ints() || w.store == Store::Trellis) return false;
  Activations in;
  in.group = in_group;
  const Runs runs(w, in);
  return runs.size % kStep == 0 && w.kpad / kStep <= kStreamSegments && stream_segments(w, runs, nullptr) * kTwoTile <= kStreamSpare;
}

struct StreamTile {
  const LinearCall* call;
  const uint8_t* base[4];
  const Segment *first, *last;
  const int32_t* counts;   // of the first segment and row, `rows` apart from segment to segment
  const float* scales;
  int rows, row;           // of the block; the first one of this tile in the call
  bool in_varies, weight_varies;
  float* totals;
};

// 64 k of R rows: of codes of 4 bits the low halves, then the high ones, four k at a time. The loop is in assembly, since gcc moves sums about and spills them.
template <int R, int P, Codes C> struct StreamStep {
  const __m512i nibble = _mm512_set1_epi8(15);
  __m512i table;
  explicit StreamStep(const Packed& w) {
    const __m512i sign = _mm512_set1_epi8(-128);
    table = C == Codes::Table4 ? _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.table8))), sign) : sign;
  }
  inline __attribute__((always_inline)) __m512i code(const uint8_t* at, bool high) const {
    const __m512i v = _mm512_loadu_si512(at);
    if (C == Codes::Int8) return _mm512_xor_si512(v, table);
    const __m512i half = _mm512_and_si512(high ? _mm512_srli_epi16(v, 4) : v, nibble);
    return C == Codes::Table4 ? _mm512_shuffle_epi8(table, half) : half;
  }
  inline __attribute__((always_inline)) void add(const uint8_t* const* at, int64_t from, bool high, const int8_t* const* a, int64_t stride, int k, __m512i (*acc)[P]) const {
    __m512i w[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) w[p] = code(at[p] + from, high);
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const int32_t& four = *reinterpret_cast<const int32_t*>(a[r / 3] + (r % 3) * stride + k);
      __m512i x;
      if constexpr (P == 4)
        asm("vpbroadcastd %5, %4\n\tvpdpbusd %4, %6, %0\n\tvpdpbusd %4, %7, %1\n\tvpdpbusd %4, %8, %2\n\tvpdpbusd %4, %9, %3"
            : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "+v"(acc[r][3]), "=&v"(x) : "m"(four), "v"(w[0]), "v"(w[1]), "v"(w[2]), "v"(w[3]));
      else
        asm("vpbroadcastd %3, %2\n\tvpdpbusd %2, %4, %0\n\tvpdpbusd %2, %5, %1" : "+v"(acc[r][0]), "+v"(acc[r][1]), "=&v"(x) : "m"(four), "v"(w[0]), "v"(w[1]));
    }
  }
  inline __attribute__((always_inline)) void run(const uint8_t* const* at, const int8_t* a, int64_t stride, __m512i (*acc)[P]) const {
    const int8_t* rows[4] = {a, a + 3 * stride, a + 6 * stride, a + 9 * stride};
    asm volatile("" : "+r"(rows[0]), "+r"(rows[1]), "+r"(rows[2]), "+r"(rows[3]));  // opaque: otherwise gcc keeps a pointer for every row
    if (C == Codes::Int8) {
#pragma GCC unroll 4
      for (int j = 0; j < 16; j++) add(at, j * 64, false, rows, stride, 4 * j, acc);
    } else {
#pragma GCC unroll 2
      for (int j = 0; j < 8; j++) {
        add(at, j * 64, false, rows, stride, 4 * j, acc);
        add(at, j * 64, true, rows, stride, 32 + 4 * j, acc);
      }
    }
  }
};

template <int R, int P, Codes C> static __attribute__((noinline)) void stream_tile(const StreamTile& t) {
  const Packed& w = *t.call->w;
  constexpr int bytes = C == Codes::Int8 ? kPanel : kPanel / 2;  // of one k
  const int offset = C != Codes::Int4 ? 128 : w.has_zeros ? 0 : 8;  // what makes codes unsigned
  const StreamStep<R, P, C> step(w);
  const int8_t* a = t.call->in.q + int64_t(t.row) * w.kpad;
  const int32_t* counts = t.counts;
  const float* scales = t.scales;
  const uint8_t* at[P];
  for (int p = 0; p < P; p++) at[p] = t.base[p] + w.values_offset + size_t(t.first->begin) * bytes;
  for (const Segment* s = t.first; s < t.last; s++, counts += t.rows, scales += t.rows) {
    __m512i acc[R][P];
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const __m512i start = _mm512_set1_epi32(-offset * counts[r]);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[r][p] = start;
    }
    for (int k = s->begin; k < s->end; k += kStep) {
      step.run(at, a + k, w.kpad, acc);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) at[p] += kStep * bytes;
    }
    float* total = t.totals;
    f32x16 scale[P], zeros[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      scale[p] = t.weight_varies ? load_scales(w, t.base[p], s->group) : set1(1.f);
      zeros[p] = w.has_zeros ? load_zeros(w, t.base[p], s->group) : zero();
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
      const f32x16 mine = set1(t.in_varies ? scales[r] : 1.f);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++, total += kPanel) {
        f32x16 value = to_float(Ints{acc[r][p]});
        if (w.has_zeros) value = sub(value, mul(zeros[p], set1(float(counts[r]))));
        store(total, fmadd(value, mul(scale[p], mine), load(total)));
      }
    }
  }
}

template <int P, Codes C, int R = P == 4 ? kFourTile : kTwoTile> static void stream_tile_of(int rows, const StreamTile& t) {
  if constexpr (R > 1) {
    if (rows < R) return stream_tile_of<P, C, R - 1>(rows, t);
  }
  stream_tile<R, P, C>(t);
}

// The results of a block whose tiles hold panels of the gate and, beside them, of `up`; apart from stream_panels, which one row calls often
template <int P, Codes C> static __attribute__((noinline)) void gate_results(const StreamTile& t, const Runs& runs, int first_panel, int apart, int panel1, int row0, const float* totals) {
  const LinearCall& c = *t.call;
  const f32x16 unit = set1(C == Codes::Table4 ? c.w->table8_unit : 1.f);
  const auto result = [&](int r, int p) {
    const f32x16 y = mul(load(totals + (P * r + p) * kPanel), row_factor(*c.w, t.base[p], c.in, runs, row0 + r));
    return C == Codes::Table4 ? mul(y, unit) : y;
  };
  for (int p = 0; p < P / 2 && first_panel + p * apart < panel1; p++)
    for (int r = 0; r < t.rows; r++) finish(c, first_panel + p * apart, row0 + r, mul(activate(c.gate, result(r, p)), result(r, p + P / 2)));
}

// Part i of `parts` of a panel, nearer: the next one, while rows pass by this one
static inline void fetch_part(const uint8_t* panel, size_t bytes, int i, int parts) {
  for (size_t at = bytes / 64 * size_t(i) / size_t(parts) * 64, end = bytes / 64 * size_t(i + 1) / size_t(parts) * 64; at < end; at += 64) prefetch_l2(panel + at);
}

template <int P, Codes C> static void stream_panels(const LinearCall& c, int panel0, int panel1, StreamScratch& s) {
  constexpr int tile = P == 4 ? kFourTile : kTwoTile;
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  const int segments = stream_segments(w, runs, s.segments), blocks = w.kpad / kSumBlock, each = c.up ? P / 2 : P;
  const int apart = (panel1 - panel0 + each - 1) / each;  // gated: half of a tile's panels are of `up`
  const int most = even_blocks(c.in.rows, std::min(kStreamRows, kStreamSpare / segments / tile * tile), tile);
  const f32x16 unit = set1(C == Codes::Table4 ? w.table8_unit : 1.f);
  for (int row0 = 0; row0 < c.in.rows; row0 += most) {
    const int rows = std::min(most, c.in.rows - row0), tiles = (rows + tile - 1) / tile;
    for (int i = 0; i < segments; i++)
      for (int r = 0; r < rows; r++) {
        s.counts[i * rows + r] = block_sum(c.in, row0 + r, blocks, s.segments[i].begin / kSumBlock, s.segments[i].end / kSumBlock);
        s.scales[i * rows + r] = runs.in_varies ? c.in.scale[int64_t(row0 + r) * c.in.groups + s.segments[i].in_group] : 1.f;
      }
    for (int first_panel = panel0; first_panel < panel0 + apart; first_panel++) {
      StreamTile t;
      for (int p = 0; p < P; p++) {
        const int panel = first_panel + p % each * apart;
        t.base[p] = (p < each ? w : *c.up).data + size_t(panel < panel1 ? panel : first_panel) * w.panel_bytes;
      }
      for (int p = 0; p < P; p++) touch_scales(w, t.base[p]);
      t.call = &c;
      t.rows = rows;
      t.in_varies = runs.in_varies;
      t.weight_varies = runs.weight_varies;
      std::memset(s.totals, 0, sizeof(float) * size_t(rows) * P * kPanel);
      for (int first = 0, last; first < segments; first = last) {
        for (last = first + 1; last < segments && s.segments[last].end - s.segments[first].begin <= kStreamChunk;) last++;
        t.first = s.segments + first;
        t.last = s.segments + last;
        for (int i = 0, r = 0; i < tiles; i++) {
          const int count = (rows - r + tiles - i - 1) / (tiles - i);  // tiles as equal as can be
          t.counts = s.counts + first * rows + r;
          t.scales = s.scales + first * rows + r;
          t.row = row0 + r;
          t.totals = s.totals + r * P * kPanel;
          if (last == segments && tiles > 1 && tiles <= kFetchTiles && first_panel + 1 < panel0 + apart)
            for (int p = 0; p < P; p++) fetch_part(t.base[p] + w.panel_bytes, w.panel_bytes, i, tiles);
          if (last == segments) expect_results(c, row0 + r, count, first_panel, apart, each, panel1);
          stream_tile_of<P, C>(count, t);
          r += count;
        }
      }
      if (c.up) {
        gate_results<P, C>(t, runs, first_panel, apart, panel1, row0, s.totals);
        continue;
      }
      for (int p = 0; p < P && first_panel + p * apart < panel1; p++)
        for (int r = 0; r < rows; r++) {
          const f32x16 y = mul(load(s.totals + (P * r + p) * kPanel), row_factor(w, t.base[p], c.in, runs, row0 + r));
          finish(c, first_panel + p * apart, row0 + r, C == Codes::Table4 ? mul(y, unit) : y);
        }
    }
  }
}

template <int P> static void linear_streams(const LinearCall& c, int panel0, int panel1, void* scratch) {
  if constexpr (P > 2) {
    if (panel1 - panel0 <= (c.up ? 1 : 2)) return linear_streams<2>(c, panel0, panel1, scratch);
  }
  StreamScratch& s = *static_cast<StreamScratch*>(scratch);
  if (c.w->store == Store::Codes8) stream_panels<P, Codes::Int8>(c, panel0, panel1, s);
  else if (c.w->meaning == Meaning::Table) stream_panels<P, Codes::Table4>(c, panel0, panel1, s);
  else stream_panels<P, Codes::Int4>(c, panel0, panel1, s);
}
