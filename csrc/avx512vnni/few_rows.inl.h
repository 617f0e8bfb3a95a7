// "few rows": up to four rows of int8 activations against two panels at a time, straight from the packed codes. Included after linear.inl.h, whose sums it
// repeats bit for bit. With so few rows the weights' way from memory is all that counts: the two panels lie far apart, so that each core reads
// two streams (a tenth faster than one), and between load and product stand two or three instructions per 64 bytes.

constexpr int kFewRows = 4;

enum class Codes { Int4, Table4, Int8 };

static bool few_rows_support(const Packed& w, int in_group, int rows) {
  if (in_group == 0 || rows > 4 * kFewRows || !w.meets_ints() || w.store == Store::Trellis) return false;
  Activations in;
  in.group = in_group;
  return Runs(w, in).size % kStep == 0;
}

// Sixteen rows times four k of unsigned codes: what `offset` in few_rows takes off again is 8, 128 or, with zeros, nothing for Int4
template <Codes C> struct Step64 {
  const __m512i nibble = _mm512_set1_epi8(15), sign = _mm512_set1_epi8(-128);
  __m512i table;
  explicit Step64(const Packed& w) {
    table = C == Codes::Table4 ? _mm512_xor_si512(_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.table8))), sign) : sign;
  }
  inline __attribute__((always_inline)) void codes(const uint8_t* at, int j, __m512i& first, __m512i& second) const {
    if (C == Codes::Int8) {
      prefetch(at + 4096 + j * 128);
      prefetch(at + 4096 + j * 128 + 64);
      first = _mm512_xor_si512(_mm512_loadu_si512(at + j * 128), sign);
      second = _mm512_xor_si512(_mm512_loadu_si512(at + j * 128 + 64), sign);
      return;
    }
    prefetch(at + 4096 + j * 64);
    const __m512i v = _mm512_loadu_si512(at + j * 64);
    first = _mm512_and_si512(v, nibble);
    second = _mm512_and_si512(_mm512_srli_epi16(v, 4), nibble);
    if (C == Codes::Table4) {
      first = _mm512_shuffle_epi8(table, first);
      second = _mm512_shuffle_epi8(table, second);
    }
  }
  // acc[r][panel][0], acc[r][panel][1] += 64 k of two panels times R rows at a + r * stride
  template <int R> inline __attribute__((always_inline)) void add(__m512i (*acc)[2][2], const uint8_t* one, const uint8_t* other, const int8_t* a, int64_t stride) const {
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
      const int k0 = C == Codes::Int8 ? 8 * j : 4 * j, k1 = C == Codes::Int8 ? 8 * j + 4 : 32 + 4 * j;
      __m512i w00, w01, w10, w11;
      codes(one, j, w00, w01);
      codes(other, j, w10, w11);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        const __m512i a0 = _mm512_set1_epi32(four(a + r * stride + k0)), a1 = _mm512_set1_epi32(four(a + r * stride + k1));
        acc[r][0][0] = _mm512_dpbusd_epi32(acc[r][0][0], w00, a0);
        acc[r][1][0] = _mm512_dpbusd_epi32(acc[r][1][0], w10, a0);
        acc[r][0][1] = _mm512_dpbusd_epi32(acc[r][0][1], w01, a1);
        acc[r][1][1] = _mm512_dpbusd_epi32(acc[r][1][1], w11, a1);
      }
    }
  }
};

// Rows [row, row + R) of two panels, which may be the same one
template <int R, Codes C> static void few_rows(const LinearCall& c, const Runs& runs, const int* panel, int row) {
  const Packed& w = *c.w;
  const Step64<C> step(w);
  const int most = C == Codes::Int8 ? w.kpad : kChunk;  // where linear.inl.h goes to floats, besides ends of runs
  const int blocks = w.kpad / kSumBlock;
  constexpr int bytes = C == Codes::Int8 ? kPanel : kPanel / 2;  // of one k
  const int offset = C != Codes::Int4 ? 128 : w.has_zeros ? 0 : 8;
  const uint8_t* const base[2] = {w.data + size_t(panel[0]) * w.panel_bytes, w.data + size_t(panel[1]) * w.panel_bytes};
  const int8_t* a = c.in.q + int64_t(row) * w.kpad;
  float total[R][2][kPanel] = {};
  int run_end = runs.size, most_end = most;
  for (int k = 0; k < w.kpad;) {
    int end = run_end < most_end ? run_end : most_end;
    if (end > w.kpad) end = w.kpad;
    if (end == run_end) run_end += runs.size;
    if (end == most_end) most_end += most;
    __m512i acc[R][2][2];
    int32_t counts[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      counts[r] = block_sum(c.in, row + r, blocks, k / kSumBlock, end / kSumBlock);
      acc[r][0][0] = acc[r][1][0] = _mm512_set1_epi32(-offset * counts[r]);
      acc[r][0][1] = acc[r][1][1] = _mm512_setzero_si512();
    }
    for (int i = k; i < end; i += kStep) {
      const size_t at = w.values_offset + size_t(i) * bytes;
      step.template add<R>(acc, base[0] + at, base[1] + at, a + i, w.kpad);
    }
    const int group = weight_group_at(w, runs, k);
#pragma GCC unroll 2
    for (int p = 0; p < 2; p++) {
      const f32x16 scale = runs.weight_varies ? load_scales(w, base[p], group) : zero();
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) {
        f32x16 value = to_float(Ints{_mm512_add_epi32(acc[r][p][0], acc[r][p][1])});
        if (w.has_zeros) value = sub(value, mul(load_zeros(w, base[p], group), set1(float(counts[r]))));
        store(total[r][p], fmadd(value, run_factor(c.in, runs, k, row + r, scale), load(total[r][p])));
      }
    }
    k = end;
  }
  const f32x16 unit = set1(C == Codes::Table4 ? w.table8_unit : 1.f);
  for (int p = 0; p < (panel[0] == panel[1] ? 1 : 2); p++)
    for (int r = 0; r < R; r++) {
      const f32x16 y = mul(load(total[r][p]), row_factor(w, base[p], c.in, runs, row + r));
      finish(c, panel[p], row + r, C == Codes::Table4 ? mul(y, unit) : y);
    }
}

template <Codes C> static void few_rows_panels(const LinearCall& c, int panel0, int panel1) {
  const Runs runs(*c.w, c.in);
  const int half = (panel1 - panel0 + 1) / 2;
  for (int i = 0; i < half; i++) {
    const int one = panel0 + i, panel[2] = {one, one + half < panel1 ? one + half : one};
    int r = 0;
    for (; r + kFewRows <= c.in.rows; r += kFewRows) few_rows<kFewRows, C>(c, runs, panel, r);
    switch (c.in.rows - r) {
      case 3: few_rows<3, C>(c, runs, panel, r); break;
      case 2: few_rows<2, C>(c, runs, panel, r); break;
      case 1: few_rows<1, C>(c, runs, panel, r); break;
      default: break;
    }
  }
}
static void linear_few_rows(const LinearCall& c, int panel0, int panel1, void*) {
  if (c.w->store == Store::Codes8) few_rows_panels<Codes::Int8>(c, panel0, panel1);
  else if (c.w->meaning == Meaning::Table) few_rows_panels<Codes::Table4>(c, panel0, panel1);
  else few_rows_panels<Codes::Int4>(c, panel0, panel1);
}
