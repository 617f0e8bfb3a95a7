// Linear kernels for several rows of int8 activations with AVX2. Included after linear.inl.h, whose sums they repeat bit for bit.
//
// vpmaddubsw adds two products of an unsigned and a signed byte in 16 bits; with codes 0..15 eight such sums fit (8 * 2 * 15 * 127 = 30,480), so
// that 32 k cost one multiplication and one addition for each 32 products. A signed byte w is two such codes: w + 128 = 16 high + low, and
// 128 times the activations' sum, which is known, is taken off at the end. Its halves ("planes") are multiplied one after the other.

constexpr int kPlaneRows = 6;        // rows of a tile: 12 sums of 16 bits, 2 weights and an activation fill the registers
constexpr int kPlaneBlockRows = 256; // rows that share one unpacking of a panel
constexpr int kPlaneBytes = 16384;   // unpacked codes of a chunk: half of the L1 cache

struct PlaneScratch {
  alignas(64) uint8_t codes[kPlaneBytes];
  alignas(64) float totals[kPlaneBlockRows * kPanel];
};

// Codes of blocks of 32 k [block, last) as [block][plane][8 steps][16 rows][4 k]
static void unpack_planes(const Packed& w, const uint8_t* values, int block, int last, uint8_t* out) {
  if (w.store == Store::Codes4) {
    for (int b = block; b < last; b += 2) {
      const uint8_t* from = values + size_t(b / 2) * (kStep * kPanel / 2);
      for (int j = 0; j < 8; j++) split_nibbles(from + j * 64, out + j * 64, out + (8 + j) * 64);
      out += 1024;
    }
    return;
  }
  const __m256i mask = _mm256_set1_epi8(15), flip = _mm256_set1_epi8(-128);
  const uint8_t* from = values + size_t(block) * (kSumBlock * kPanel);
  for (int b = block; b < last; b++, from += 512, out += 1024)
    for (int i = 0; i < 512; i += 32) {
      const __m256i v = _mm256_xor_si256(bytes(from + i), flip);
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + i), _mm256_and_si256(v, mask));
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + 512 + i), _mm256_and_si256(_mm256_srli_epi16(v, 4), mask));
    }
}

// Stops the compiler from turning a chain of additions into a tree, whose leaves it then spills: twice the time
static inline void keep_order(__m256i& a, __m256i& b) { asm("" : "+x"(a), "+x"(b)); }

// Eight steps (32 k) of one plane for R rows, widened to 32 bits; unit: what a code of this plane counts, twice in 32 bits
template <int R, bool First>
static inline __attribute__((always_inline)) void plane_block(const uint8_t* codes, const int8_t* a, int64_t stride, __m256i unit, Ints* acc) {
  __m256i low[R], high[R];
  const int8_t* a3 = a + 3 * stride;  // every row is one of two pointers plus 0, 1 or 2 strides
  asm volatile("" : "+r"(a), "+r"(a3));  // opaque: else activations are kept, and spilled, for the next plane
  const auto weights = [&](int i) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(codes) + i); };
  const auto row = [&](int r, int j) { return _mm256_set1_epi32(four((r < 3 ? a + r * stride : a3 + (r - 3) * stride) + 4 * j)); };
  {
    const __m256i w0 = weights(0), w1 = weights(1);
    for (int r = 0; r < R; r++) {
      const __m256i v = row(r, 0);
      low[r] = _mm256_maddubs_epi16(w0, v);
      high[r] = _mm256_maddubs_epi16(w1, v);
      keep_order(low[r], high[r]);
    }
  }
#pragma GCC unroll 7
  for (int j = 1; j < 8; j++) {
    const __m256i w0 = weights(2 * j), w1 = weights(2 * j + 1);
    for (int r = 0; r < R; r++) {
      const __m256i v = row(r, j);
      low[r] = _mm256_add_epi16(low[r], _mm256_maddubs_epi16(w0, v));
      high[r] = _mm256_add_epi16(high[r], _mm256_maddubs_epi16(w1, v));
      keep_order(low[r], high[r]);
    }
  }
  for (int r = 0; r < R; r++) {
    const __m256i x = _mm256_madd_epi16(low[r], unit), y = _mm256_madd_epi16(high[r], unit);
    acc[r].a = First ? x : _mm256_add_epi32(acc[r].a, x);
    acc[r].b = First ? y : _mm256_add_epi32(acc[r].b, y);
  }
}

