// Writing the paged cache, and attention over it. Included inside a namespace that has vec.h's names and elementwise.inl.h's exp and tanh. OCTAVO_PAGES: a file
// that meets pages in another way than pages.inl.h, with the same names.
//
// Online softmax (arXiv 2205.14135) over spans of whole pages in ascending order: their boundaries are absolute, so a query's sum has the
// same terms in the same order however its prompt was chunked and whatever else is in the batch. Keys lie [head_dim][kPage], so vector lanes
// are tokens; values lie [kPage][head_dim], so lanes are dimensions.
//
// Sequences that decode and begin with the same pages go in gangs (gangs.h): their shared pages are read and widened once for all.

constexpr int kBlockRows = 96;  // query rows (tokens x heads of one group) in a work item
constexpr int kSpan = kPage;    // tokens between two looks at the maximum; longer spans were no faster (LOG)
constexpr int kRows = 6;        // query rows worked on together: 12 sums of 8 lanes on AVX2

#include "rotate.inl.h"
#include "cache_write.inl.h"

// e^x for x <= 0, the bits of exp() down to e^-86, where it stays; NaN stays NaN. t holds n = round(x log2 e) in the low bits of its mantissa.
static inline f32x16 exp_below_zero(f32x16 x) {
  x = max(set1(-86.f), x);
  const f32x16 magic = set1(12582912.f), t = add(mul(x, set1(1.44269504088896341f)), magic), n = sub(t, magic);
  return add_exponent(exp_of_rest(x, n), t);
}

#include "attention_items.inl.h"

// So few query rows that they wait for memory: one tile, if dimensions fill their lanes
static inline bool few_rows(int rows, int dim) { return rows <= kRows && dim % 32 == 0; }

// What the dimensions sum to: of a query, or of its products with `y`
static float sum_of(const float* x, const float* y, int dim) {
  f32x16 total = zero();
  for (int d = 0; d < dim; d += 16) {
    const int n = dim - d < 16 ? dim - d : 16;
    total = y ? fmadd(load_n(x + d, n), load_n(y + d, n), total) : add(total, load_n(x + d, n));
  }
  return reduce_add(total);
}

// What one work item holds while it walks over the pages, for each of its query rows (token and head)
struct Walk {
  int span_start;
  int64_t ahead;                                          // the page to fetch meanwhile, for few rows wait for memory; -1: none
  int* position;                                          // of the row's token
  float *q, *shared_q, *o, *p, *best, *sum, *alpha, *keys, *values;
  float *q_sum, *q_base, *q_jump, *raised;                // what a query's dimensions sum to; its products with the mean key and the jump; weights times offsets
};

#ifndef OCTAVO_PAGES
#define OCTAVO_PAGES "pages.inl.h"
#endif
#include OCTAVO_PAGES
static inline int padded_dim(const AttentionCall& c) { return (c.cache->key_rows() + kDimStep - 1) / kDimStep * kDimStep; }

int attention_items(const AttentionCall& call) { return items_of(call, tokens_of(call, kBlockRows)); }

size_t attention_scratch_bytes(const AttentionCall& call) {
  const size_t rows = size_t(std::max(tokens_of(call, kBlockRows), kGang)) * size_t(group_of(call)), dim = size_t(padded_dim(call));
  return sizeof(float) * (3 * rows * dim + rows * kSpan + 8 * rows + 2 * kPage * dim) + 256;
}

static inline bool scaled(CacheType type) { return type == CacheType::I8 || type == CacheType::E4M3; }

