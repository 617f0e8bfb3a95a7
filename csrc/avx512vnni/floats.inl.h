// "floats": up to four rows of float activations against four panels of any weight but a trellis, that lie far apart (see streams.inl.h), codes widened in
// registers. Included after linear.inl.h, whose sums it repeats bit for bit: k ascending, one sum for each number of the result. With more rows it pays to widen
// once for all, as the general kernel does.

enum class Widen { F32, BF16, Int8, Int4, Int4Zeros, Table, E4M3, E5M2 };
constexpr bool is_plain(Widen s) { return s == Widen::F32 || s == Widen::BF16; }
constexpr bool is_small(Widen s) { return s == Widen::Int4 || s == Widen::Int4Zeros || s == Widen::Table; }
constexpr int kFloatRows = 4;

// The sixteen rows of a panel at one k. at: of plain floats, those of the k; else the 64 bytes that hold k / 4 * 4 and three more, of which it is number i
template <Widen S> struct WidenLane {
  __m512 table;
  explicit WidenLane(const Packed& w) {  // of integers too: looked up, a code of 4 bits takes two instructions
    const __m512i codes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    table = S == Widen::Table ? _mm512_loadu_ps(w.table) : _mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(w.has_zeros ? 0 : 8)));
  }
  inline __attribute__((always_inline)) __m512 operator()(const uint8_t* at, int i, bool high) const {
    if (S == Widen::F32) return _mm512_loadu_ps(at);
    if (S == Widen::BF16) return load_bf16(reinterpret_cast<const uint16_t*>(at)).v;
    const __m512i v = _mm512_loadu_si512(at);
    const auto left = [&](int bits) __attribute__((always_inline)) { return _mm512_sll_epi32(v, _mm_cvtsi32_si128(bits)); };
    if (S == Widen::Int8) return _mm512_cvtepi32_ps(_mm512_srai_epi32(left(24 - 8 * i), 24));
    if (is_small(S)) return _mm512_permutexvar_ps(_mm512_srl_epi32(v, _mm_cvtsi32_si128(8 * i + 4 * high)), table);  // the low four bits choose
    constexpr bool wide = S == Widen::E5M2;  // see float8_lanes
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_and_si512(_mm512_srai_epi32(left(24 - 8 * i), wide ? 3 : 4), _mm512_set1_epi32(int(wide ? 0x8fe00000 : 0x87f00000)))),
                         _mm512_set1_ps(wide ? 0x1p112f : 0x1p120f));
  }
};

