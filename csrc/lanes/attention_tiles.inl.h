// Attention on tile registers, for caches that bfloat16 holds exactly (BF16, and I8 with its scales kept apart). Included in a namespace that has the
// names of vec.h, tiles.h and halves.h, elementwise.inl.h's tanh and attention_items.inl.h.
//
// Queries and softmax weights are float32: each is split into a bfloat16 and, of what is left, another one (halves.h), and both are multiplied into
// the same float32 sums. That loses 2^-17 of a factor, far below what a rounded key costs, for two products instead of one.
// Online softmax (arXiv 2205.14135) over spans of four whole pages, with absolute boundaries. For each span the keys and values of an item are laid
// out once as tiles, then every sixteen rows meet them: scores, weights, values. What a row's result is made of, and in which order, depends on the
// row alone: not on the height of its tile, the rows beside it, the chunk or the batch. A tile that starts earlier or ends later than a row sees adds
// zeros to it.
//
// A core multiplies tiles while it also computes in its vector registers, as far as it can look ahead. So the tiles of the next sixteen rows' scores
// and of the last sixteen rows' values are issued between the softmaxes of single rows.

constexpr int kTilePages = 4;                         // pages of a span
constexpr int kTileTokens = kTilePages * kPage;
constexpr int kTileBlockRows = 128;                   // query rows of an item: what it costs to lay out a page is shared by so many
constexpr int kTileSize = 512;                        // bfloat16 numbers in a tile
enum { kSum0, kSum1, kSum2, kSum3, kHigh, kLow, kPair0, kPair1 };  // tile registers

struct TileWalk {
  const AttentionCall& call;
  int dim, dim_blocks, dim_tiles;  // head_dim, in steps of 32 and in steps of 16
  int wide;                        // floats in a row of o
  int span = 0;                    // first token
  uint16_t *keys, *values;         // tiles [page][dim block][half a page] and [page][dim tile]
  float* s;                        // [row][page][32] scores; then, in their place, weights [row][page][high, low][32]: pairs (t, t + 16)
  uint16_t* q;                     // [row][dim block][high, low][32]: pairs (d, d + 16)
  float* o;                        // [row][wide]
  float *key_scale, *value_scale;  // [kTileTokens], I8 only
  float *best, *sum;               // [row]; best in powers of two
  int* position;                   // [row] of its token
  size_t bytes;                    // of all this, from `scratch` on, which may be null to learn it

  TileWalk(const AttentionCall& c, int rows, void* scratch)
      : call(c), dim(c.cache->head_dim), dim_blocks((dim + 31) / 32), dim_tiles((dim + 15) / 16), wide(dim_tiles * 16) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(scratch);
    uintptr_t at = start;
    const auto take = [&](auto*& to, size_t count) {
      to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(at);
      at += (count * sizeof(*to) + 63) / 64 * 64;
    };
    const size_t n = size_t(rows);
    take(keys, size_t(kTilePages * dim_blocks) * 2 * kTileSize);
    take(values, size_t(kTilePages * dim_tiles) * kTileSize);
    take(s, n * kTileTokens);
    take(q, n * size_t(dim_blocks) * 64);
    take(o, n * size_t(wide));
    take(key_scale, kTileTokens);
    take(value_scale, kTileTokens);
    take(best, n);
    take(sum, n);
    take(position, n);
    bytes = size_t(at - start);
  }
};

static inline int whole_tiles(int rows) { return rows <= 16 ? rows : (rows + 15) / 16 * 16; }
// Rows between the members of a gang: what exceeds a tile begins with a tile of its own
static inline int rows_apart(const AttentionCall& c, int tokens) { return whole_tiles(tokens * group_of(c)); }

static size_t tile_attention_scratch_bytes(const AttentionCall& c) {
  const int alone = whole_tiles(tokens_of(c, kTileBlockRows) * group_of(c)), together = (kGang * rows_apart(c, 1) + 15) / 16 * 16;
  return TileWalk(c, alone > together ? alone : together, nullptr).bytes;
}
static int tile_attention_items(const AttentionCall& c) { return items_of(c, tokens_of(c, kTileBlockRows)); }
static bool fits_tiles(CacheType type) { return type == CacheType::BF16 || type == CacheType::I8; }
static bool attention_fits_tiles(const AttentionCall& c) { return fits_tiles(c.cache->k_type) && fits_tiles(c.cache->v_type) && !(c.cache->k_mean && c.softcap > 0.f); }

