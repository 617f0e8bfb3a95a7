// Linear layers over panel16 (ops.h). Included inside a namespace that has vec.h's and dots.h's names.
//
// dots.h gives, per instruction set: Signed (64 prepared signed bytes: 16 rows x 4 k), Unsigned (the same of codes 0..15), Ints (16 int32
// sums), Shorts (sums of up to 8 unsigned steps), and how four int8 activations meet them. Everything above that is the same for all.
//
// Every output element is summed in one order, whatever the number of rows: integers exactly inside a group, then groups in ascending order
// with one fused multiply-add each; floats with k ascending and one accumulator. That is what makes results independent of batching.

constexpr int kChunk = 1024;      // K values of a panel unpacked at a time
constexpr int kFloatChunk = 64;   // K values of a panel widened to float at a time
constexpr int kRowBlock = 128;    // rows whose activations should stay in the L2 cache while panels pass by

struct Scratch {
  alignas(64) uint8_t codes[kChunk * kPanel];
  alignas(64) float wide[4][kFloatChunk * kPanel];
  alignas(64) float sums[kRowBlock * 4 * kPanel];
};
size_t linear_scratch_bytes() { return sizeof(Scratch); }

#include "panels.inl.h"
#include "quantize_rows.inl.h"

// Where integer sums end and floats begin: runs of k that share a weight scale and an activation scale.
struct Runs {
  int size, weight_group, in_group;   // all in k; a group as long as the row has one scale
  bool weight_varies, in_varies;      // a scale that does not vary is applied once, at the end
  Runs(const Packed& w, const Activations& in) {
    weight_group = w.group < w.kpad ? w.group : w.kpad;
    in_group = in.group < w.kpad ? in.group : w.kpad;
    int a = weight_group, b = in_group;
    if (a == w.kpad || b == w.kpad) size = a < b ? a : b;
    else { while (b) { const int t = a % b; a = b; b = t; } size = a; }
    in_varies = in_group < w.kpad;
    weight_varies = weight_group < w.kpad || !in_varies;
  }
};

static inline int32_t block_sum(const Activations& in, int row, int blocks, int first, int last) {
  const int32_t* s = in.sums + int64_t(row) * blocks;
  int32_t total = 0;
  for (int b = first; b < last; b++) total += s[b];
  return total;
}

// What a run's sums are multiplied by: the scales that vary along k.
static inline f32x16 run_factor(const Activations& in, const Runs& runs, int k, int row, f32x16 weight_scale) {
  if (!runs.in_varies) return weight_scale;
  const f32x16 mine = set1(in.scale[int64_t(row) * in.groups + k / runs.in_group]);
  return runs.weight_varies ? mul(weight_scale, mine) : mine;
}
// And what the row is multiplied by at its end: the others.
static inline f32x16 row_factor(const Packed& w, const uint8_t* base, const Activations& in, const Runs& runs, int row) {
  const f32x16 mine = runs.in_varies ? set1(1.f) : set1(in.scale[row]);
  return runs.weight_varies ? mine : mul(load_scales(w, base, 0), mine);
}
static inline int weight_group_at(const Packed& w, const Runs& runs, int k) {
  const int g = k / runs.weight_group;
  return g < w.groups ? g : w.groups - 1;
}

#include "trellis_lanes.inl.h"

// ---- 8-bit codes and int8 activations: R rows of one panel ----
template <int R>
static inline void codes8_tile(const LinearCall& c, int panel, int row) {
  const Packed& w = *c.w;
  const Runs runs(w, c.in);
  const uint8_t* base = w.data + size_t(panel) * w.panel_bytes;
  const int8_t* codes = reinterpret_cast<const int8_t*>(base + w.values_offset);
  const int8_t* a = c.in.q + int64_t(row) * w.kpad;
  f32x16 total[R];
  for (int r = 0; r < R; r++) total[r] = zero();
  for (int k = 0; k < w.kpad; k += runs.size) {
    const int end = k + runs.size < w.kpad ? k + runs.size : w.kpad;
    Ints acc[R];
    for (int r = 0; r < R; r++) acc[r] = no_ints();
    for (int i = k; i < end; i += 4) {
      if (R == 1) prefetch(codes + int64_t(i) * kPanel + 4096);
      const Signed v = load_signed(codes + int64_t(i) * kPanel);
      for (int r = 0; r < R; r++) dot_signed(acc[r], v, four(a + int64_t(r) * w.kpad + i));
    }
    const int group = weight_group_at(w, runs, k);
    const f32x16 scale = runs.weight_varies ? load_scales(w, base, group) : zero();
    for (int r = 0; r < R; r++) {
      const int32_t s = kSignedOffset || w.has_zeros ? block_sum(c.in, row + r, w.kpad / kSumBlock, k / kSumBlock, end / kSumBlock) : 0;
      f32x16 value = to_float(minus(acc[r], kSignedOffset * s));
      if (w.has_zeros) value = sub(value, mul(load_zeros(w, base, group), set1(float(s))));
      total[r] = fmadd(value, run_factor(c.in, runs, k, row + r, scale), total[r]);
    }
  }
  for (int r = 0; r < R; r++) finish(c, panel, row + r, mul(total[r], row_factor(w, base, c.in, runs, row + r)));
}

