// Linear kernels for several rows of int8 activations with AVX2. Included after linear.inl.h, whose sums they repeat bit for bit.

constexpr int kTileRows = 6;             // rows of a tile: 12 sums, 2 weights, an activation and a product fill the registers
constexpr int kSharedRows = 256;         // most rows that share one unpacking of a panel

// ---- "shorts": 4-bit codes. vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits; with codes 0..15 eight such sums fit
// (8 * 2 * 15 * 127 = 30,480), so that one multiplication and one addition make 32 products. ----

constexpr int kShortsChunk = 1024;       // k of a panel unpacked to bytes at a time: 16 KiB, half of the L1 cache

struct ShortsScratch {
  alignas(64) uint8_t codes[kShortsChunk * kPanel];
  alignas(64) float totals[kSharedRows * kPanel];
};

// Stops the compiler from turning a chain of additions into a tree, whose leaves it then spills: half the speed
static inline void keep_order(__m256i& a, __m256i& b) { asm("" : "+x"(a), "+x"(b)); }

// Eight steps (32 k) for R rows, widened to 32 bits
template <int R, bool First>
static inline __attribute__((always_inline)) void shorts_block(const uint8_t* codes, const int8_t* a, int64_t stride, Ints* acc) {
  __m256i low[R], high[R];
  const int8_t* a3 = a + 3 * stride;      // every row is one of two pointers plus 0, 1 or 2 strides
  asm volatile("" : "+r"(a), "+r"(a3));   // opaque: else the compiler keeps activations, and spills them, for a later block
  const auto weights = [&](int i) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(codes) + i); };
  const auto activations = [&](int r, int j) { return _mm256_set1_epi32(four((r < 3 ? a + r * stride : a3 + (r - 3) * stride) + 4 * j)); };
  {
    const __m256i w0 = weights(0), w1 = weights(1);
    for (int r = 0; r < R; r++) {
      const __m256i v = activations(r, 0);
      low[r] = _mm256_maddubs_epi16(w0, v);
      high[r] = _mm256_maddubs_epi16(w1, v);
      keep_order(low[r], high[r]);
    }
  }
#pragma GCC unroll 7
  for (int j = 1; j < 8; j++) {
    const __m256i w0 = weights(2 * j), w1 = weights(2 * j + 1);
    for (int r = 0; r < R; r++) {
      const __m256i v = activations(r, j);
      low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(w0, v));
      high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(w1, v));
      keep_order(low[r], high[r]);
    }
  }
  const __m256i one = _mm256_set1_epi16(1);
  for (int r = 0; r < R; r++) {
    const __m256i x = _mm256_madd_epi16(low[r], one), y = _mm256_madd_epi16(high[r], one);
    acc[r].a = First ? x : _mm256_add_epi32(acc[r].a, x);
    acc[r].b = First ? y : _mm256_add_epi32(acc[r].b, y);
  }
}

// Plain: runs of 64 k, each with a scale of its activations, and no zero points: what the presets are
template <int R, bool Plain>
static void shorts_tile(const LinearCall& c, const Runs& runs, const uint8_t* base, const uint8_t* codes, int first_block, int last_block, int row, float* totals) {
  const Packed& w = *c.w;
  const int8_t* a = c.in.q + int64_t(row) * w.kpad;
  const int64_t stride = w.kpad;
  const int per_run = Plain ? 2 : runs.size / kSumBlock, blocks = w.kpad / kSumBlock;
  const float* in_scale = c.in.scale + int64_t(row) * c.in.groups;
  for (int b = first_block; b < last_block;) {
    const int end = Plain || b + per_run < last_block ? b + per_run : last_block, count = Plain ? 2 : end - b;
    alignas(32) Ints acc[R];
    shorts_block<R, true>(codes, a + b * kSumBlock, stride, acc);
    for (int i = 1; i < count; i++) shorts_block<R, false>(codes + i * 512, a + (b + i) * kSumBlock, stride, acc);
    codes += count * 512;
    const int k = b * kSumBlock, group = Plain ? k / w.group : weight_group_at(w, runs, k);
    const f32x16 scale = runs.weight_varies ? load_scales(w, base, group) : set1(1.f);
    const f32x16 zeros = !Plain && w.has_zeros ? load_zeros(w, base, group) : zero();
    const int32_t* sums = c.in.sums + int64_t(row) * blocks + b;
    const float* mine = in_scale + (Plain ? k / c.in.group : runs.in_varies ? k / runs.in_group : 0);
    for (int r = 0; r < R; r++, sums += blocks, mine += c.in.groups) {
      __m256i s = _mm256_set1_epi32(sums[0]);
      for (int i = 1; i < count; i++) s = _mm256_add_epi32(s, _mm256_set1_epi32(sums[i]));
      Ints exact = acc[r];
      if (Plain || !w.has_zeros) {
        const __m256i offset = _mm256_slli_epi32(s, 3);
        exact = {_mm256_sub_epi32(exact.a, offset), _mm256_sub_epi32(exact.b, offset)};
      }
      f32x16 value = to_float(exact), factor = scale;
      if (!Plain && w.has_zeros) value = sub(value, mul(zeros, to_float(Ints{s, s})));
      if (Plain || runs.in_varies) factor = mul(scale, set1(*mine));  // as run_factor: times 1 changes nothing
      float* at = totals + r * kPanel;
      store(at, fmadd(value, factor, load(at)));
    }
    b = end;
  }
}