// Turns the scores of a span, lanes [from, to) of it, into weights, and updates the row's maximum, sum and alpha
static inline void soften(const AttentionCall& c, const Walk& w, int r, int from, int to, const float* k_scale[kSpan / kPage], const float* v_scale[kSpan / kPage]) {
  const int position = w.position[r];
  float* row = w.p + int64_t(r) * kSpan;
  int high = position - w.span_start + 1, low = c.window > 0 ? position - c.window + 1 - w.span_start : from;  // visible lanes [low, high)
  if (high > to) high = to;
  if (low < from) low = from;
  w.alpha[r] = 1.f;
  if (low >= high) {  // nothing of this span: the row's state stays as it is
    std::memset(row + from, 0, sizeof(float) * size_t(to - from));
    return;
  }
  const f32x16 factor = set1(c.scale);
  f32x16 largest = set1(-INFINITY);
  for (int i = from; i < to; i += 16) {
    f32x16 a = load(row + i);
    if (c.cache->k_type == CacheType::U4) {
      const f32x16 words = load(k_scale[i / kPage] + i % kPage), scale = half_words<true>(words);
      a = fmadd(a, c.cache->k_even ? scale : abs(scale), mul(set1(w.q_sum[r]), half_words<false>(words)));
      if (!c.cache->k_even) a = fmadd(set1(w.q_jump[r]), min(max(mul(scale, set1(-3e38f)), zero()), set1(1.f)), a);  // of those whose scale has a sign
    }
    a = mul(a, factor);
    if (scaled(c.cache->k_type)) a = mul(a, load(k_scale[i / kPage] + i % kPage));
    if (c.softcap > 0.f && c.cache->k_mean) a = fmadd(set1(w.q_base[r]), factor, a);  // without a cap, what all scores of a row share changes no weight
    if (c.softcap > 0.f) a = mul(set1(c.softcap), tanh(mul(a, set1(1.f / c.softcap))));
    if (i < low || i + 16 > high) a = between(a, low - i, high - i, -INFINITY);
    store(row + i, a);
    largest = max(largest, a);
  }
  float top = reduce_max(largest);
  if (w.best[r] > top) top = w.best[r];
  const f32x16 shift = set1(top);
  f32x16 total = zero(), raised = zero();
  for (int i = from; i < to; i += 16) {
    f32x16 e = exp_below_zero(sub(load(row + i), shift));
    if (i < low || i + 16 > high) e = between(e, low - i, high - i, 0.f);
    total = add(total, e);
    if (scaled(c.cache->v_type)) e = mul(e, load_n(v_scale[i / kPage] + i % kPage, high - i));  // scales behind `high` may be stale
    if (c.cache->v_type == CacheType::U4) {
      const f32x16 words = load_n(v_scale[i / kPage] + i % kPage, high - i), scale = half_words<true>(words), offset = half_words<false>(words);
      raised = fmadd(e, kValueZero != 0.f ? fmadd(set1(kValueZero), scale, offset) : offset, raised);
      e = mul(e, scale);
    }
    store(row + i, e);
  }
  if (w.best[r] != top) {
    if (w.sum[r] > 0.f) { float lane[16]; store(lane, exp_below_zero(set1(w.best[r] - top))); w.alpha[r] = lane[0]; }
    w.best[r] = top;
  }
  w.sum[r] = w.sum[r] * w.alpha[r] + reduce_add(total);
  if (c.cache->v_type == CacheType::U4) w.raised[r] = w.raised[r] * w.alpha[r] + reduce_add(raised);
}

// The same for up to four rows that see all of a span, without a cap or offsets: one row alone waits for its own results most of the time
template <int N> static inline void soften_some(const AttentionCall& c, const Walk& w, int r0, const float* const k_scale[kSpan / kPage], const float* const v_scale[kSpan / kPage]) {
  static_assert(kSpan == 32, "two vectors");
  const f32x16 factor = set1(c.scale), one = set1(1.f);
  const bool keys = scaled(c.cache->k_type), values = scaled(c.cache->v_type);
  const f32x16 k0 = keys ? load(k_scale[0]) : one, k1 = keys ? load(k_scale[0] + 16) : one, v0 = values ? load(v_scale[0]) : one, v1 = values ? load(v_scale[0] + 16) : one;
  float* row = w.p + int64_t(r0) * kSpan;
  f32x16 a[N][2];
  float top[N];
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) {
    a[r][0] = mul(mul(load(row + r * kSpan), factor), k0);
    a[r][1] = mul(mul(load(row + r * kSpan + 16), factor), k1);
  }
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) top[r] = reduce_max(max(max(set1(-INFINITY), a[r][0]), a[r][1]));
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) {
    const float best = w.best[r0 + r];
    if (best > top[r]) top[r] = best;
    w.alpha[r0 + r] = 1.f;
    if (best != top[r]) {
      if (w.sum[r0 + r] > 0.f) { float lane[16]; store(lane, exp_below_zero(set1(best - top[r]))); w.alpha[r0 + r] = lane[0]; }
      w.best[r0 + r] = top[r];
    }
  }
  f32x16 total[N];
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) {
    const f32x16 shift = set1(top[r]), e0 = exp_below_zero(sub(a[r][0], shift)), e1 = exp_below_zero(sub(a[r][1], shift));
    total[r] = add(e0, e1);
    store(row + r * kSpan, mul(e0, v0));
    store(row + r * kSpan + 16, mul(e1, v1));
  }