// ---- 4-bit codes and int8 activations ----

// Codes of one 64-step of a panel as bytes in the order of Codes8: [16 steps][16 rows][4 k]
static inline void spread_codes(const uint8_t* packed, uint8_t* out) {
  for (int j = 0; j < 8; j++) split_nibbles(packed + j * 64, out + j * 64, out + (8 + j) * 64);
}

// Adds blocks of 32 k [block, last) of a panel to R rows' totals. codes: bytes of block 0 of this chunk at `chunk_block`.
template <int R>
static inline void codes4_tile(const LinearCall& c, const uint8_t* base, const uint8_t* codes, int chunk_block, int last_block, int row, float* totals) {
  const Packed& w = *c.w;
  const int8_t* a = c.in.q + int64_t(row) * w.kpad;
  const Runs runs(w, c.in);
  const int per_run = runs.size / kSumBlock, blocks = w.kpad / kSumBlock;
  f32x16 total[R];
  for (int r = 0; r < R; r++) total[r] = load(totals + r * kPanel);
  for (int b = chunk_block; b < last_block;) {
    const int k = b * kSumBlock, next = (b / per_run + 1) * per_run, end = next < last_block ? next : last_block;
    Ints acc[R];
    for (int r = 0; r < R; r++) acc[r] = no_ints();
    for (int i = b; i < end; i++) {
      const uint8_t* at = codes + size_t(i - chunk_block) * (kSumBlock * kPanel);
      const int8_t* ai = a + i * kSumBlock;
      Shorts part[R];
      for (int r = 0; r < R; r++) part[r] = no_shorts();
      for (int j = 0; j < 8; j++) {
        const Unsigned v = load_unsigned(at + j * 64);
        for (int r = 0; r < R; r++) dot_unsigned(part[r], v, four(ai + int64_t(r) * w.kpad + 4 * j));
      }
      for (int r = 0; r < R; r++) widen_shorts(acc[r], part[r]);
    }
    const int group = weight_group_at(w, runs, k);
    const f32x16 scale = runs.weight_varies ? load_scales(w, base, group) : zero();
    for (int r = 0; r < R; r++) {
      const int32_t s = block_sum(c.in, row + r, blocks, b, end);
      const f32x16 value = w.has_zeros ? sub(to_float(acc[r]), mul(load_zeros(w, base, group), set1(float(s)))) : to_float(minus(acc[r], 8 * s));
      total[r] = fmadd(value, run_factor(c.in, runs, k, row + r, scale), total[r]);
    }
    b = end;
  }
  for (int r = 0; r < R; r++) store(totals + r * kPanel, total[r]);
}

// The same with a table of 16 signed bytes in place of integers.
template <int R>
static inline void table4_tile(const LinearCall& c, const uint8_t* base, const uint8_t* codes, int chunk_block, int last_block, int row, float* totals) {
  const Packed& w = *c.w;
  const int8_t* a = c.in.q + int64_t(row) * w.kpad;
  const Runs runs(w, c.in);
  const int per_run = runs.size / kSumBlock;
  f32x16 total[R];
  for (int r = 0; r < R; r++) total[r] = load(totals + r * kPanel);
  for (int b = chunk_block; b < last_block;) {
    const int k = b * kSumBlock, next = (b / per_run + 1) * per_run, end = next < last_block ? next : last_block;
    Ints acc[R];
    for (int r = 0; r < R; r++) acc[r] = no_ints();
    for (int i = b * kSumBlock; i < end * kSumBlock; i += 4) {
      const Signed v = load_signed(reinterpret_cast<const int8_t*>(codes) + int64_t(i - chunk_block * kSumBlock) * kPanel);
      for (int r = 0; r < R; r++) dot_signed(acc[r], v, four(a + int64_t(r) * w.kpad + i));
    }
    const f32x16 scale = runs.weight_varies ? load_scales(w, base, weight_group_at(w, runs, k)) : zero();
    for (int r = 0; r < R; r++) {
      const int32_t s = kSignedOffset ? block_sum(c.in, row + r, w.kpad / kSumBlock, b, end) : 0;
      total[r] = fmadd(to_float(minus(acc[r], kSignedOffset * s)), run_factor(c.in, runs, k, row + r, scale), total[r]);
    }
    b = end;
  }
  for (int r = 0; r < R; r++) store(totals + r * kPanel, total[r]);
}