template <bool Plain>
static void shorts_rows(const LinearCall& c, const Runs& runs, const uint8_t* base, const uint8_t* codes, int b0, int b1, int row0, int row1, float* totals) {
  int r = row0;
  for (; r + kTileRows <= row1; r += kTileRows) shorts_tile<kTileRows, Plain>(c, runs, base, codes, b0, b1, r, totals + (r - row0) * kPanel);
  float* at = totals + (r - row0) * kPanel;
  switch (row1 - r) {
    case 5: shorts_tile<5, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 4: shorts_tile<4, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 3: shorts_tile<3, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 2: shorts_tile<2, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 1: shorts_tile<1, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    default: break;
  }
}

static inline bool plain_runs(const Packed& w, const Runs& runs) { return runs.size == 64 && runs.in_varies && !w.has_zeros; }

static void shorts_linear(const LinearCall& c, int panel0, int panel1, void* scratch) {
  ShortsScratch& s = *static_cast<ShortsScratch*>(scratch);
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  const auto rows = plain_runs(w, runs) ? shorts_rows<true> : shorts_rows<false>;
  for (int row0 = 0; row0 < c.in.rows; row0 += kSharedRows) {
    const int row1 = row0 + kSharedRows < c.in.rows ? row0 + kSharedRows : c.in.rows;
    for (int p = panel0; p < panel1; p++) {
      const uint8_t* base = w.data + size_t(p) * w.panel_bytes;
      std::memset(s.totals, 0, sizeof(float) * size_t(row1 - row0) * kPanel);
      for (int k = 0; k < w.kpad; k += kShortsChunk) {
        const int end = k + kShortsChunk < w.kpad ? k + kShortsChunk : w.kpad;
        for (int i = k; i < end; i += kStep) spread_codes(base + w.values_offset + size_t(i) * (kPanel / 2), s.codes + size_t(i - k) * kPanel);
        rows(c, runs, base, s.codes, k / kSumBlock, end / kSumBlock, row0, row1, s.totals);
      }
      for (int r = row0; r < row1; r++) finish(c, p, r, mul(load(s.totals + (r - row0) * kPanel), row_factor(w, base, c.in, runs, r)));
    }
  }
}

// A run of k that shares its scales must end where a chunk ends, in the general kernel as here
static bool runs_fit(const Packed& w, int in_group, int rows) {
  if (in_group == 0 || rows < 2 || w.meaning != Meaning::Int || !w.meets_ints()) return false;
  Activations in;
  in.group = in_group;
  const Runs runs(w, in);
  return runs.size <= 512 && 1024 % runs.size == 0;
}
static bool shorts_support(const Packed& w, int in_group, int rows) { return w.store == Store::Codes4 && runs_fit(w, in_group, rows); }

// ---- "wide": 8-bit codes as 16-bit integers. vpmaddwd adds two products in 32 bits, and nothing is widened inside a run. ----

constexpr int kWideChunk = 512;             // k of a panel as 16-bit integers: 16 KiB
constexpr int kWideActivations = 384 << 10; // bytes of activations as 16-bit integers that should stay in the L2 cache

struct WideScratch {
  alignas(64) int16_t codes[kWideChunk * kPanel];
  alignas(64) float totals[kSharedRows * kPanel];
  alignas(64) int16_t rows[kWideActivations / 2];
};