// Plain: runs of 64 k, whose weights and activations both have a scale, and no zero points: what the presets are
template <int R, int Planes, bool Plain>
static void planes_tile(const LinearCall& c, const Runs& runs, const uint8_t* base, const uint8_t* codes, int chunk_block, int last_block, int row, float* totals) {
  const Packed& w = *c.w;
  const int8_t* a = c.in.q + int64_t(row) * w.kpad;
  const int64_t stride = w.kpad;
  const int per_run = Plain ? 2 : runs.size / kSumBlock, blocks = w.kpad / kSumBlock, shift = Planes == 1 ? 3 : 7;
  const __m256i one = _mm256_set1_epi16(1), sixteen = _mm256_set1_epi16(16);
  const float* in_scale = c.in.scale + int64_t(row) * c.in.groups;
  for (int b = chunk_block; b < last_block;) {
    const int end = Plain || b + per_run < last_block ? b + per_run : last_block, count = Plain ? 2 : end - b;
    alignas(32) Ints acc[R];
    plane_block<R, true>(codes, a + b * kSumBlock, stride, one, acc);
    if (Planes == 2) plane_block<R, false>(codes + 512, a + b * kSumBlock, stride, sixteen, acc);
    codes += 512 * Planes;
    for (int i = b + 1; i < b + count; i++) {
      plane_block<R, false>(codes, a + i * kSumBlock, stride, one, acc);
      if (Planes == 2) plane_block<R, false>(codes + 512, a + i * kSumBlock, stride, sixteen, acc);
      codes += 512 * Planes;
    }
    const int k = b * kSumBlock, group = Plain ? k / w.group : weight_group_at(w, runs, k);
    const f32x16 scale = Plain || runs.weight_varies ? load_scales(w, base, group) : zero();
    const f32x16 zeros = !Plain && w.has_zeros ? load_zeros(w, base, group) : zero();
    const int32_t* sums = c.in.sums + int64_t(row) * blocks + b;
    const float* mine = in_scale + (Plain ? k / c.in.group : runs.in_varies ? k / runs.in_group : 0);
    for (int r = 0; r < R; r++, sums += blocks, mine += c.in.groups) {
      __m256i s = _mm256_set1_epi32(sums[0]);
      for (int i = 1; i < count; i++) s = _mm256_add_epi32(s, _mm256_set1_epi32(sums[i]));
      Ints exact = acc[r];
      if (Plain || !w.has_zeros || Planes == 2) {
        const __m256i offset = _mm256_slli_epi32(s, shift);
        exact = {_mm256_sub_epi32(exact.a, offset), _mm256_sub_epi32(exact.b, offset)};
      }
      f32x16 value = to_float(exact), factor = scale;
      if (!Plain && w.has_zeros) value = sub(value, mul(zeros, to_float(Ints{s, s})));
      if (Plain || runs.in_varies) factor = Plain || runs.weight_varies ? mul(scale, set1(*mine)) : set1(*mine);  // as run_factor
      float* at = totals + r * kPanel;
      store(at, fmadd(value, factor, load(at)));
    }
    b = end;
  }
}

template <int Planes, bool Plain>
static void planes_rows(const LinearCall& c, const Runs& runs, const uint8_t* base, const uint8_t* codes, int b0, int b1, int row0, int row1, float* totals) {
  int r = row0;
  for (; r + kPlaneRows <= row1; r += kPlaneRows) planes_tile<kPlaneRows, Planes, Plain>(c, runs, base, codes, b0, b1, r, totals + (r - row0) * kPanel);
  float* at = totals + (r - row0) * kPanel;
  switch (row1 - r) {
    case 5: planes_tile<5, Planes, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 4: planes_tile<4, Planes, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 3: planes_tile<3, Planes, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 2: planes_tile<2, Planes, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    case 1: planes_tile<1, Planes, Plain>(c, runs, base, codes, b0, b1, r, at); break;
    default: break;
  }
}

static void planes_linear(const LinearCall& c, int panel0, int panel1, void* scratch) {
  PlaneScratch& s = *static_cast<PlaneScratch*>(scratch);
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  const int planes = w.store == Store::Codes4 ? 1 : 2, blocks = w.kpad / kSumBlock, per_run = runs.size / kSumBlock;
  const bool plain = runs.size == 64 && runs.weight_varies && runs.in_varies && !w.has_zeros;
  const auto rows = planes == 1 ? (plain ? planes_rows<1, true> : planes_rows<1, false>) : plain ? planes_rows<2, true> : planes_rows<2, false>;
  const int most = kPlaneBytes / (512 * planes), chunk = per_run >= most ? most : most / per_run * per_run;
  for (int row0 = 0; row0 < c.in.rows; row0 += kPlaneBlockRows) {
    const int row1 = row0 + kPlaneBlockRows < c.in.rows ? row0 + kPlaneBlockRows : c.in.rows;
    for (int p = panel0; p < panel1; p++) {
      const uint8_t* base = w.data + size_t(p) * w.panel_bytes;
      std::memset(s.totals, 0, sizeof(float) * size_t(row1 - row0) * kPanel);
      for (int b = 0; b < blocks; b += chunk) {
        const int end = b + chunk < blocks ? b + chunk : blocks;
        unpack_planes(w, base + w.values_offset, b, end, s.codes);
        rows(c, runs, base, s.codes, b, end, row0, row1, s.totals);
      }
      for (int r = row0; r < row1; r++) finish(c, p, r, mul(load(s.totals + (r - row0) * kPanel), row_factor(w, base, c.in, runs, r)));
    }
  }
}

// A run of k that shares its scales must end where a chunk ends, in the general kernel as here
static bool planes_support(const Packed& w, int in_group, int rows) {
  if (in_group == 0 || rows < 2 || w.meaning != Meaning::Int || (w.store != Store::Codes4 && w.store != Store::Codes8)) return false;
  Activations in;
  in.group = in_group;
  const Runs runs(w, in);
  return runs.size <= 512 && 1024 % runs.size == 0;
}

static bool any_linear(const Packed&, int, int) { return true; }
static const LinearKernel kLinears[] = {{"general", any_linear, linear}, {"planes", planes_support, planes_linear}};
// Measured on Zen 3: codes of 4 bits gain from two rows on; of 8 bits, two planes cost as much as signed products until unpacking is shared by many
static int usual_linear(const Packed& w, int in_group, int rows) { return rows >= (w.store == Store::Codes4 ? 2 : 24) && planes_support(w, in_group, rows) ? 1 : 0; }
static size_t linears_scratch_bytes() { return sizeof(PlaneScratch) > linear_scratch_bytes() ? sizeof(PlaneScratch) : linear_scratch_bytes(); }
