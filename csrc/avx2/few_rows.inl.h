// "few": 2 to 18 rows of int8 activations against codes of 4 or 8 bits, in plain runs. Codes go from memory into registers and meet up to six rows there:
// no bytes or 16-bit integers of a panel are written first, which for few rows cost as much as the products. Included after linears.inl.h.

constexpr int kFewRows = 3 * kTileRows;
constexpr int kFewChunk = 1024;             // k of a panel that several tiles read while it lies in the L1 cache

struct FewScratch {
  alignas(64) float totals[kFewRows * kPanel];
  alignas(64) float scales[kFewRows * kMostRuns];      // of the activations, by run
  alignas(64) int32_t offsets[kFewRows * kMostRuns];   // 8 times their sum
  alignas(64) int16_t rows[kWideActivations / 2];
};

alignas(32) static const uint8_t kNibbles[32] = {15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15};

// 32 k of R rows: the low or the high halves of 512 bytes of codes, summed in 16 bits and then in 32
template <int R, bool High>
static inline __attribute__((always_inline)) void few4_half(const uint8_t* codes, const int8_t* a, int64_t stride, Ints* acc) {
  __m256i s0[R], s1[R];
  const int8_t* a3 = a + 3 * stride;      // every row is one of two pointers plus 0, 1 or 2 strides
  asm volatile("" : "+r"(a), "+r"(a3));   // opaque: see shorts_block
  const __m256i one = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    if (!High) prefetch(codes + 4096 + j * 64);
    const __m256i v0 = bytes(codes + j * 64), v1 = bytes(codes + j * 64 + 32);
    __m256i w0 = High ? _mm256_srli_epi16(v0, 4) : v0, w1 = High ? _mm256_srli_epi16(v1, 4) : v1;
    if (R == kTileRows) {  // from memory: there is no register for it
      asm("vpand %2, %0, %0\n\tvpand %2, %1, %1" : "+x"(w0), "+x"(w1) : "m"(kNibbles));
    } else {
      w0 = _mm256_and_si256(w0, _mm256_set1_epi8(15));
      w1 = _mm256_and_si256(w1, _mm256_set1_epi8(15));
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const __m256i x = _mm256_set1_epi32(four((r < 3 ? a + r * stride : a3 + (r - 3) * stride) + 4 * j));
      const __m256i p0 = _mm256_maddubs_epi16(w0, x), p1 = _mm256_maddubs_epi16(w1, x);
      s0[r] = j ? _mm256_add_epi16(s0[r], p0) : p0;
      s1[r] = j ? _mm256_add_epi16(s1[r], p1) : p1;
      keep_order(s0[r], s1[r]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++) {
    const __m256i x = _mm256_madd_epi16(s0[r], one), y = _mm256_madd_epi16(s1[r], one);
    acc[r] = High ? Ints{_mm256_add_epi32(acc[r].a, x), _mm256_add_epi32(acc[r].b, y)} : Ints{x, y};
  }
}

// Runs [first, last) of a panel for rows [row, row + R)
template <int R, bool Small>
static __attribute__((noinline)) void few_tile(const LinearCall& c, const uint8_t* base, int first, int last, int row, FewScratch& s) {
  const Packed& w = *c.w;
  const int runs = w.kpad / 64, per_scale = w.group < w.kpad ? w.group / 64 : 0;
  const uint8_t* codes = base + w.values_offset + size_t(first) * (Small ? 512 : 1024);
  float* totals = s.totals + row * kPanel;
  f32x16 scale = set1(1.f);  // of weights that have one for the whole row, it is applied at the end
  for (int run = first; run < last; run++, codes += Small ? 512 : 1024) {
    if (per_scale && (run == first || run % per_scale == 0)) scale = load_scales(w, base, run / per_scale);
    alignas(32) Ints acc[R];
    if constexpr (Small) {
      const int8_t* a = c.in.q + int64_t(row) * w.kpad + run * 64;
      few4_half<R, false>(codes, a, w.kpad, acc);
      few4_half<R, true>(codes, a + 32, w.kpad, acc);
    } else {
      raw_tile(std::integral_constant<int, R>(), codes, reinterpret_cast<const char*>(s.rows + int64_t(row) * w.kpad + run * 64), int64_t(w.kpad) * 2, 16, acc);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const int at = (row + r) * runs + run;
      Ints sum = acc[r];
      if (Small) sum = minus(sum, s.offsets[at]);
      float* total = totals + r * kPanel;
      store(total, fmadd(to_float(sum), mul(scale, set1(s.scales[at])), load(total)));
    }
  }
}

template <bool Small>
static void few_all(const LinearCall& c, int panel0, int panel1, FewScratch& s) {
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  const int rows = c.in.rows, steps = w.kpad / 64, tiles = (rows + kTileRows - 1) / kTileRows, take = (rows + tiles - 1) / tiles;
  const auto tile = [&](const uint8_t* base, int first, int last, int row, int count) {
    switch (count) {
      case 6: return few_tile<6, Small>(c, base, first, last, row, s);
      case 5: return few_tile<5, Small>(c, base, first, last, row, s);
      case 4: return few_tile<4, Small>(c, base, first, last, row, s);
      case 3: return few_tile<3, Small>(c, base, first, last, row, s);
      case 2: return few_tile<2, Small>(c, base, first, last, row, s);
      default: return few_tile<1, Small>(c, base, first, last, row, s);
    }
  };
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < steps; i++) {
      s.scales[r * steps + i] = c.in.scale[int64_t(r) * c.in.groups + i * 64 / runs.in_group];
      const int32_t* sums = c.in.sums + int64_t(r) * steps * 2 + 2 * i;
      s.offsets[r * steps + i] = 8 * (sums[0] + sums[1]);
    }
  if (!Small) widen_activations(c.in.q, rows * w.kpad, s.rows);
  constexpr int chunk = kFewChunk / 64;
  for (int p = panel0; p < panel1; p++) {
    const uint8_t* base = w.data + size_t(p) * w.panel_bytes;
    touch_scales(w, base);
    std::memset(s.totals, 0, sizeof(float) * size_t(rows) * kPanel);
    for (int first = 0; first < steps; first += chunk) {
      const int last = first + chunk < steps ? first + chunk : steps;
      for (int r = 0; r < rows; r += take) tile(base, first, last, r, rows - r < take ? rows - r : take);
    }
    for (int r = 0; r < rows; r++) finish(c, p, r, mul(load(s.totals + r * kPanel), row_factor(w, base, c.in, runs, r)));
  }
}

static void few_linear(const LinearCall& c, int panel0, int panel1, void* scratch) {
  FewScratch& s = *static_cast<FewScratch*>(scratch);
  if (c.w->store == Store::Codes4) few_all<true>(c, panel0, panel1, s);
  else few_all<false>(c, panel0, panel1, s);
}
static bool few_support(const Packed& w, int in_group, int rows) {
  return rows >= 2 && rows <= kFewRows && row_support(w, in_group, 1) && (w.store == Store::Codes4 || w.kpad * rows <= kWideActivations / 2);
}