template <Widen S, int R> static __attribute__((noinline)) void floats_tile(const LinearCall& c, const int* panels, int count) {
  constexpr int P = 4;
  const Packed& w = *c.w;
  const WidenLane<S> lane(w);
  const uint8_t *base[P], *at[P];
  __m512 acc[R][P];
  f32x16 scale[P], shift[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; p++) {
    base[p] = w.base(panels[p]);
    at[p] = w.values(panels[p]);
    scale[p] = zero();
    shift[p] = zero();
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) acc[r][p] = _mm512_setzero_ps();
  }
  const int64_t stride = c.in.stride;
  const auto add = [&](const float* const* rows, int i, bool high) __attribute__((always_inline)) {
    __m512 v[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      v[p] = lane(at[p] + (S == Widen::F32 ? 64 * i : S == Widen::BF16 ? 32 * i : 0), i, high);
      if (S == Widen::Int4Zeros) v[p] = _mm512_sub_ps(v[p], shift[p].v);
      if (!is_plain(S)) v[p] = _mm512_mul_ps(v[p], scale[p].v);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const float& one = rows[r / 2][(r % 2) * stride + i];
      __m512 a;
      asm("vbroadcastss %5, %4\n\tvfmadd231ps %4, %6, %0\n\tvfmadd231ps %4, %7, %1\n\tvfmadd231ps %4, %8, %2\n\tvfmadd231ps %4, %9, %3"
            : "+v"(acc[r][0]), "+v"(acc[r][1]), "+v"(acc[r][2]), "+v"(acc[r][3]), "=&v"(a) : "m"(one), "v"(v[0]), "v"(v[1]), "v"(v[2]), "v"(v[3]));
    }
  };
  int next = 0, group = 0;
  // Four k from k on, or `left` of them at the end of a row
  const auto four_k = [&](int k, bool high, int left) __attribute__((always_inline)) {
    if (!is_plain(S) && k == next) {
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        scale[p] = load_scales(w, base[p], group);
        if (w.has_zeros) shift[p] = load_zeros(w, base[p], group);
      }
      group++;
      next += w.group;
    }
    const float* rows[2] = {c.in.x + k, c.in.x + k + 2 * stride};
    if (left >= 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) add(rows, i, high);
    } else {
      for (int i = 0; i < left; i++) add(rows, i, high);
    }
  };
  const auto pass = [&](int bytes) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) at[p] += bytes;
  };
  if (is_small(S)) {
    int k = 0;
    for (; k + kStep <= w.k; k += kStep) {
      for (int j = 0; j < 32; j += 4, pass(64)) four_k(k + j, false, 4);
      pass(-512);
      for (int j = 32; j < 64; j += 4, pass(64)) four_k(k + j, true, 4);
    }
    for (int j = 0; k + j < w.k; j += 4, pass(64)) {  // the last step, not whole
      if (j == 32) pass(-512);
      four_k(k + j, j >= 32, w.k - k - j);
    }
  } else {
    constexpr int bytes = S == Widen::F32 ? 256 : S == Widen::BF16 ? 128 : 64;
    int k = 0;
    for (; k + 4 <= w.k; k += 4, pass(bytes)) four_k(k, false, 4);
    if (k < w.k) four_k(k, false, w.k - k);
  }
  alignas(64) float sums[R][P][kPanel];  // by way of memory: indices that are not constant would keep all sums there from the beginning
#pragma GCC unroll 4
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) store(sums[r][p], {acc[r][p]});
  for (int p = 0; p < count; p++)
    for (int r = 0; r < R; r++) finish(c, panels[p], r, load(sums[r][p]));
}
template <Widen S> static void floats_all(const LinearCall& c, int panel0, int panel1) {
  const Packed& w = *c.w;
  const int apart = (panel1 - panel0 + 3) / 4;
  for (int first = panel0; first < panel0 + apart; first++) {
    int panels[4], count = 0;
    for (int p = 0; p < 4; p++) panels[p] = first + p * apart < panel1 ? count++, first + p * apart : first;
    for (int p = 0; p < count; p++) touch_scales(w, w.base(panels[p]));
    switch (c.in.rows) {
      case 1: floats_tile<S, 1>(c, panels, count); break;
      case 2: floats_tile<S, 2>(c, panels, count); break;
      case 3: floats_tile<S, 3>(c, panels, count); break;
      case 4: floats_tile<S, 4>(c, panels, count); break;
      default: break;  // no rows
    }
  }
}
static void floats_linear(const LinearCall& c, int panel0, int panel1, void*) {
  const Packed& w = *c.w;
  switch (w.store) {
    case Store::F32: return floats_all<Widen::F32>(c, panel0, panel1);
    case Store::BF16: return floats_all<Widen::BF16>(c, panel0, panel1);
    case Store::E4M3: return floats_all<Widen::E4M3>(c, panel0, panel1);
    case Store::E5M2: return floats_all<Widen::E5M2>(c, panel0, panel1);
    case Store::Codes8: return floats_all<Widen::Int8>(c, panel0, panel1);
    default: break;
  }
  if (w.meaning == Meaning::Table) return floats_all<Widen::Table>(c, panel0, panel1);
  return w.has_zeros ? floats_all<Widen::Int4Zeros>(c, panel0, panel1) : floats_all<Widen::Int4>(c, panel0, panel1);
}
// What is rare is left to the general kernel
static bool floats_support(const Packed& w, int in_group, int rows) {
  if (rows > kFloatRows) return false;
  if (w.is_float()) return true;
  return !in_group && w.store != Store::Trellis && (!w.has_zeros || (w.store == Store::Codes4 && w.meaning == Meaning::Int));
}