static inline void shape_rows(int height) {
  TileConfig config;
  for (int t = kSum0; t <= kPair1; t++) {
    config.rows[t] = uint8_t(t == kPair0 || t == kPair1 ? 16 : height);
    config.bytes[t] = 64;
  }
  tiles_configure(config);
}

// A query times what every score is multiplied by, in halves. The scores of the softmax are powers of two.
static constexpr float kLog2e = 1.44269504088896341f;
static void split_query(const TileWalk& w, const float* q, int row) {
  const AttentionCall& c = w.call;
  const float factor = c.softcap > 0.f ? c.scale / c.softcap : c.scale * kLog2e;
  uint16_t* to = w.q + int64_t(row) * w.dim_blocks * 64;
  for (int d = 0; d < w.dim; d += 32, to += 64) {
    float x[32] = {};
    const int n = w.dim - d < 32 ? w.dim - d : 32;
    for (int i = 0; i < n; i++) {
      x[i] = q[d + i] * factor;
      if (x[i] != x[i]) x[i] = NAN;  // without the payload bits that rounding would carry into the sign
    }
    split_lanes(load(x), load(x + 16), to, to + 32);
  }
}

template <class T> static void pair_keys(const TileWalk& w, const T* k, uint16_t* tiles) {  // k: [dim][kPage]
  for (int b = 0; b < w.dim_blocks; b++, k += 32 * kPage, tiles += 2 * kTileSize) {
    const int left = w.dim - 32 * b;
    for (int i = 0; i < 16 && left >= 32; i++)
      for (int h = 0; h < 2; h++) pair_lanes(k + i * kPage + 16 * h, k + (i + 16) * kPage + 16 * h, tiles + h * kTileSize + 32 * i);
    for (int i = 0; i < 16 && left < 32; i++)
      for (int h = 0; h < 2; h++)
        pair_lanes(i < left ? k + i * kPage + 16 * h : nullptr, i + 16 < left ? k + (i + 16) * kPage + 16 * h : nullptr, 16, tiles + h * kTileSize + 32 * i);
  }
}
template <class T> static void pair_values(const TileWalk& w, const T* v, int written, uint16_t* tiles) {  // v: [kPage][dim], stale from `written` on
  const bool whole = written >= kPage && w.dim % 16 == 0;
  for (int i = 0; i < 16; i++) {
    const T *first = v + i * w.dim, *second = v + (i + 16) * w.dim;
    uint16_t* to = tiles + 32 * i;
    for (int n = 0; n < w.dim_tiles && whole; n++) pair_lanes(first + 16 * n, second + 16 * n, to + n * kTileSize);
    for (int n = 0; n < w.dim_tiles && !whole; n++)
      pair_lanes(i < written ? first + 16 * n : nullptr, i + 16 < written ? second + 16 * n : nullptr, w.dim - 16 * n, to + n * kTileSize);
  }
}
// Keys of page `page` of the span, and the scales of its `written` tokens
static void lay_out_keys(const TileWalk& w, int page, int64_t cell, int written) {
  const CacheLayer& cache = *w.call.cache;
  const int64_t at = cell * w.dim * kPage;
  uint16_t* tiles = w.keys + int64_t(page) * w.dim_blocks * 2 * kTileSize;
  if (cache.k_type == CacheType::BF16) pair_keys(w, static_cast<const uint16_t*>(cache.k) + at, tiles);
  else pair_keys(w, static_cast<const int8_t*>(cache.k) + at, tiles);
  for (int t = 0; t < kPage; t += 16) {
    if (cache.k_type == CacheType::I8) store(w.key_scale + page * kPage + t, load_n(cache.k_scales(cell) + t, written - t));
    if (cache.v_type == CacheType::I8) store(w.value_scale + page * kPage + t, load_n(cache.v_scales(cell) + t, written - t));
  }
}
static void lay_out_values(const TileWalk& w, int page, int64_t cell, int written) {
  const CacheLayer& cache = *w.call.cache;
  const int64_t at = cell * w.dim * kPage;
  uint16_t* tiles = w.values + int64_t(page) * w.dim_tiles * kTileSize;
  if (cache.v_type == CacheType::BF16) pair_values(w, static_cast<const uint16_t*>(cache.v) + at, written, tiles);
  else pair_values(w, static_cast<const int8_t*>(cache.v) + at, written, tiles);
}