// k [from, to) of a panel as [k/4][k 0 and 2, k 1 and 3][16 rows][2]
static void widen_codes(const uint8_t* values, int from, int to, int16_t* out) {
  for (int k = from; k < to; k += 4, out += 64) {
    const __m256i a = bytes(values + size_t(k) * kPanel), b = bytes(values + size_t(k) * kPanel + 32);
    __m256i* at = reinterpret_cast<__m256i*>(out);
    _mm256_store_si256(at, _mm256_srai_epi16(_mm256_slli_epi16(a, 8), 8));
    _mm256_store_si256(at + 1, _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    _mm256_store_si256(at + 2, _mm256_srai_epi16(a, 8));
    _mm256_store_si256(at + 3, _mm256_srai_epi16(b, 8));
  }
}
// Activations in the same order: k 0, 2, 1, 3 of each four
static void widen_activations(const int8_t* q, int count, int16_t* out) {
  const __m128i order = _mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
  for (int i = 0; i < count; i += 16)
    _mm256_store_si256(reinterpret_cast<__m256i*>(out + i), _mm256_cvtepi8_epi16(_mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q + i)), order)));
}

// Rows of 16-bit pairs meet `steps` (a multiple of 4) vectors of sixteen weight rows; rows 0 to 2 lie at `a`, 3 to 5 at `b`, `stride` bytes
// apart, and their sums end in acc. In assembly because compilers spill some of the sums, which have to stay in registers: half the
// speed. ymm0-11: sums; 12, 13: weights; 14: an activation; 15: a product.
#define OCTAVO_ROW(at, low, high)                                                                                     \
  "vpbroadcastd 4*step" at ", %%ymm14\n\tvpmaddwd %%ymm14, %%ymm12, %%ymm15\n\tvpaddd %%ymm15, %%ymm" low ", %%ymm" low \
  "\n\tvpmaddwd %%ymm14, %%ymm13, %%ymm14\n\tvpaddd %%ymm14, %%ymm" high ", %%ymm" high "\n\t"
