// Writing the paged cache, and attention over it. Included inside a namespace that has vec.h's names and elementwise.inl.h's exp and tanh.
//
// Online softmax (arXiv 2205.14135) over whole pages in ascending order: page boundaries are absolute, so a query's sum has the same
// terms in the same order however its prompt was chunked and whatever else is in the batch. Keys lie [head_dim][kPage], so vector lanes
// are tokens; values lie [kPage][head_dim], so lanes are dimensions.

constexpr int kRows = 6;        // query rows worked on together: 12 accumulators of 8 lanes on AVX2
constexpr int kBlockRows = 48;  // query rows (tokens x heads of one group) in a work item

static float absmax(const float* x, int n) {
  f32x16 m = zero();
  for (int i = 0; i < n; i += 16) m = max(m, abs(load_n(x + i, n - i < 16 ? n - i : 16)));
  float v[16];
  store(v, m);
  float best = 0.f;
  for (float e : v) best = e > best ? e : best;
  for (int i = 0; i < n; i++)
    if (x[i] != x[i]) return x[i];  // a NaN must not vanish in the maximum
  return best;
}

static inline int8_t round_i8(float x) {
  const float r = std::nearbyint(x);
  return int8_t(r > 127.f ? 127.f : r < -127.f ? -127.f : r);
}

// One head of one token; step is the distance of neighbouring dimensions in the page.
static void write_head(CacheType type, const float* x, int dim, void* page, int64_t at, int64_t step, float* scale) {
  if (type == CacheType::F32) {
    float* to = static_cast<float*>(page) + at;
    for (int d = 0; d < dim; d++) to[d * step] = x[d];
  } else if (type == CacheType::BF16) {
    uint16_t* to = static_cast<uint16_t*>(page) + at;
    uint16_t lanes[16];
    for (int d = 0; d < dim; d += 16) {
      const int n = dim - d < 16 ? dim - d : 16;
      store_bf16(lanes, load_n(x + d, n));
      for (int i = 0; i < n; i++) to[(d + i) * step] = lanes[i];
    }
  } else {
    int8_t* to = static_cast<int8_t*>(page) + at;
    const float largest = absmax(x, dim);
    *scale = largest / 127.f;
    const float inverse = largest > 0.f ? 127.f / largest : 0.f;
    for (int d = 0; d < dim; d++) to[d * step] = largest == largest ? round_i8(x[d] * inverse) : int8_t(0);
  }
}

void cache_write(const CacheLayer& cache, const float* k, int64_t k_stride, const float* v, int64_t v_stride, const int32_t* slots, int row0, int row1) {
  const int dim = cache.head_dim, heads = cache.kv_heads;
  for (int r = row0; r < row1; r++) {
    const int64_t page = slots[r] / kPage;
    const int offset = slots[r] % kPage;
    for (int h = 0; h < heads; h++) {
      const int64_t cell = page * heads + h;
      write_head(cache.k_type, k + r * k_stride + int64_t(h) * dim, dim, cache.k, cell * dim * kPage + offset, kPage,
                 cache.k_scale ? cache.k_scale + cell * kPage + offset : nullptr);
      write_head(cache.v_type, v + r * v_stride + int64_t(h) * dim, dim, cache.v, (cell * kPage + offset) * dim, 1,
                 cache.v_scale ? cache.v_scale + cell * kPage + offset : nullptr);
    }
  }
}

// `count` values of the cache as float32
static void widen(CacheType type, const void* from, int64_t at, int count, float* to) {
  if (type == CacheType::F32) std::memcpy(to, static_cast<const float*>(from) + at, sizeof(float) * size_t(count));
  else if (type == CacheType::BF16) {
    const uint16_t* p = static_cast<const uint16_t*>(from) + at;
    int i = 0;
    for (; i + 16 <= count; i += 16) store(to + i, load_bf16(p + i));
    for (; i < count; i++) { const uint32_t b = uint32_t(p[i]) << 16; std::memcpy(to + i, &b, 4); }
  } else {
    const int8_t* p = static_cast<const int8_t*>(from) + at;
    int i = 0;
    for (; i + 16 <= count; i += 16) store(to + i, load_i8(p + i));
    for (; i < count; i++) to[i] = float(p[i]);
  }
}