// Both halves of a tile of rows times two tiles of pairs
template <int A, int B> static inline void two_products() {
  tile_dot_bf16<A, kHigh, kPair0>();
  tile_dot_bf16<B, kHigh, kPair1>();
  tile_dot_bf16<A, kLow, kPair0>();
  tile_dot_bf16<B, kLow, kPair1>();
}
template <int A> static inline void one_product() {
  tile_dot_bf16<A, kHigh, kPair0>();
  tile_dot_bf16<A, kLow, kPair0>();
}
static inline void load_rows(const void* halves, int64_t stride) {
  tile_load<kHigh>(halves, stride);
  tile_load<kLow>(static_cast<const uint16_t*>(halves) + 32, stride);
}
static inline void load_pairs(const uint16_t* tiles) {
  tile_load<kPair0>(tiles, 64);
  tile_load<kPair1>(tiles + kTileSize, 64);
}

// Sixteen rows, or as many as tiles have now, and the pages [page0, page1) of the span that some of them see
struct TileRows {
  int row = 0, page0 = 0, page1 = 0;
  int pages() const { return page1 > page0 ? page1 - page0 : 0; }
};

// The products that some rows' scores and other rows' values need, in steps of four instructions: what a core multiplies while it softens a row.
// Scores are summed for two pages at a time, values for four tiles of dimensions. Sums wait in their registers for the next step before they are
// stored, so that the vector registers' work is not held up behind them.
class AttentionStream {
 public:
  AttentionStream(const TileWalk& w, const TileRows& scored, const TileRows& mixed) : w_(w), scored_(scored), mixed_(mixed), page_(scored.page0) {
    if (!scored_.pages()) begin_mix();
  }
  int steps() const { return scored_.pages() * w_.dim_blocks + mixed_.pages() * ((w_.dim_tiles + 1) / 2); }
  void step() {
    store();
    if (mixing_) mix_step();
    else score_step();
  }
  void finish() {
    while (!mixing_ || tile_ < w_.dim_tiles) step();
    store();
  }