#define OCTAVO_CLEAR(low, high) "vpxor %%xmm" low ", %%xmm" low ", %%xmm" low "\n\tvpxor %%xmm" high ", %%xmm" high ", %%xmm" high "\n\t"
#define OCTAVO_KEEP(low, high) "vmovdqa %%ymm" low ", 32*" low "(%[out])\n\tvmovdqa %%ymm" high ", 32*" high "(%[out])\n\t"
#define OCTAVO_TILE(rows, clear, products, keep)                                                                                  \
  static inline void rows_tile(std::integral_constant<int, rows>, const void* codes, const char* a, int64_t stride, int64_t steps, Ints* acc) { \
    const char* b = a + 3 * stride;                                                                                                 \
    asm volatile(clear ".p2align 4\n1:\n\t.set step, 0\n\t.rept 4\n\t"                                                              \
                 "vmovdqa 64*step(%[codes]), %%ymm12\n\tvmovdqa 64*step+32(%[codes]), %%ymm13\n\t" products                          \
                 ".set step, step+1\n\t.endr\n\tadd $256, %[codes]\n\tadd $16, %[a]\n\tadd $16, %[b]\n\tsub $4, %[n]\n\tjnz 1b\n\t" keep \
                 : [codes] "+r"(codes), [a] "+r"(a), [b] "+r"(b), [n] "+r"(steps)                                                   \
                 : [s] "r"(stride), [out] "r"(acc)                                                                                  \
                 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"); \
  }
// The same of codes that come as bytes, [k/4][16 rows][4]: widened in registers, k 0 and 2 of each four, then 1 and 3
#define OCTAVO_RAW_TILE(rows, clear, products, keep)                                                                              \
  static inline void raw_tile(std::integral_constant<int, rows>, const void* codes, const char* a, int64_t stride, int64_t fours, Ints* acc) { \
    const char* b = a + 3 * stride;                                                                                                 \
    asm volatile(clear ".p2align 4\n1:\n\t.set pair, 0\n\t.rept 2\n\tprefetcht0 4096+64*pair(%[codes])\n\t"                        \
                 "vmovdqu 64*pair(%[codes]), %%ymm12\n\tvmovdqu 64*pair+32(%[codes]), %%ymm13\n\tvpsllw $8, %%ymm12, %%ymm12\n\tvpsllw $8, %%ymm13, %%ymm13\n\t" \
                 "vpsraw $8, %%ymm12, %%ymm12\n\tvpsraw $8, %%ymm13, %%ymm13\n\t.set step, 2*pair\n\t" products                     \
                 "vmovdqu 64*pair(%[codes]), %%ymm12\n\tvmovdqu 64*pair+32(%[codes]), %%ymm13\n\tvpsraw $8, %%ymm12, %%ymm12\n\tvpsraw $8, %%ymm13, %%ymm13\n\t" \
                 ".set step, 2*pair+1\n\t" products                                                                                 \
                 ".set pair, pair+1\n\t.endr\n\tadd $128, %[codes]\n\tadd $16, %[a]\n\tadd $16, %[b]\n\tsub $2, %[n]\n\tjnz 1b\n\t" keep \
                 : [codes] "+r"(codes), [a] "+r"(a), [b] "+r"(b), [n] "+r"(fours)                                                    \
                 : [s] "r"(stride), [out] "r"(acc)                                                                                  \
                 : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"); \
  }
#define OCTAVO_ROW0 OCTAVO_ROW("(%[a])", "0", "1")
#define OCTAVO_ROW1 OCTAVO_ROW0 OCTAVO_ROW("(%[a],%[s])", "2", "3")
#define OCTAVO_ROW2 OCTAVO_ROW1 OCTAVO_ROW("(%[a],%[s],2)", "4", "5")
#define OCTAVO_ROW3 OCTAVO_ROW2 OCTAVO_ROW("(%[b])", "6", "7")
#define OCTAVO_ROW4 OCTAVO_ROW3 OCTAVO_ROW("(%[b],%[s])", "8", "9")
#define OCTAVO_ROW5 OCTAVO_ROW4 OCTAVO_ROW("(%[b],%[s],2)", "10", "11")
#define OCTAVO_SUMS1(f) f("0", "1")
#define OCTAVO_SUMS2(f) OCTAVO_SUMS1(f) f("2", "3")
#define OCTAVO_SUMS3(f) OCTAVO_SUMS2(f) f("4", "5")
#define OCTAVO_SUMS4(f) OCTAVO_SUMS3(f) f("6", "7")
#define OCTAVO_SUMS5(f) OCTAVO_SUMS4(f) f("8", "9")
#define OCTAVO_SUMS6(f) OCTAVO_SUMS5(f) f("10", "11")
OCTAVO_TILE(1, OCTAVO_SUMS1(OCTAVO_CLEAR), OCTAVO_ROW0, OCTAVO_SUMS1(OCTAVO_KEEP))
OCTAVO_TILE(2, OCTAVO_SUMS2(OCTAVO_CLEAR), OCTAVO_ROW1, OCTAVO_SUMS2(OCTAVO_KEEP))
OCTAVO_TILE(3, OCTAVO_SUMS3(OCTAVO_CLEAR), OCTAVO_ROW2, OCTAVO_SUMS3(OCTAVO_KEEP))
OCTAVO_TILE(4, OCTAVO_SUMS4(OCTAVO_CLEAR), OCTAVO_ROW3, OCTAVO_SUMS4(OCTAVO_KEEP))
OCTAVO_TILE(5, OCTAVO_SUMS5(OCTAVO_CLEAR), OCTAVO_ROW4, OCTAVO_SUMS5(OCTAVO_KEEP))
OCTAVO_TILE(6, OCTAVO_SUMS6(OCTAVO_CLEAR), OCTAVO_ROW5, OCTAVO_SUMS6(OCTAVO_KEEP))
OCTAVO_RAW_TILE(1, OCTAVO_SUMS1(OCTAVO_CLEAR), OCTAVO_ROW0, OCTAVO_SUMS1(OCTAVO_KEEP))
OCTAVO_RAW_TILE(2, OCTAVO_SUMS2(OCTAVO_CLEAR), OCTAVO_ROW1, OCTAVO_SUMS2(OCTAVO_KEEP))
OCTAVO_RAW_TILE(3, OCTAVO_SUMS3(OCTAVO_CLEAR), OCTAVO_ROW2, OCTAVO_SUMS3(OCTAVO_KEEP))
OCTAVO_RAW_TILE(4, OCTAVO_SUMS4(OCTAVO_CLEAR), OCTAVO_ROW3, OCTAVO_SUMS4(OCTAVO_KEEP))
OCTAVO_RAW_TILE(5, OCTAVO_SUMS5(OCTAVO_CLEAR), OCTAVO_ROW4, OCTAVO_SUMS5(OCTAVO_KEEP))
OCTAVO_RAW_TILE(6, OCTAVO_SUMS6(OCTAVO_CLEAR), OCTAVO_ROW5, OCTAVO_SUMS6(OCTAVO_KEEP))

// The same of six rows, of which the codes come as bytes at `raw`; they are widened to `codes` on the way (as widen_codes does), by units that the products
// leave idle
static inline void six_rows_widening(const uint8_t* raw, int16_t* codes, const char* a, int64_t stride, int64_t steps, Ints* acc) {
  const char* b = a + 3 * stride;
  asm volatile(OCTAVO_SUMS6(OCTAVO_CLEAR)
               ".p2align 4\n1:\n\t.set pair, 0\n\t.rept 2\n\t"
               "vmovdqa 64*pair(%[raw]), %%ymm12\n\tvmovdqa 64*pair+32(%[raw]), %%ymm13\n\tvpsllw $8, %%ymm12, %%ymm12\n\tvpsllw $8, %%ymm13, %%ymm13\n\t"
               "vpsraw $8, %%ymm12, %%ymm12\n\tvpsraw $8, %%ymm13, %%ymm13\n\tvmovdqa %%ymm12, 128*pair(%[codes])\n\tvmovdqa %%ymm13, 128*pair+32(%[codes])\n\t"
               ".set step, 2*pair\n\t" OCTAVO_ROW5
               "vmovdqa 64*pair(%[raw]), %%ymm12\n\tvmovdqa 64*pair+32(%[raw]), %%ymm13\n\tvpsraw $8, %%ymm12, %%ymm12\n\tvpsraw $8, %%ymm13, %%ymm13\n\t"
               "vmovdqa %%ymm12, 128*pair+64(%[codes])\n\tvmovdqa %%ymm13, 128*pair+96(%[codes])\n\t"
               ".set step, 2*pair+1\n\t" OCTAVO_ROW5
               ".set pair, pair+1\n\t.endr\n\tadd $256, %[codes]\n\tadd $128, %[raw]\n\tadd $16, %[a]\n\tadd $16, %[b]\n\tsub $4, %[n]\n\tjnz 1b\n\t"
               OCTAVO_SUMS6(OCTAVO_KEEP)
               : [codes] "+r"(codes), [raw] "+r"(raw), [a] "+r"(a), [b] "+r"(b), [n] "+r"(steps)
               : [s] "r"(stride), [out] "r"(acc)
               : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}
#undef OCTAVO_SUMS6
#undef OCTAVO_SUMS5
#undef OCTAVO_SUMS4
#undef OCTAVO_SUMS3
#undef OCTAVO_SUMS2
#undef OCTAVO_SUMS1
#undef OCTAVO_ROW5
#undef OCTAVO_ROW4
#undef OCTAVO_ROW3
#undef OCTAVO_ROW2
#undef OCTAVO_ROW1
#undef OCTAVO_ROW0
#undef OCTAVO_TILE
#undef OCTAVO_RAW_TILE
#undef OCTAVO_KEEP
#undef OCTAVO_CLEAR
#undef OCTAVO_ROW

// Products of R rows of activations with `count` k (a multiple of 8) of a panel
template <int R>
static inline __attribute__((always_inline)) void wide_sums(const int16_t* codes, const int16_t* x, int64_t stride, int count, Ints* acc) {
  rows_tile(std::integral_constant<int, R>(), codes, reinterpret_cast<const char*>(x), stride * 2, count / 2, acc);
}

template <int R, bool Plain>
static void wide_tile(const LinearCall& c, const Runs& runs, const uint8_t* base, const int16_t* codes, const int16_t* a, int k0, int k1, int row, float* totals) {
  const Packed& w = *c.w;
  const int64_t stride = w.kpad;
  const int size = Plain ? 64 : runs.size, blocks = w.kpad / kSumBlock;
  const float* in_scale = c.in.scale + int64_t(row) * c.in.groups;
  for (int k = k0; k < k1;) {
    const int end = Plain || k + size < k1 ? k + size : k1;
    alignas(32) Ints acc[R];
    const int16_t* x = a + (k - k0);
    wide_sums<R>(codes, x, stride, end - k, acc);
    codes += (end - k) * kPanel;
    const int group = Plain ? k / w.group : weight_group_at(w, runs, k);
    const f32x16 scale = runs.weight_varies ? load_scales(w, base, group) : set1(1.f);
    const f32x16 zeros = !Plain && w.has_zeros ? load_zeros(w, base, group) : zero();
    const float* mine = in_scale + (Plain ? k / c.in.group : runs.in_varies ? k / runs.in_group : 0);
    for (int r = 0; r < R; r++, mine += c.in.groups) {
      f32x16 value = to_float(acc[r]), factor = scale;
      if (!Plain && w.has_zeros) value = sub(value, mul(zeros, set1(float(block_sum(c.in, row + r, blocks, k / kSumBlock, end / kSumBlock)))));
      if (Plain || runs.in_varies) factor = mul(scale, set1(*mine));  // as run_factor: times 1 changes nothing
      float* at = totals + r * kPanel;
      store(at, fmadd(value, factor, load(at)));
    }
    k = end;
  }
}

template <bool Plain>
static void wide_rows(const LinearCall& c, const Runs& runs, const uint8_t* base, const int16_t* codes, const int16_t* a, int k0, int k1, int row0, int row1, float* totals) {
  int r = row0;
  for (; r + kTileRows <= row1; r += kTileRows) wide_tile<kTileRows, Plain>(c, runs, base, codes, a + int64_t(r - row0) * c.w->kpad, k0, k1, r, totals + (r - row0) * kPanel);
  float* at = totals + (r - row0) * kPanel;
  a += int64_t(r - row0) * c.w->kpad;
  switch (row1 - r) {
    case 5: wide_tile<5, Plain>(c, runs, base, codes, a, k0, k1, r, at); break;
    case 4: wide_tile<4, Plain>(c, runs, base, codes, a, k0, k1, r, at); break;
    case 3: wide_tile<3, Plain>(c, runs, base, codes, a, k0, k1, r, at); break;
    case 2: wide_tile<2, Plain>(c, runs, base, codes, a, k0, k1, r, at); break;
    case 1: wide_tile<1, Plain>(c, runs, base, codes, a, k0, k1, r, at); break;
    default: break;
  }
}

static void wide_linear(const LinearCall& c, int panel0, int panel1, void* scratch) {
  WideScratch& s = *static_cast<WideScratch*>(scratch);
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  const bool plain = plain_runs(w, runs);
  const int chunk = runs.size >= kWideChunk ? kWideChunk : kWideChunk / runs.size * runs.size;
  int block = kWideActivations / 2 / w.kpad / kTileRows * kTileRows;
  if (block > kSharedRows) block = kSharedRows / kTileRows * kTileRows;
  for (int row0 = 0; row0 < c.in.rows; row0 += block) {
    const int row1 = row0 + block < c.in.rows ? row0 + block : c.in.rows;
    widen_activations(c.in.q + int64_t(row0) * w.kpad, (row1 - row0) * w.kpad, s.rows);
    for (int p = panel0; p < panel1; p++) {
      const uint8_t* base = w.data + size_t(p) * w.panel_bytes;
      std::memset(s.totals, 0, sizeof(float) * size_t(row1 - row0) * kPanel);
      for (int k = 0; k < w.kpad; k += chunk) {
        const int end = k + chunk < w.kpad ? k + chunk : w.kpad;
        widen_codes(base + w.values_offset, k, end, s.codes);
        if (plain) wide_rows<true>(c, runs, base, s.codes, s.rows + k, k, end, row0, row1, s.totals);
        else wide_rows<false>(c, runs, base, s.codes, s.rows + k, k, end, row0, row1, s.totals);
      }
      for (int r = row0; r < row1; r++) finish(c, p, r, mul(load(s.totals + (r - row0) * kPanel), row_factor(w, base, c.in, runs, r)));
    }
  }
}

// ---- "whole": the same where weights and activations have one scale a row. Sums are exact over the whole of k, however it is cut. ----

// raw: where the codes are to be widened from first, and by six rows for others as well, or null
template <int R>
static void whole_tile(int16_t* codes, const int16_t* x, int64_t stride, int count, bool first, Ints* totals, const uint8_t* raw = nullptr) {
  alignas(32) Ints acc[R];
  if (R < kTileRows && raw) raw_tile(std::integral_constant<int, R>(), raw, reinterpret_cast<const char*>(x), stride * 2, count / 4, acc);
  else if (R == kTileRows && raw) six_rows_widening(raw, codes, reinterpret_cast<const char*>(x), stride * 2, count / 2, acc);
  else wide_sums<R>(codes, x, stride, count, acc);
  for (int r = 0; r < R; r++)
    totals[r] = first ? acc[r] : Ints{_mm256_add_epi32(totals[r].a, acc[r].a), _mm256_add_epi32(totals[r].b, acc[r].b)};
}

constexpr int kWholeChunk = 384;            // k of a panel at a time: with six rows of activations it stays in the L1 cache

static void whole_linear(const LinearCall& c, int panel0, int panel1, void* scratch) {
  WideScratch& s = *static_cast<WideScratch*>(scratch);
  const Packed& w = *c.w;
  const int64_t stride = w.kpad;
  Ints* totals = reinterpret_cast<Ints*>(s.totals);
  int block = kWideActivations / 2 / w.kpad / kTileRows * kTileRows;
  if (block > kSharedRows) block = kSharedRows / kTileRows * kTileRows;
  for (int row0 = 0; row0 < c.in.rows; row0 += block) {
    const int rows = c.in.rows - row0 < block ? c.in.rows - row0 : block;
    widen_activations(c.in.q + int64_t(row0) * w.kpad, rows * w.kpad, s.rows);
    for (int p = panel0; p < panel1; p++) {
      const uint8_t* base = w.data + size_t(p) * w.panel_bytes;
      for (int k = 0; k < w.kpad; k += kWholeChunk) {
        const int count = k + kWholeChunk < w.kpad ? kWholeChunk : w.kpad - k;
        const uint8_t* raw = base + w.values_offset + size_t(k) * kPanel;
        // The next codes are fetched while these are multiplied, some with every tile: 5% of the time
        const uint8_t* ahead = raw + size_t(count) * kPanel;
        const int lines = (count * kPanel / 64 + rows / kTileRows - 1) / std::max(1, rows / kTileRows);
        int r = 0;
        for (; r + kTileRows <= rows; r += kTileRows) {
          for (int i = 0; i < lines; i++, ahead += 64) _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
          whole_tile<kTileRows>(s.codes, s.rows + r * stride + k, stride, count, k == 0, totals + r, r ? nullptr : raw);
        }
        const int16_t* x = s.rows + r * stride + k;
        const uint8_t* const alone = r ? nullptr : raw;   // nobody has widened them
        switch (rows - r) {
          case 5: whole_tile<5>(s.codes, x, stride, count, k == 0, totals + r, alone); break;
          case 4: whole_tile<4>(s.codes, x, stride, count, k == 0, totals + r, alone); break;
          case 3: whole_tile<3>(s.codes, x, stride, count, k == 0, totals + r, alone); break;
          case 2: whole_tile<2>(s.codes, x, stride, count, k == 0, totals + r, alone); break;
          case 1: whole_tile<1>(s.codes, x, stride, count, k == 0, totals + r, alone); break;
          default: break;
        }
      }
      const f32x16 scale = load_scales(w, base, 0);
      for (int r = 0; r < rows; r++) finish(c, p, row0 + r, mul(fmadd(to_float(totals[r]), scale, zero()), set1(c.in.scale[row0 + r])));
    }
  }
}

// ---- "row": one row against codes of 4 or 8 bits, in plain runs. Memory should be what it waits for: 14 operations for 64 bytes. ----

constexpr int kMostRuns = 1024;

struct RowScratch {
  float scales[kMostRuns];    // of the activations, by run
  int32_t offsets[kMostRuns]; // 8 times their sum
};

static void row4_panel(const uint8_t* base, const Packed& w, const int8_t* a, const RowScratch& s, f32x16& total) {
  const __m256i mask = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
  const uint8_t* codes = base + w.values_offset;
  const int runs = w.kpad / 64, per_scale = w.group / 64;
  f32x16 scale = set1(1.f);  // of weights that have one for the whole row, it is applied at the end
  for (int run = 0, group = 0, left = w.group < w.kpad ? 0 : -1; run < runs; run++, left--, codes += 512, a += 64) {
    if (left == 0) { scale = load_scales(w, base, group++); left = per_scale; }
    __m256i l0 = _mm256_setzero_si256(), l1 = l0, h0 = l0, h1 = l0;
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      const __m256i v0 = bytes(codes + j * 64), v1 = bytes(codes + j * 64 + 32);
      const __m256i x = _mm256_set1_epi32(four(a + 4 * j)), y = _mm256_set1_epi32(four(a + 32 + 4 * j));
      l0 = _mm256_add_epi16(l0, _mm256_maddubs_epi16(_mm256_and_si256(v0, mask), x));
      l1 = _mm256_add_epi16(l1, _mm256_maddubs_epi16(_mm256_and_si256(v1, mask), x));
      h0 = _mm256_add_epi16(h0, _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v0, 4), mask), y));
      h1 = _mm256_add_epi16(h1, _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(v1, 4), mask), y));
      keep_order(l0, l1);
      keep_order(h0, h1);
    }
    const __m256i offset = _mm256_set1_epi32(s.offsets[run]);
    const Ints sum = {_mm256_sub_epi32(_mm256_add_epi32(_mm256_madd_epi16(l0, one), _mm256_madd_epi16(h0, one)), offset),
                      _mm256_sub_epi32(_mm256_add_epi32(_mm256_madd_epi16(l1, one), _mm256_madd_epi16(h1, one)), offset)};
    total = fmadd(to_float(sum), mul(scale, set1(s.scales[run])), total);
  }
}