// F<R>::go(args..., row) for rows [row0, row1) in tiles of kTile and what remains
template <template <int> class F, class... A>
static inline void in_tiles(int row0, int row1, A... args) {
  int r = row0;
  for (; r + kTile <= row1; r += kTile) F<kTile>::go(args..., r);
  for (; r + 4 <= row1; r += 4) F<4>::go(args..., r);
  for (; r + 2 <= row1; r += 2) F<2>::go(args..., r);
  if (r < row1) F<1>::go(args..., r);
}
template <int R> struct Codes8Tile { static void go(const LinearCall* c, int panel, int row) { codes8_tile<R>(*c, panel, row); } };
template <int R> struct Codes4Tile {
  static void go(const LinearCall* c, const uint8_t* base, const uint8_t* codes, int b0, int b1, float* totals, int first, int row) {
    codes4_tile<R>(*c, base, codes, b0, b1, row, totals + (row - first) * kPanel);
  }
};
template <int R> struct Table4Tile {
  static void go(const LinearCall* c, const uint8_t* base, const uint8_t* codes, int b0, int b1, float* totals, int first, int row) {
    table4_tile<R>(*c, base, codes, b0, b1, row, totals + (row - first) * kPanel);
  }
};

static void codes4_panel(const LinearCall& c, int panel, int row0, int row1, Scratch& s) {
  const Packed& w = *c.w;
  const uint8_t* base = w.base(panel);
  std::memset(s.sums, 0, sizeof(float) * size_t(row1 - row0) * kPanel);
  for (int k = 0; k < w.kpad; k += kChunk) {
    const int end = k + kChunk < w.kpad ? k + kChunk : w.kpad;
    const bool bytes = w.meaning == Meaning::Table || w.store == Store::Trellis;  // which the codes become
    if (w.store == Store::Trellis) spread_states(w, panel, k, end, s.codes);
    else
      for (int i = k; i < end; i += kStep) {
        uint8_t* out = s.codes + size_t(i - k) * kPanel;
        spread_codes(base + w.values_offset + size_t(i) * (kPanel / 2), out);
        if (w.meaning == Meaning::Table) look_up(w.table8, out, kStep * kPanel);
      }
    if (bytes)
      in_tiles<Table4Tile, const LinearCall*, const uint8_t*, const uint8_t*, int, int, float*, int>(row0, row1, &c, base, s.codes, k / kSumBlock, end / kSumBlock, s.sums, row0);
    else
      in_tiles<Codes4Tile, const LinearCall*, const uint8_t*, const uint8_t*, int, int, float*, int>(row0, row1, &c, base, s.codes, k / kSumBlock, end / kSumBlock, s.sums, row0);
  }
  const Runs runs(w, c.in);
  const f32x16 unit = set1(w.meaning == Meaning::Table ? w.table8_unit : 1.f);
  for (int r = row0; r < row1; r++) finish(c, panel, r, mul(mul(load(s.sums + (r - row0) * kPanel), row_factor(w, base, c.in, runs, r)), unit));
}