 private:
  void store() {
    if (!stored_) return;
    tile_store<kSum0>(to_, stride_);
    if (stored_ > 1) tile_store<kSum1>(to_ + 16, stride_);
    if (stored_ > 2) {
      tile_store<kSum2>(to_ + 32, stride_);
      tile_store<kSum3>(to_ + 48, stride_);
    }
    stored_ = 0;
  }
  void score_step() {
    const int64_t page_size = int64_t(w_.dim_blocks) * 2 * kTileSize;
    const uint16_t* k = w_.keys + page_ * page_size + int64_t(block_) * 2 * kTileSize;
    const int pages = scored_.page1 - page_ > 1 ? 2 : 1;
    if (!second_) {
      if (block_ == 0) {
        tile_zero<kSum0>();
        tile_zero<kSum1>();
        if (pages == 2) {
          tile_zero<kSum2>();
          tile_zero<kSum3>();
        }
      }
      load_rows(w_.q + (int64_t(scored_.row) * w_.dim_blocks + block_) * 64, int64_t(w_.dim_blocks) * 128);
      load_pairs(k);
      two_products<kSum0, kSum1>();
      second_ = pages == 2;
      if (second_) return;
    } else {
      load_pairs(k + page_size);
      two_products<kSum2, kSum3>();
      second_ = false;
    }
    if (++block_ < w_.dim_blocks) return;
    block_ = 0;
    to_ = w_.s + int64_t(scored_.row) * kTileTokens + page_ * kPage;
    stride_ = kTileTokens * 4;
    stored_ = 2 * pages;
    page_ += pages;
    if (page_ >= scored_.page1) begin_mix();
  }
  void begin_mix() {
    mixing_ = true;
    page_ = mixed_.page0;
    tile_ = mixed_.pages() ? 0 : w_.dim_tiles;
  }
  void mix_step() {
    const int left = w_.dim_tiles - tile_, tiles = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const uint16_t* v = w_.values + (int64_t(page_) * w_.dim_tiles + tile_) * kTileSize;
    if (!second_) {
      to_ = w_.o + int64_t(mixed_.row) * w_.wide + tile_ * 16;
      stride_ = int64_t(w_.wide) * 4;
      if (page_ == mixed_.page0) {
        tile_load<kSum0>(to_, stride_);
        if (tiles > 1) tile_load<kSum1>(to_ + 16, stride_);
        if (tiles > 2) {
          tile_load<kSum2>(to_ + 32, stride_);
          tile_load<kSum3>(to_ + 48, stride_);
        }
      }
      load_rows(w_.s + int64_t(mixed_.row) * kTileTokens + page_ * kPage, kTileTokens * 4);
      if (tiles == 1) {
        tile_load<kPair0>(v, 64);
        one_product<kSum0>();
      } else {
        load_pairs(v);
        two_products<kSum0, kSum1>();
      }
      second_ = tiles == 4;
      if (second_) return;
    } else {
      load_pairs(v + 2 * kTileSize);
      two_products<kSum2, kSum3>();
      second_ = false;
    }
    if (++page_ < mixed_.page1) return;
    page_ = mixed_.page0;
    stored_ = tiles;
    tile_ += tiles;
  }

  const TileWalk& w_;
  const TileRows scored_, mixed_;
  bool mixing_ = false, second_ = false;  // second_: of two pages, or of two pairs of tiles
  int page_, block_ = 0, tile_ = 0;
  int stored_ = 0;                        // sums to store
  float* to_ = nullptr;
  int64_t stride_ = 0;
};
static void score_rows(const TileWalk& w, const TileRows& t) { AttentionStream(w, t, {}).finish(); }
static void mix_rows(const TileWalk& w, const TileRows& t) { AttentionStream(w, {}, t).finish(); }

// 2^x for x <= 0, within 2^-22 down to 2^-100, where it stays: no product of it becomes a denormal. NaN stays NaN. The polynomial is the one of degree 5
// whose largest relative error on [-1/2, 1/2] is least, 2^-23.4.
static inline f32x16 exp2_below_zero(f32x16 x) {
  x = max(set1(-100.f), x);
  const f32x16 magic = set1(12582912.f), t = add(x, magic), r = sub(x, sub(t, magic));
  f32x16 p = fmadd(set1(1.326472731307149e-3f), r, set1(9.671512991189957e-3f));
  p = fmadd(p, r, set1(5.550733581185341e-2f));
  p = fmadd(p, r, set1(2.4022242426872253e-1f));
  p = fmadd(p, r, set1(6.931470036506653e-1f));
  return add_exponent(fmadd(p, r, set1(1.f)), t);
}

// A row's largest score is now `top` or what it was; with what it has gathered made to match. Returns the largest.
static inline f32x16 raise_best(const TileWalk& w, int row, float top) {
  const float before = w.best[row];
  if (before > top) top = before;
  if (before != top) {
    if (w.sum[row] > 0.f) {
      const f32x16 alpha = exp2_below_zero(set1(before - top));
      float lanes[16];
      store(lanes, alpha);
      w.sum[row] *= lanes[0];
      float* o = w.o + int64_t(row) * w.wide;
      for (int d = 0; d < w.wide; d += 16) store(o + d, mul(load(o + d), alpha));
    }
    w.best[row] = top;
  }
  return set1(top);
}