static void row8_panel(const uint8_t* base, const Packed& w, const int8_t* a, const RowScratch& s, f32x16& total) {
  const __m256i one = _mm256_set1_epi16(1);
  const int8_t* codes = reinterpret_cast<const int8_t*>(base + w.values_offset);
  const int runs = w.kpad / 64, per_scale = w.group / 64;
  f32x16 scale = set1(1.f);  // of weights that have one for the whole row, it is applied at the end
  for (int run = 0, group = 0, left = w.group < w.kpad ? 0 : -1; run < runs; run++, left--, codes += 1024, a += 64) {
    if (left == 0) { scale = load_scales(w, base, group++); left = per_scale; }
    __m256i s0 = _mm256_setzero_si256(), s1 = s0;
#pragma GCC unroll 16
    for (int j = 0; j < 16; j++) {
      const __m256i w0 = bytes(codes + j * 64), w1 = bytes(codes + j * 64 + 32), x = _mm256_set1_epi32(four(a + 4 * j));
      s0 = _mm256_add_epi32(s0, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w0), _mm256_sign_epi8(x, w0)), one));
      s1 = _mm256_add_epi32(s1, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(w1), _mm256_sign_epi8(x, w1)), one));
      keep_order(s0, s1);
    }
    total = fmadd(to_float(Ints{s0, s1}), mul(scale, set1(s.scales[run])), total);
  }
}