#pragma GCC unroll 4
  for (int r = 0; r < N; r++) w.sum[r0 + r] = w.sum[r0 + r] * w.alpha[r0 + r] + reduce_add(total[r]);
}
static inline void soften_rows(const AttentionCall& c, const Walk& w, int first, int last, int from, int to, const float* k_scale[kSpan / kPage], const float* v_scale[kSpan / kPage]) {
  const bool plain = c.softcap == 0.f && c.cache->k_type != CacheType::U4 && c.cache->v_type != CacheType::U4 && from == 0 && to == kSpan;
  for (int r = first; r < last;) {
    const int n = last - r < 4 ? last - r : 4;
    // positions ascend with rows
    if (!plain || w.position[r] < w.span_start + kSpan - 1 || (c.window > 0 && w.position[r + n - 1] - c.window + 1 > w.span_start)) {
      soften(c, w, r++, from, to, k_scale, v_scale);
      continue;
    }
    switch (n) {
      case 4: soften_some<4>(c, w, r, k_scale, v_scale); break;
      case 3: soften_some<3>(c, w, r, k_scale, v_scale); break;
      case 2: soften_some<2>(c, w, r, k_scale, v_scale); break;
      default: soften_some<1>(c, w, r, k_scale, v_scale); break;
    }
    r += n;
  }
}