// A row that sees all of a span, which nearly all do: its scores stay in registers
template <bool ScaledKeys, bool ScaledValues> static __attribute__((noinline)) void soften_span(const TileWalk& w, int row) {
  constexpr int kVectors = kTileTokens / 16;
  float* s = w.s + int64_t(row) * kTileTokens;
  f32x16 e[kVectors], largest[2], total[2] = {zero(), zero()};
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; i++) {
    e[i] = load(s + 16 * i);
    if (ScaledKeys) e[i] = mul(e[i], load(w.key_scale + 16 * i));
    largest[i % 2] = i < 2 ? e[i] : max(largest[i % 2], e[i]);
  }
  const f32x16 top = raise_best(w, row, reduce_max(max(largest[0], largest[1])));
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; i++) {
    e[i] = exp2_below_zero(sub(e[i], top));
    total[i % 2] = add(total[i % 2], e[i]);
    if (ScaledValues) e[i] = mul(e[i], load(w.value_scale + 16 * i));
    if (i % 2) split_lanes(e[i - 1], e[i], s + 16 * (i - 1), s + 16 * i);
  }
  w.sum[row] += reduce_add(add(total[0], total[1]));
}

static __attribute__((noinline)) void cap_scores(const TileWalk& w, float* s, int from, int to) {
  const f32x16 cap = set1(w.call.softcap * kLog2e);
  for (int i = from; i < to; i += 16) {
    f32x16 a = load(s + i);
    if (w.call.cache->k_type == CacheType::I8) a = mul(a, load(w.key_scale + i));
    store(s + i, mul(cap, tanh(a)));
  }
}

// Turns a row's scores of pages [page0, page1) into weights, in halves, and updates its maximum and sum, and scales what it has gathered
template <bool ScaledKeys, bool ScaledValues>
static inline __attribute__((always_inline)) void soften_tokens(const TileWalk& w, int row, int page0, int page1) {
  const AttentionCall& c = w.call;
  float* s = w.s + int64_t(row) * kTileTokens;
  const int from = page0 * kPage, to = page1 * kPage, position = w.position[row] - w.span;
  const bool capped = c.softcap > 0.f;
  int low = c.window > 0 ? position - c.window + 1 : from, high = position + 1;  // visible: [low, high)
  if (low < from) low = from;
  if (high > to) high = to;
  if (low == 0 && high == kTileTokens && !capped) return soften_span<ScaledKeys, ScaledValues>(w, row);
  if (low >= high) {  // nothing of this span
    std::memset(s + from, 0, sizeof(float) * size_t(to - from));
    return;
  }
  if (capped) cap_scores(w, s, low / 16 * 16, high);
  const auto partial = [&](int i) { return i < low || i + 16 > high; };
  f32x16 largest = set1(-INFINITY);
  for (int i = low / 16 * 16; i < high; i += 16) {
    f32x16 a = load(s + i);
    if (ScaledKeys && !capped) a = mul(a, load(w.key_scale + i));
    if (partial(i)) a = keep_lanes(a, low - i, high - i, -INFINITY);
    store(s + i, a);
    largest = max(largest, a);
  }
  const f32x16 top = raise_best(w, row, reduce_max(largest));
  f32x16 total[2] = {zero(), zero()};
  for (int page = page0; page < page1; page++) {
    f32x16 e[2];
    for (int h = 0; h < 2; h++) {
      const int i = page * kPage + 16 * h;
      e[h] = i + 16 <= low || i >= high ? zero() : exp2_below_zero(sub(load(s + i), top));
      if (partial(i)) e[h] = keep_lanes(e[h], low - i, high - i, 0.f);
      total[h] = add(total[h], e[h]);
      if (ScaledValues) e[h] = mul(e[h], load(w.value_scale + i));
    }
    split_lanes(e[0], e[1], s + page * kPage, s + page * kPage + 16);
  }
  w.sum[row] += reduce_add(add(total[0], total[1]));
}
static void soften_row(const TileWalk& w, int row, int page0, int page1) {
  const bool k = w.call.cache->k_type == CacheType::I8, v = w.call.cache->v_type == CacheType::I8;
  if (k && v) soften_tokens<true, true>(w, row, page0, page1);
  else if (!k && !v) soften_tokens<false, false>(w, row, page0, page1);
  else if (k) soften_tokens<true, false>(w, row, page0, page1);
  else soften_tokens<false, true>(w, row, page0, page1);
}