static void row_linear(const LinearCall& c, int panel0, int panel1, void* scratch) {
  RowScratch& s = *static_cast<RowScratch*>(scratch);
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  for (int run = 0; run < w.kpad / 64; run++) {
    s.scales[run] = c.in.scale[run * 64 / runs.in_group];
    s.offsets[run] = 8 * (c.in.sums[2 * run] + c.in.sums[2 * run + 1]);
  }
  for (int p = panel0; p < panel1; p++) {
    const uint8_t* base = w.data + size_t(p) * w.panel_bytes;
    touch_scales(w, base);
    f32x16 total = zero();
    if (w.store == Store::Codes4) row4_panel(base, w, c.in.q, s, total);
    else row8_panel(base, w, c.in.q, s, total);
    finish(c, p, 0, mul(total, row_factor(w, base, c.in, runs, 0)));
  }
}
static bool row_support(const Packed& w, int in_group, int rows) {
  if (rows != 1 || in_group == 0 || w.meaning != Meaning::Int || (w.store != Store::Codes4 && w.store != Store::Codes8) || w.kpad > 64 * kMostRuns) return false;
  Activations in;
  in.group = in_group;
  return plain_runs(w, Runs(w, in));
}

static bool wide_support(const Packed& w, int in_group, int rows) {
  return w.store == Store::Codes8 && runs_fit(w, in_group, rows) && w.kpad <= kWideActivations / 2 / kTileRows;
}