// One row of 4-bit integers straight from the packed nibbles: the same sums, without the detour over bytes.
static void codes4_row(const LinearCall& c, int panel, int row) {
  const Packed& w = *c.w;
  const uint8_t* base = w.data + size_t(panel) * w.panel_bytes;
  const uint8_t* codes = base + w.values_offset;
  const int8_t* a = c.in.q + int64_t(row) * w.kpad;
  const Runs runs(w, c.in);
  const int blocks = w.kpad / kSumBlock, per_run = runs.size / kSumBlock, per_chunk = kChunk / kSumBlock;
  const int32_t* sums = c.in.sums + int64_t(row) * blocks;
  f32x16 total = zero();
  Ints acc = no_ints();
  int32_t s = 0;
  int run_end = per_run, chunk_end = per_chunk;
  auto close = [&](int block) __attribute__((always_inline)) {  // `block` blocks are in: perhaps the end of a run or of a chunk
    if (block != run_end && block != chunk_end && block != blocks) return;
    const int k = (block - 1) * kSumBlock, g = weight_group_at(w, runs, k);
    const f32x16 value = w.has_zeros ? sub(to_float(acc), mul(load_zeros(w, base, g), set1(float(s)))) : to_float(minus(acc, 8 * s));
    total = fmadd(value, run_factor(c.in, runs, k, row, runs.weight_varies ? load_scales(w, base, g) : zero()), total);
    acc = no_ints();
    s = 0;
    if (block == run_end) run_end += per_run;
    if (block == chunk_end) chunk_end += per_chunk;
  };
  for (int b = 0; b < blocks; b += 2) {
    const uint8_t* at = codes + size_t(b / 2) * (kStep * kPanel / 2);
    Shorts low = no_shorts(), high = no_shorts();
    for (int j = 0; j < 8; j++) {
      prefetch(at + 4096 + j * 64);
      dot_nibbles(low, high, at + j * 64, four(a + b * kSumBlock + 4 * j), four(a + b * kSumBlock + kSumBlock + 4 * j));
    }
    widen_shorts(acc, low);
    s += sums[b];
    close(b + 1);
    widen_shorts(acc, high);
    s += sums[b + 1];
    close(b + 2);
  }
  finish(c, panel, row, mul(total, row_factor(w, base, c.in, runs, row)));
}

// ---- float activations: any store, widened to float a chunk at a time ----

// K values [k0, k1) of a panel as float [k][16]
static void widen_panel(const Packed& w, int panel, int k0, int k1, float* out) {
  const uint8_t *base = w.base(panel), *values = w.values(panel);
  if (w.store == Store::F32) { std::memcpy(out, reinterpret_cast<const float*>(values) + int64_t(k0) * kPanel, sizeof(float) * size_t(k1 - k0) * kPanel); return; }
  if (w.store == Store::BF16) {
    const uint16_t* p = reinterpret_cast<const uint16_t*>(values) + int64_t(k0) * kPanel;
    for (int k = 0; k < (k1 - k0); k++) store(out + k * kPanel, load_bf16(p + k * kPanel));
    return;
  }
  // k0 is a multiple of 64 here
  uint8_t bytes[kFloatChunk * kPanel];
  const bool small = w.store == Store::Codes4;
  if (w.store == Store::Trellis) spread_states(w, panel, k0, k0 + kFloatChunk, bytes);
  else if (small) spread_codes(values + size_t(k0) * (kPanel / 2), bytes);
  else std::memcpy(bytes, values + size_t(k0) * kPanel, size_t(kFloatChunk) * kPanel);
  f32x16 scale = zero(), shift = zero();
  int loaded = -1;
  for (int k = k0; k < k1; k += 4) {  // the last four may reach into the padding, which `out` has room for
    if (const int g = k / w.group; g != loaded) {
      scale = load_scales(w, base, g);
      shift = w.has_zeros ? load_zeros(w, base, g) : set1(small && w.meaning == Meaning::Int ? 8.f : 0.f);
      loaded = g;
    }
    f32x16 lanes[4];
    const uint8_t* at = bytes + (k - k0) * kPanel;
    if (w.meaning == Meaning::Table) table_lanes(w.table, at, lanes);
    else if (w.store == Store::E4M3) float8_lanes<false>(at, lanes);
    else if (w.store == Store::E5M2) float8_lanes<true>(at, lanes);
    else signed_lanes(at, lanes);
    for (int i = 0; i < 4; i++) store(out + (k - k0 + i) * kPanel, mul(sub(lanes[i], shift), scale));
  }
}

// R rows x P panels over a chunk; wide[p] is [k][16], sums [row][p][16]
template <int R, int P>
static inline void float_tile(const float* const* x, const float (*wide)[kFloatChunk * kPanel], int count, float* sums, int stride) {
  f32x16 acc[R][P];
  for (int r = 0; r < R; r++) for (int p = 0; p < P; p++) acc[r][p] = load(sums + r * stride + p * kPanel);
  for (int k = 0; k < count; k++) {
    f32x16 v[P];
    for (int p = 0; p < P; p++) v[p] = load(wide[p] + k * kPanel);
    for (int r = 0; r < R; r++) {
      const f32x16 a = set1(x[r][k]);
      for (int p = 0; p < P; p++) acc[r][p] = fmadd(a, v[p], acc[r][p]);
    }
  }
  for (int r = 0; r < R; r++) for (int p = 0; p < P; p++) store(sums + r * stride + p * kPanel, acc[r][p]);
}