// s[r][0..32) = sum over d of q[r][d] * k[d][0..32), d ascending
template <int R>
static inline void score_rows(const float* const* q, const float* k, int dim, float* s) {
  for (int half = 0; half < kPage; half += 16) {
    f32x16 acc[R];
    for (int r = 0; r < R; r++) acc[r] = zero();
    for (int d = 0; d < dim; d++) {
      const f32x16 lane = load(k + d * kPage + half);
      for (int r = 0; r < R; r++) acc[r] = fmadd(set1(q[r][d]), lane, acc[r]);
    }
    for (int r = 0; r < R; r++) store(s + r * kPage + half, acc[r]);
  }
}

// o[r][0..dim) = o[r] * alpha[r] + sum over t < tokens of p[r][t] * v[t], t ascending; o has rows of `stride`
template <int R>
static inline void mix_rows(const float* p, const float* alpha, const float* v, int dim, int tokens, float* o, int64_t stride) {
  for (int d = 0; d < dim; d += 16) {
    const int n = dim - d < 16 ? dim - d : 16;
    f32x16 acc[R];
    for (int r = 0; r < R; r++) acc[r] = mul(load(o + r * stride + d), set1(alpha[r]));
    for (int t = 0; t < tokens; t++) {
      const f32x16 value = n == 16 ? load(v + t * dim + d) : load_n(v + t * dim + d, n);
      for (int r = 0; r < R; r++) acc[r] = fmadd(set1(p[r * kPage + t]), value, acc[r]);
    }
    for (int r = 0; r < R; r++) store(o + r * stride + d, acc[r]);
  }
}

template <template <int> class F, class... A>
static inline void by_rows(int rows, A... args) {
  switch (rows) {
    case 1: F<1>::go(args...); break;
    case 2: F<2>::go(args...); break;
    case 3: F<3>::go(args...); break;
    case 4: F<4>::go(args...); break;
    case 5: F<5>::go(args...); break;
    default: F<6>::go(args...); break;
  }
}
template <int R> struct Score { static void go(const float* const* q, const float* k, int dim, float* s) { score_rows<R>(q, k, dim, s); } };
template <int R> struct Mix {
  static void go(const float* p, const float* alpha, const float* v, int dim, int tokens, float* o, int64_t stride) { mix_rows<R>(p, alpha, v, dim, tokens, o, stride); }
};

static inline int group_of(const AttentionCall& c) { return c.heads / c.cache->kv_heads; }
static inline int block_tokens(const AttentionCall& c) { const int g = group_of(c); return g >= kBlockRows ? 1 : kBlockRows / g; }
static inline int padded_dim(const AttentionCall& c) { return (c.cache->head_dim + 15) / 16 * 16; }

int attention_items(const AttentionCall& call) {
  const Step& step = *call.step;
  const int block = block_tokens(call);
  int items = 0;
  for (int s = 0; s < step.sequences; s++) items += (step.starts[s + 1] - step.starts[s] + block - 1) / block;
  return items * call.cache->kv_heads;
}

size_t attention_scratch_bytes(const AttentionCall& call) {
  const size_t rows = size_t(block_tokens(call)) * size_t(group_of(call)), dim = size_t(padded_dim(call));
  return sizeof(float) * (rows * dim + rows * kPage + 3 * rows + 2 * kPage * dim) + sizeof(float*) * rows + 256;
}