// One item: some query rows of one sequence, or one token of each of several sequences that begin with the same pages. Pages that are shared are widened
// once and meet the rows of all; what is a sequence's own meets its rows alone. A row's operations and their order are the same either way.
void attention(const AttentionCall& call, int item, void* scratch) {
  const Step& step = *call.step;
  const CacheLayer& cache = *call.cache;
  const AttentionItem work(call, item, tokens_of(call, kBlockRows));
  const int group = group_of(call), dim = cache.head_dim, wide = padded_dim(call), head = work.head, count = work.count, shared = work.shared;
  const int *oldest = work.oldest, *newest = work.newest;
  const int32_t* who = work.who;
  int row0[kGang + 1] = {};  // rows of each member
  for (int m = 0; m < count; m++) row0[m + 1] = row0[m] + work.tokens[m] * group;
  const int rows = row0[count];
  float turned[kWidestHead], spread[2 * kWidestHead];
  Walk w;
  w.o = static_cast<float*>(scratch);
  w.p = w.o + int64_t(rows) * wide;
  w.keys = w.p + int64_t(rows) * kSpan;
  w.values = w.keys + int64_t(kPage) * wide;
  w.q = w.values + int64_t(kPage) * wide;
  w.shared_q = w.q + int64_t(rows) * wide;
  w.best = w.shared_q + int64_t(rows) * wide;
  w.sum = w.best + rows;
  w.alpha = w.sum + rows;
  w.q_sum = w.alpha + rows;
  w.q_base = w.q_sum + rows;
  w.q_jump = w.q_base + rows;
  w.raised = w.q_jump + rows;
  w.position = reinterpret_cast<int*>(w.raised + rows);
  for (int m = 0; m < count; m++)
    for (int r = row0[m]; r < row0[m + 1]; r++) {
      const int mine = r - row0[m], total = row0[m + 1] - row0[m], token = step.starts[who[m]] + work.begin + mine / group;
      w.best[r] = -INFINITY;
      w.sum[r] = 0.f;
      w.position[r] = newest[m] + 1 - total / group + mine / group;
      w.raised[r] = 0.f;
      const float* q = call.q + int64_t(token) * call.q_stride + int64_t(head * group + mine % group) * dim;
      w.q_base[r] = cache.k_mean ? sum_of(q, cache.k_mean + int64_t(head) * dim, dim) : 0.f;
      w.q_sum[r] = w.q_jump[r] = 0.f;
      if (cache.k_type == CacheType::U4) {
        query_components(cache, head, q, turned, spread);
        as_met(turned, dim);
        as_met(spread, cache.key_rows());
        w.q_sum[r] = sum_of(turned, nullptr, dim);
        w.q_jump[r] = sum_of(turned, cache.k_jump + int64_t(head) * dim, dim);
        q = spread;
      } else {
        q = turned_query(cache, head, q, turned);
      }
      lay_out(q, cache.key_rows(), w.q + int64_t(row0[m]) * wide, mine, total);
      if (shared) lay_out(q, cache.key_rows(), w.shared_q, r, rows);
    }
  std::memset(w.o, 0, sizeof(float) * size_t(rows) * size_t(wide));
  w.ahead = -1;

  constexpr int kSpanPages = kSpan / kPage;
  const auto cell_of = [&](int m, int page) { return int64_t(step.tables[int64_t(who[m]) * step.table_stride + page]) * cache.kv_heads + head; };
  int span = oldest[0] / kSpan, last_span = newest[0] / kSpan;
  for (int m = 1; m < count; m++) {
    span = std::min(span, oldest[m] / kSpan);
    last_span = std::max(last_span, newest[m] / kSpan);
  }
  for (int m = 0; m < count; m++)  // few rows wait for memory: where they begin is fetched at once, what follows while they are at the page before
    if (few_rows(row0[m + 1] - row0[m], dim)) {
      const int64_t cell = cell_of(m, std::max(shared, oldest[m] / kPage)), k_bytes = cache_bytes(cache.k_type, kPage, cache.key_rows()), v_bytes = cache_bytes(cache.v_type, kPage, dim);
      for (int64_t i = 0; i < k_bytes; i += 64) prefetch_l2(static_cast<const char*>(cache.k) + cell * k_bytes + i);
      for (int64_t i = 0; i < v_bytes; i += 64) prefetch_l2(static_cast<const char*>(cache.v) + cell * v_bytes + i);
    }
  for (; span <= last_span; span++) {
    const int start = span * kSpanPages, together = std::max(std::min(shared, start + kSpanPages), start);  // pages [start, together) are shared
    const float *k_scale[kSpanPages] = {}, *v_scale[kSpanPages] = {};
    w.span_start = span * kSpan;
    const auto note = [&](int page, int64_t cell) {
      if (cache.k_scale) k_scale[page - start] = cache.k_scales(cell);
      if (cache.v_scale) v_scale[page - start] = cache.v_scales(cell);
    };
    for (int page = start; page < together; page++) {
      note(page, cell_of(0, page));
      score_page(call, w, cell_of(0, page), rows, w.shared_q, w.p + (page - start) * kPage, false);
    }
    for (int m = 0; m < count; m++) {
      const int mine = row0[m + 1] - row0[m], page0 = std::max(start, oldest[m] / kPage), page1 = std::min(start + kSpanPages - 1, newest[m] / kPage);
      if (page0 > page1) continue;
      const bool direct = few_rows(mine, dim);
      for (int page = std::max(page0, together); page <= page1; page++) {
        const int64_t cell = cell_of(m, page);
        if (page == newest[m] / kPage) write_single(call, who[m], head);
        note(page, cell);
        w.ahead = direct && page < newest[m] / kPage ? cell_of(m, page + 1) : -1;
        score_page(call, w, cell, mine, w.q + int64_t(row0[m]) * wide, w.p + int64_t(row0[m]) * kSpan + (page - start) * kPage, direct);
      }
      soften_rows(call, w, row0[m], row0[m + 1], page0 * kPage - w.span_start, (page1 + 1) * kPage - w.span_start, k_scale, v_scale);
    }
    for (int page = start; page < together; page++)
      mix_page(call, w, cell_of(0, page), 0, rows, w.p + (page - start) * kPage, kPage, page == start, false);
    for (int m = 0; m < count; m++) {
      const int mine = row0[m + 1] - row0[m], page0 = std::max(start, oldest[m] / kPage), page1 = std::min(start + kSpanPages - 1, newest[m] / kPage);
      const bool direct = few_rows(mine, dim);
      for (int page = std::max(page0, together); page <= page1; page++) {
        w.ahead = direct && page < newest[m] / kPage ? cell_of(m, page + 1) : -1;
        const int written = step.lengths[who[m]] - page * kPage;  // the rest of the page is stale
        mix_page(call, w, cell_of(m, page), row0[m], mine, w.p + int64_t(row0[m]) * kSpan + (page - start) * kPage, written < kPage ? written : kPage, page == page0,
                 direct);
      }
    }
  }
  for (int m = 0; m < count; m++)
    for (int r = row0[m]; r < row0[m + 1]; r++) {
      const int mine = r - row0[m], token = step.starts[who[m]] + work.begin + mine / group;
      float* y = call.y + int64_t(token) * call.y_stride + int64_t(head * group + mine % group) * dim;
      const f32x16 inverse = set1(1.f / w.sum[r]), raised = set1(w.raised[r]);
      float* o = w.o + int64_t(r) * wide;
      if (cache.v_type == CacheType::U4) {
        for (int d = 0; d < dim; d += 16) store(o + d, add(load(o + d), raised));
        rotate(o, dim);
      }
      for (int d = 0; d < dim; d += 16) store_n(y + d, mul(mixed(cache, o, d), inverse), dim - d < 16 ? dim - d : 16);
    }
}