static bool whole_support(const Packed& w, int in_group, int rows) {
  return w.store == Store::Codes8 && rows >= 2 && in_group >= w.kpad && w.group >= w.kpad && !w.has_zeros && w.kpad <= kWideActivations / 2 / kTileRows;
}

#include "few_rows.inl.h"
#include "floats.inl.h"

static bool any_linear(const Packed& w, int in_group, int) { return in_group == 0 || w.is_float() || w.meets_ints(); }
static const LinearKernel kLinears[] = {{"general", any_linear, linear},          {"shorts", shorts_support, shorts_linear}, {"wide", wide_support, wide_linear},
                                        {"row", row_support, row_linear},         {"whole", whole_support, whole_linear},    {"floats", floats_support, floats_linear},
                                        {"few", few_support, few_linear}};
// Measured on Zen 3 (LOG): "few" wins wherever it can run, and what unpacks a panel first once several tiles share that
static int usual_linear(const Packed& w, int in_group, int rows) {
  if (floats_support(w, in_group, rows)) return 5;
  if (rows == 1) return row_support(w, in_group, rows) ? 3 : 0;
  if (few_support(w, in_group, rows)) return 6;
  if (w.store == Store::Codes4) return shorts_support(w, in_group, rows) ? 1 : 0;
  if (whole_support(w, in_group, rows)) return 4;
  return rows >= 12 && wide_support(w, in_group, rows) ? 2 : 0;
}
static size_t linears_scratch_bytes() { return std::max({linear_scratch_bytes(), sizeof(ShortsScratch), sizeof(WideScratch), sizeof(RowScratch), sizeof(FloatScratch), sizeof(FewScratch)}); }