void attention(const AttentionCall& call, int item, void* scratch) {
  const Step& step = *call.step;
  const CacheLayer& cache = *call.cache;
  const int group = group_of(call), block = block_tokens(call), dim = cache.head_dim, wide = padded_dim(call);
  // Item -> (sequence, block of query tokens, kv head); neighbours share a sequence's pages
  const int head = item % cache.kv_heads;
  int which = item / cache.kv_heads, s = 0;
  for (;; s++) {
    const int blocks = (step.starts[s + 1] - step.starts[s] + block - 1) / block;
    if (which < blocks) break;
    which -= blocks;
  }
  const int first = step.starts[s] + which * block, last = first + block < step.starts[s + 1] ? first + block : step.starts[s + 1];
  const int rows = (last - first) * group;
  const int base = step.lengths[s] - (step.starts[s + 1] - step.starts[s]) - step.starts[s];  // row -> position of its token

  float* o = static_cast<float*>(scratch);
  float* p = o + int64_t(rows) * wide;
  float* best = p + int64_t(rows) * kPage;
  float* sum = best + rows;
  float* alpha = sum + rows;
  float* keys = alpha + rows;
  keys = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(keys) + 63) & ~uintptr_t(63));
  float* values = keys + int64_t(kPage) * wide;
  const float** q = reinterpret_cast<const float**>(values + int64_t(kPage) * wide);
  for (int r = 0; r < rows; r++) {
    best[r] = -INFINITY;
    sum[r] = 0.f;
    q[r] = call.q + int64_t(first + r / group) * call.q_stride + int64_t(head * group + r % group) * dim;
  }
  std::memset(o, 0, sizeof(float) * size_t(rows) * size_t(wide));

  const int newest = base + last - 1;                                     // position of the last query token
  const int oldest = call.window > 0 && base + first - call.window + 1 > 0 ? base + first - call.window + 1 : 0;
  const f32x16 factor = set1(call.scale);
  for (int page = oldest / kPage; page <= newest / kPage; page++) {
    const int64_t cell = int64_t(step.tables[int64_t(s) * step.table_stride + page]) * cache.kv_heads + head;
    const int start = page * kPage;
    const int tokens = step.lengths[s] - start < kPage ? step.lengths[s] - start : kPage;  // written ones; the rest is stale
    const float* k = keys;
    const float* v = values;
    if (cache.k_type == CacheType::F32) k = static_cast<const float*>(cache.k) + cell * dim * kPage;
    else widen(cache.k_type, cache.k, cell * dim * kPage, dim * kPage, keys);
    if (cache.v_type == CacheType::F32) v = static_cast<const float*>(cache.v) + cell * dim * kPage;
    else widen(cache.v_type, cache.v, cell * dim * kPage, dim * tokens, values);

    for (int r0 = 0; r0 < rows; r0 += kRows) {
      const int n = rows - r0 < kRows ? rows - r0 : kRows;
      by_rows<Score>(n, q + r0, k, dim, p + int64_t(r0) * kPage);
    }
    for (int r = 0; r < rows; r++) {
      const int position = base + first + r / group;
      float* row = p + int64_t(r) * kPage;
      int high = position - start + 1, low = call.window > 0 ? position - call.window + 1 - start : 0;  // visible lanes [low, high)
      if (high > kPage) high = kPage;
      if (low < 0) low = 0;
      alpha[r] = 1.f;
      if (low >= high) {  // nothing of this page: the row's state stays as it is
        std::memset(row, 0, sizeof(float) * kPage);
        continue;
      }
      f32x16 a = mul(load(row), factor), b = mul(load(row + 16), factor);
      if (cache.k_type == CacheType::I8) { a = mul(a, load(cache.k_scale + cell * kPage)); b = mul(b, load(cache.k_scale + cell * kPage + 16)); }
      if (call.softcap > 0.f) {
        const f32x16 cap = set1(call.softcap), inverse = set1(1.f / call.softcap);
        a = mul(cap, tanh(mul(a, inverse)));
        b = mul(cap, tanh(mul(b, inverse)));
      }
      store(row, a);
      store(row + 16, b);
      for (int t = 0; t < low; t++) row[t] = -INFINITY;
      for (int t = high; t < kPage; t++) row[t] = -INFINITY;
      a = load(row);
      b = load(row + 16);
      float top = reduce_max(max(a, b));
      if (best[r] > top) top = best[r];
      const f32x16 shift = set1(top);
      store(row, exp(sub(a, shift)));
      store(row + 16, exp(sub(b, shift)));
      for (int t = 0; t < low; t++) row[t] = 0.f;
      for (int t = high; t < kPage; t++) row[t] = 0.f;
      a = load(row);
      b = load(row + 16);
      if (best[r] != top) {
        if (sum[r] > 0.f) { float lane[16]; store(lane, exp(set1(best[r] - top))); alpha[r] = lane[0]; }
        best[r] = top;
      }
      sum[r] = sum[r] * alpha[r] + reduce_add(add(a, b));
      if (cache.v_type == CacheType::I8) {
        const int written = high;  // scales behind it may be stale
        store(row, mul(a, load_n(cache.v_scale + cell * kPage, written)));
        store(row + 16, mul(b, load_n(cache.v_scale + cell * kPage + 16, written - 16)));
      }
    }
    for (int r0 = 0; r0 < rows; r0 += kRows) {
      const int n = rows - r0 < kRows ? rows - r0 : kRows;
      by_rows<Mix>(n, p + int64_t(r0) * kPage, alpha + r0, v, dim, tokens, o + int64_t(r0) * wide, int64_t(wide));
    }
  }
  for (int r = 0; r < rows; r++) {
    float* y = call.y + int64_t(first + r / group) * call.y_stride + int64_t(head * group + r % group) * dim;
    const f32x16 inverse = set1(1.f / sum[r]);
    for (int d = 0; d < dim; d += 16) store_n(y + d, mul(load(o + int64_t(r) * wide + d), inverse), dim - d < 16 ? dim - d : 16);
  }
}