// Tiles of rows whose keys and values are laid out, one behind the other: while the rows of one are softened, the next is scored and the last mixed.
static void attend_in_turn(const TileWalk& w, const TileRows* tiles, int count, int height, int rows) {
  score_rows(w, tiles[0]);
  for (int i = 0; i < count; i++) {
    AttentionStream stream(w, i + 1 < count ? tiles[i + 1] : TileRows{}, i > 0 ? tiles[i - 1] : TileRows{});
    const int last = rows - tiles[i].row < height ? rows - tiles[i].row : height, steps = stream.steps();
    for (int r = 0, done = 0; r < last; r++) {
      for (; done * last < (r + 1) * steps; done++) stream.step();
      if (tiles[i].pages()) soften_row(w, tiles[i].row + r, tiles[i].page0, tiles[i].page1);
    }
    stream.finish();
  }
  mix_rows(w, tiles[count - 1]);
}

static void tile_attention(const AttentionCall& c, int index, void* scratch) {
  const Step& step = *c.step;
  const CacheLayer& cache = *c.cache;
  const AttentionItem item(c, index, tokens_of(c, kTileBlockRows));
  const int group = group_of(c), apart = rows_apart(c, item.tokens[0]);
  const int rows = item.count == 1 ? item.tokens[0] * group : item.count * apart;  // of a gang: with what lies between members
  const int padded = whole_tiles(rows), height = rows < 16 ? rows : 16, own_height = apart < 16 ? apart : 16;
  TileWalk w(c, padded, scratch);
  std::memset(w.q, 0, sizeof(uint16_t) * size_t(padded) * size_t(w.dim_blocks) * 64);
  std::memset(w.o, 0, sizeof(float) * size_t(padded) * size_t(w.wide));
  for (int m = 0; m < item.count; m++) write_single(c, item.who[m], item.head);
  const auto token_of = [&](int m, int r) { return step.starts[item.who[m]] + item.begin + r / group; };
  const auto each_row = [&](int m, auto&& fn) { for (int r = 0; r < item.tokens[m] * group; r++) fn(m * apart + r, r); };
  float turned[kWidestHead];
  for (int r = 0; r < padded; r++) w.position[r] = -1;  // sees nothing
  for (int m = 0; m < item.count; m++)
    each_row(m, [&](int row, int r) {
      w.best[row] = -INFINITY;
      w.sum[row] = 0.f;
      w.position[row] = item.newest[m] + 1 - item.tokens[m] + r / group;
      const float* q = c.q + int64_t(token_of(m, r)) * c.q_stride + int64_t(item.head * group + r % group) * w.dim;
      split_query(w, turned_query(cache, item.head, q, turned), row);
    });

  const auto cell_of = [&](int m, int page) { return int64_t(step.tables[int64_t(item.who[m]) * step.table_stride + page]) * cache.kv_heads + item.head; };
  const auto lay_out = [&](int m, int first, int page0, int page1, bool keys, bool values) {
    for (int page = page0; page < page1; page++) {
      const int64_t cell = cell_of(m, page);
      const int written = step.lengths[item.who[m]] - page * kPage, n = written < kPage ? written : kPage;
      if (padded <= 16 && page < item.newest[m] / kPage) {  // few rows wait for memory: the next page is fetched meanwhile
        const int64_t size = int64_t(w.dim) * kPage, next = cell_of(m, page + 1) * size;
        const int k_size = cache.k_type == CacheType::I8 ? 1 : 2, v_size = cache.v_type == CacheType::I8 ? 1 : 2;
        for (int64_t i = 0; keys && i < size * k_size; i += 64) prefetch(static_cast<const char*>(cache.k) + next * k_size + i);
        for (int64_t i = 0; keys && i < size * v_size; i += 64) prefetch(static_cast<const char*>(cache.v) + next * v_size + i);
      }
      if (keys) lay_out_keys(w, page - first, cell, n);
      if (values) lay_out_values(w, page - first, cell, n);
    }
  };
  const auto seen = [&](const TileRows& t, int first, int last) {  // pages of the span starting with page `first` that some of rows [t.row, last) see
    const int oldest = c.window > 0 ? w.position[t.row] - c.window + 1 : 0, begin = oldest > 0 ? oldest / kPage : 0, end = w.position[last - 1] / kPage + 1;
    return TileRows{t.row, std::max(begin - first, 0), std::max(0, std::min(end - first, kTilePages))};
  };
  const auto all_tiles = [&](auto&& fn) { for (int row = 0; row < rows; row += 16) fn(row, row + 16 < rows ? row + 16 : rows); };

  int span = item.oldest[0] / kTileTokens, last_span = item.newest[0] / kTileTokens, now = height;
  for (int m = 1; m < item.count; m++) {
    span = std::min(span, item.oldest[m] / kTileTokens);
    last_span = std::max(last_span, item.newest[m] / kTileTokens);
  }
  shape_rows(now);
  const auto shape = [&](int wanted) {
    if (now != wanted) shape_rows(now = wanted);
  };
  constexpr int kMostTiles = 8;  // looked at together
  for (; span <= last_span; span++) {
    const int first = span * kTilePages;
    w.span = span * kTileTokens;
    // Pages that all sequences share; of one that is alone, all
    const int together = item.count == 1 ? first + kTilePages : std::max(std::min(item.shared, first + kTilePages), first);
    const int end = item.count == 1 ? std::min(together, item.newest[0] / kPage + 1) : together;
    lay_out(0, first, std::max(first, item.oldest[0] / kPage), end, true, true);
    TileRows tiles[kMostTiles];
    if (together == first + kTilePages) {
      shape(height);
      for (int row = 0; row < rows; row += 16 * kMostTiles) {
        int count = 0;
        for (; count < kMostTiles && row + 16 * count < rows; count++) {
          const int at = row + 16 * count, last = at + 16 < rows ? at + 16 : rows;
          tiles[count] = item.count == 1 ? seen({at, 0, 0}, first, last) : TileRows{at, 0, kTilePages};
        }
        attend_in_turn(w, tiles, count, height, rows);
      }
      continue;
    }
    // A gang where its members part: what they share for all rows, the rest for each
    shape(height);
    if (together > first) all_tiles([&](int row, int) { score_rows(w, {row, 0, together - first}); });
    shape(own_height);
    for (int m = 0; m < item.count; m++) {
      const int page0 = std::max({first, together, item.oldest[m] / kPage}), page1 = std::min(first + kTilePages, item.newest[m] / kPage + 1);
      if (page0 >= page1) continue;  // then nothing is shared here either
      lay_out(m, first, page0, page1, true, false);
      for (int row = m * apart; row < (m + 1) * apart; row += own_height) score_rows(w, {row, page0 - first, page1 - first});
      each_row(m, [&](int row, int) { soften_row(w, row, together > first ? 0 : page0 - first, page1 - first); });
    }
    shape(height);
    if (together > first) all_tiles([&](int row, int) { mix_rows(w, {row, 0, together - first}); });
    shape(own_height);
    for (int m = 0; m < item.count; m++) {
      const int page0 = std::max({first, together, item.oldest[m] / kPage}), page1 = std::min(first + kTilePages, item.newest[m] / kPage + 1);
      if (page0 >= page1) continue;
      lay_out(m, first, page0, page1, false, true);
      for (int row = m * apart; row < (m + 1) * apart; row += own_height) mix_rows(w, {row, page0 - first, page1 - first});
    }
  }
  tiles_release();
  for (int m = 0; m < item.count; m++)
    each_row(m, [&](int row, int r) {
      float* y = c.y + int64_t(token_of(m, r)) * c.y_stride + int64_t(item.head * group + r % group) * w.dim;
      const f32x16 inverse = set1(1.f / w.sum[row]);
      for (int d = 0; d < w.dim; d += 16) store_n(y + d, mul(load(w.o + int64_t(row) * w.wide + d), inverse), w.dim - d < 16 ? w.dim - d : 16);
    });
}