// Up to four panels [panel, panel + panels) for rows [row0, row1)
static void float_panels(const LinearCall& c, int panel, int panels, int row0, int row1, Scratch& s) {
  const Packed& w = *c.w;
  const int stride = panels * kPanel;
  std::memset(s.sums, 0, sizeof(float) * size_t(row1 - row0) * size_t(stride));
  for (int k = 0; k < w.k; k += kFloatChunk) {
    const int end = k + kFloatChunk < w.k ? k + kFloatChunk : w.k;
    for (int p = 0; p < panels; p++) widen_panel(w, panel + p, k, end, s.wide[p]);
    for (int r = row0; r < row1;) {
      const float* x[6];
      const int left = row1 - r, take = panels == 4 ? 1 : left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      for (int i = 0; i < take; i++) x[i] = c.in.x + int64_t(r + i) * c.in.stride + k;
      float* sums = s.sums + (r - row0) * stride;
      if (panels == 4) float_tile<1, 4>(x, s.wide, end - k, sums, stride);
      else
        for (int p = 0; p < panels; p++) {
          if (take == 6) float_tile<6, 1>(x, s.wide + p, end - k, sums + p * kPanel, stride);
          else if (take == 4) float_tile<4, 1>(x, s.wide + p, end - k, sums + p * kPanel, stride);
          else if (take == 2) float_tile<2, 1>(x, s.wide + p, end - k, sums + p * kPanel, stride);
          else float_tile<1, 1>(x, s.wide + p, end - k, sums + p * kPanel, stride);
        }
      r += take;
    }
  }
  for (int r = row0; r < row1; r++)
    for (int p = 0; p < panels; p++) finish(c, panel + p, r, load(s.sums + (r - row0) * stride + p * kPanel));
}

// One row of floats against codes, never widened into memory: the same operations in the same order as float_panels.
enum class Lanes { Signed, Table, E4M3, E5M2 };

template <Lanes L, int P>
static void float_row(const LinearCall& c, int panel) {
  const Packed& w = *c.w;
  const bool small = w.store == Store::Codes4;
  const float* x = c.in.x;
  alignas(64) uint8_t bytes[P][kStep * kPanel];
  const uint8_t *base[P], *at[P];
  f32x16 total[P], scale[P], shift[P];
  for (int p = 0; p < P; p++) {
    base[p] = w.data + size_t(panel + p) * w.panel_bytes;
    total[p] = scale[p] = zero();
    shift[p] = set1(small && L == Lanes::Signed ? 8.f : 0.f);
  }
  for (int k = 0, group = 0, group_end = 0; k < w.k; k += 4) {
    if (k % kStep == 0)
      for (int p = 0; p < P; p++) {
        at[p] = base[p] + w.values_offset + size_t(k) * (small ? kPanel / 2 : kPanel);
        if (!small) continue;
        spread_codes(at[p], bytes[p]);
        at[p] = bytes[p];
      }
    if (k == group_end) {
      for (int p = 0; p < P; p++) {
        scale[p] = load_scales(w, base[p], group);
        if (w.has_zeros) shift[p] = load_zeros(w, base[p], group);
      }
      group++;
      group_end += w.group;
    }
    const int count = w.k - k < 4 ? w.k - k : 4;
    for (int p = 0; p < P; p++) {
      f32x16 v[4];
      if (!small) prefetch(at[p] + 2048);
      if (L == Lanes::Table) table_lanes(w.table, at[p], v);
      else if (L == Lanes::E4M3) float8_lanes<false>(at[p], v);
      else if (L == Lanes::E5M2) float8_lanes<true>(at[p], v);
      else signed_lanes(at[p], v);
      const auto add = [&](int i) __attribute__((always_inline)) {
        total[p] = fmadd(set1(x[k + i]), mul(L == Lanes::Signed ? sub(v[i], shift[p]) : v[i], scale[p]), total[p]);
      };
      if (count == 4) {
        add(0);
        add(1);
        add(2);
        add(3);
      } else {
        for (int i = 0; i < count; i++) add(i);
      }
      at[p] += 4 * kPanel;
    }
  }
  for (int p = 0; p < P; p++) finish(c, panel + p, 0, total[p]);
}
template <Lanes L> static void float_row_panels(const LinearCall& c, int panel, int last) {
  for (; panel + 2 <= last; panel += 2) float_row<L, 2>(c, panel);
  if (panel < last) float_row<L, 1>(c, panel);
}

