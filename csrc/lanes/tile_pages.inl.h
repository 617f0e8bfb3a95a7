// What attention does to one page of the cache, on tile registers of bfloat16: as pages.inl.h, for caches that bfloat16 holds exactly (BF16, I8).
// Queries and weights are float32: each is split into a bfloat16 and what is left of it, again a bfloat16, so that 2^-18 is lost and a product costs
// two instructions. A row's sums depend on nothing but the row, whatever the tile's height, so results are the same alone and in company.

constexpr int kDimStep = 32;    // head dimensions are padded to this
constexpr int kSpan = 4 * kPage;  // tokens between two looks at the maximum
enum { kSum, kSumRest, kRow, kRowRest, kPair };  // tile registers; Rest: as many rows as a block has beyond a multiple of 16

static thread_local int tile_rest = 0;  // rows of the Rest registers now; 0: tiles are not configured

static void shape_tiles(int rows) {
  const int rest = rows % 16 ? rows % 16 : 16;
  if (rest == tile_rest) return;
  TileConfig config;
  for (int t = kSum; t <= kPair; t++) {
    config.rows[t] = uint8_t(t == kSumRest || t == kRowRest ? rest : 16);
    config.bytes[t] = 64;
  }
  tiles_configure(config);
  tile_rest = rest;
}
static void end_pages() {
  if (tile_rest) tiles_release();
  tile_rest = 0;
}

static inline bool few_rows(int rows, int) { return rows <= 16; }

// A row of queries, `wide` floats long, as [wide] bfloat16 and [wide] of what is left
static void lay_out(const AttentionCall& c, const float* from, int64_t head, int token, int lane, int dim, float* rows, int row, int) {
  const int wide = (dim + kDimStep - 1) / kDimStep * kDimStep;
  const float* q = from + int64_t(token) * c.q_stride + (head * group_of(c) + lane) * dim;
  uint16_t* high = reinterpret_cast<uint16_t*>(rows + int64_t(row) * wide);
  for (int d = 0; d < wide; d += 16) {
    split16(load_n(q + d, dim - d < 16 ? dim - d : 16), high + d, high + wide + d);  // beyond dim: zeros
  }
}

// Rows [0, count) of a page, `width` numbers each and `stride` apart, as tiles [row pairs / 16][width / 16][16 pairs][16 columns][2]; what is missing to
// whole tiles is zero
template <class T>
static void pair_rows(const T* page, int count, int width, int64_t stride, uint32_t* tiles) {
  const int columns = (width + 15) / 16;
  const T none[16] = {};
  for (int row = 0; row < (count + 31) / 32 * 32; row += 2)
    for (int c = 0; c < columns; c++) {
      const T* at[2];
      T part[2][16] = {};
      for (int i = 0; i < 2; i++) {
        at[i] = row + i < count ? page + (row + i) * stride + 16 * c : none;
        if (row + i < count && 16 * c + 16 > width) {
          std::memcpy(part[i], at[i], sizeof(T) * size_t(width - 16 * c));
          at[i] = part[i];
        }
      }
      pair16(at[0], at[1], tiles + ((row / 32) * columns + c) * 256 + row / 2 % 16 * 16);
    }
}

template <int Sum, int Row> static inline void score_tile(const char* q, int64_t row_bytes, const uint32_t* keys, int depth, float* p) {
  for (int half = 0; half < 2; half++) {
    tile_zero<Sum>();
    for (int d = 0; d < depth; d++) {
      tile_load<kPair>(keys + (2 * d + half) * 256, 64);
      tile_load<Row>(q + 64 * d, row_bytes);
      tile_dot_bf16<Sum, Row, kPair>();
      tile_load<Row>(q + row_bytes / 2 + 64 * d, row_bytes);
      tile_dot_bf16<Sum, Row, kPair>();
    }
    tile_store<Sum>(p + 16 * half, kSpan * 4);
  }
}
template <int Sum, int Row> static inline void mix_tile(const float* p, const uint32_t* values, int columns, float* o, int64_t row_bytes) {
  for (int c = 0; c < columns; c++) {
    tile_load<Sum>(o + 16 * c, row_bytes);
    tile_load<kPair>(values + 256 * c, 64);
    tile_load<Row>(p, kSpan * 4);
    tile_dot_bf16<Sum, Row, kPair>();
    tile_load<Row>(p + 16, kSpan * 4);
    tile_dot_bf16<Sum, Row, kPair>();
    tile_store<Sum>(o + 16 * c, row_bytes);
  }
}

static void score_page(const AttentionCall& c, const Walk& w, int64_t cell, int rows, const float* q, float* p, bool) {
  const CacheLayer& cache = *c.cache;
  const int dim = cache.head_dim, wide = (dim + kDimStep - 1) / kDimStep * kDimStep;
  uint32_t* tiles = reinterpret_cast<uint32_t*>(w.keys);
  const int64_t offset = cell * dim * kPage;
  if (cache.k_type == CacheType::BF16) pair_rows(static_cast<const uint16_t*>(cache.k) + offset, dim, kPage, kPage, tiles);
  else pair_rows(static_cast<const int8_t*>(cache.k) + offset, dim, kPage, kPage, tiles);
  shape_tiles(rows);
  for (int r = 0; r < rows; r += 16) {
    const char* from = reinterpret_cast<const char*>(q + int64_t(r) * wide);
    if (r + 16 <= rows) score_tile<kSum, kRow>(from, wide * 4, tiles, wide / 32, p + int64_t(r) * kSpan);
    else score_tile<kSumRest, kRowRest>(from, wide * 4, tiles, wide / 32, p + int64_t(r) * kSpan);
  }
}

// The weights of the page are overwritten by their halves
static void mix_page(const AttentionCall& c, const Walk& w, int64_t cell, int row, int rows, float* p, int tokens, bool opens, bool) {
  const CacheLayer& cache = *c.cache;
  const int dim = cache.head_dim, wide = (dim + kDimStep - 1) / kDimStep * kDimStep;
  uint32_t* tiles = reinterpret_cast<uint32_t*>(w.values);
  const int64_t offset = cell * dim * kPage;
  if (cache.v_type == CacheType::BF16) pair_rows(static_cast<const uint16_t*>(cache.v) + offset, tokens, dim, dim, tiles);
  else pair_rows(static_cast<const int8_t*>(cache.v) + offset, tokens, dim, dim, tiles);
  float* o = w.o + int64_t(row) * wide;
  for (int r = 0; r < rows; r++) {
    uint16_t halves[2 * kPage];
    float* mine = p + int64_t(r) * kSpan;
    split16(load(mine), halves, halves + kPage);
    split16(load(mine + 16), halves + 16, halves + kPage + 16);
    std::memcpy(mine, halves, sizeof(halves));
    if (opens && w.alpha[row + r] != 1.f)
      for (int d = 0; d < wide; d += 16) store(o + int64_t(r) * wide + d, mul(load(o + int64_t(r) * wide + d), set1(w.alpha[row + r])));
  }
  shape_tiles(rows);
  for (int r = 0; r < rows; r += 16) {
    float* at = o + int64_t(r) * wide;
    if (r + 16 <= rows) mix_tile<kSum, kRow>(p + int64_t(r) * kSpan, tiles, (dim + 15) / 16, at, wide * 4);
    else mix_tile<kSumRest, kRowRest>(p + int64_t(r) * kSpan, tiles, (dim + 15) / 16, at, wide * 4);
  }
}