// Any weight and number of rows
static void linear_panels(const LinearCall& call, int panel0, int panel1, Scratch& s) {
  const Packed& w = *call.w;
  const int rows = call.in.rows;
  const bool integer = call.in.q != nullptr && !w.is_float();
  for (int row0 = 0; row0 < rows; row0 += kRowBlock) {
    const int row1 = row0 + kRowBlock < rows ? row0 + kRowBlock : rows;
    if (!integer) {
      const int step = row1 - row0 == 1 ? 4 : 1;
      for (int p = panel0; p < panel1;) {
        const int take = p + step <= panel1 ? step : 1;
        float_panels(call, p, take, row0, row1, s);
        p += take;
      }
    } else if (w.store == Store::Codes8) {
      for (int p = panel0; p < panel1; p++) in_tiles<Codes8Tile, const LinearCall*, int>(row0, row1, &call, p);
    } else {
      for (int p = panel0; p < panel1; p++) codes4_panel(call, p, row0, row1, s);
    }
  }
}

void linear(const LinearCall& call, int panel0, int panel1, void* scratch) {
  Scratch& s = *static_cast<Scratch*>(scratch);
  const Packed& w = *call.w;
  const int rows = call.in.rows;
  const bool integer = call.in.q != nullptr && !w.is_float();
  if (integer && rows == 1 && w.store == Store::Codes4 && w.meaning == Meaning::Int) {
    for (int p = panel0; p < panel1; p++) codes4_row(call, p, 0);
    return;
  }
#ifdef __AVX2__
  if (rows == 1 && w.store == Store::Trellis) {
    const int first = std::min((panel0 + 3) / 4 * 4, panel1), last = trellis_tiles(call, first, panel1, integer);
    linear_panels(call, panel0, first, s);  // what lies beside whole tiles
    linear_panels(call, last, panel1, s);
    return;
  }
#endif
  if (!integer && rows == 1 && !w.is_float() && w.store != Store::Trellis) {
    if (w.store == Store::E4M3) float_row_panels<Lanes::E4M3>(call, panel0, panel1);
    else if (w.store == Store::E5M2) float_row_panels<Lanes::E5M2>(call, panel0, panel1);
    else if (w.meaning == Meaning::Table) float_row_panels<Lanes::Table>(call, panel0, panel1);
    else float_row_panels<Lanes::Signed>(call, panel0, panel1);
    return;
  }
  linear_panels(call, panel0, panel1, s);
}

// One row of 8-bit integers, whose bytes lie four to a step: the numbers that widen_panel makes of all sixteen
static void embed_codes8(const Packed& w, int token, float factor, float* y) {
  const uint8_t *base = w.base(token / kPanel), *codes = w.values(token / kPanel) + token % kPanel * 4;
  f32x16 scale = zero(), shift = zero();
  for (int k = 0, next = 0, group = 0; k < w.k; k += 16, codes += 4 * 4 * kPanel) {
    if (k == next) {
      float all[kPanel];
      store(all, load_scales(w, base, group));
      scale = set1(all[token % kPanel]);
      if (w.has_zeros) {
        store(all, load_zeros(w, base, group));
        shift = set1(all[token % kPanel]);
      }
      next += w.group < w.kpad ? w.group : w.kpad;
      group++;
    }
    int8_t four_steps[16];
    for (int i = 0; i < 4; i++) std::memcpy(four_steps + 4 * i, codes + i * 4 * kPanel, 4);
    store_n(y + k, mul(mul(sub(load_i8(four_steps), shift), scale), set1(factor)), w.k - k < 16 ? w.k - k : 16);
  }
}

void embed(const Packed& w, const int32_t* tokens, float factor, float* y, int64_t y_stride, int row0, int row1) {
  if (w.store == Store::Codes8 && w.meaning == Meaning::Int && (w.group >= w.kpad || w.group % 16 == 0)) {
    for (int r = row0; r < row1; r++) embed_codes8(w, tokens[r], factor, y + r * y_stride);
    return;
  }
  alignas(64) float wide[kFloatChunk * kPanel];
  for (int r = row0; r < row1; r++)
    for (int k = 0; k < w.k; k += kFloatChunk) {
      const int end = k + kFloatChunk < w.k ? k + kFloatChunk : w.k;
      widen_panel(w, tokens[r] / kPanel, k, end, wide);
      for (int i = k; i < end; i++) y[r * y_stride + i] = wide[(i - k) * kPanel + tokens[r] % kPanel] * factor;
    }
}
