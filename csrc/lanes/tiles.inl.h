// Linear layers with int8 activations on tile registers: the same sums as linear.inl.h, to the bit. Included after it, in a namespace that also has
// tiles.h (tile registers) and tile_bytes (nibbles to bytes). 64 k of a panel are one tile as they lie (Codes8) or once unpacked (Codes4).
//
// Work is cut into pieces: 16 rows x one panel x the k of one run (at most a chunk). A piece is summed in a tile, stored, and added to sixteen float
// accumulators in registers. Between the store and the addition lie kLag other pieces: a tile takes some 50 cycles from its last product to memory,
// and stored tiles are not forwarded to loads. So two streams walk over the same pieces, one kLag ahead of the other:
//   TileStream multiplies; while it is at the first rows of a chunk it also unpacks the next chunk, so that a tile is never loaded right after
//   its bytes were stored; tile_unit scales and adds.
// Order: pair of panels > chunk of k > 16 rows > panel > piece. A chunk of two panels stays in L1, the activations of a block of rows in L2.

constexpr int kLag = 3;                   // pieces between a product and its use
constexpr int kSlots = 4;                 // stored tiles: more than kLag
constexpr int kTileSpan = 512;            // K of a chunk at most
constexpr int kTileRows = 512;            // rows of a block at most
constexpr int kTileBytes = 1 << 20;       // activations of a block: half of an L2 cache
constexpr int kTileFactors = 1 << 15;     // scales of a block
constexpr int kMostPieces = 2048;
constexpr int kTilesFrom = 4;             // rows from which tiles are the usual kernel: by count of instructions, see LOG

struct Piece {
  int k, end;                 // [k, end)
  int steps;                  // tiles
  int group;                  // of the weight's scales
  int factors;                // where in TileScratch::factors the block's rows start
  bool opens, closes, whole;  // first, last of its run; both
};
struct TileScratch {
  alignas(64) uint8_t bytes[2][2][kTileSpan * kPanel];   // two chunks of two panels
  alignas(64) int32_t slots[kSlots][16 * kPanel];
  alignas(64) int32_t partial[2][kTileRows * kPanel];    // of runs longer than a chunk
  alignas(64) float totals[2][kTileRows * kPanel];
  alignas(64) float factors[kTileFactors];               // activation scales [group][row]
  alignas(64) float sums[kTileFactors];                  // sums of activations [piece][row], for zeros
  Piece pieces[kMostPieces];
  int chunks[kMostPieces + 1];                           // first piece of each chunk
};

static bool tiles_support(const Packed& w, int in_group, int) {
  return in_group > 0 && w.meets_ints() && w.store != Store::Trellis && w.kpad <= kMostPieces * kSumBlock;
}

// What both streams know
struct TileWork {
  const LinearCall& call;
  const Packed& w;
  TileScratch& s;
  const Runs runs;
  int panel0, panel1, half;    // pairs: panel0 + i and panel0 + half + i, two distant streams of weights
  int row0, rows, row_tiles;   // the block
  int padded;                  // rows of factors and sums
  int depth;                   // k of a tile: 64, or 32 when runs are no multiples of 64
  int pieces, chunks;

  TileWork(const LinearCall& c, int first, int last, TileScratch& scratch)
      : call(c), w(*c.w), s(scratch), runs(*c.w, c.in), panel0(first), panel1(last), half((last - first + 1) / 2) {
    const int most = w.store == Store::Codes4 ? kChunk : w.kpad;  // where linear.inl.h goes to floats, besides ends of runs
    const int span = runs.size > kTileSpan / 2 ? kTileSpan : kTileSpan / 2;
    pieces = chunks = 0;
    depth = kStep;
    for (int k = 0; k < w.kpad;) {
      const int run_end = (k / runs.size + 1) * runs.size, most_end = (k / most + 1) * most, chunk_end = (k / span + 1) * span;
      int close = run_end < most_end ? run_end : most_end;
      if (close > w.kpad) close = w.kpad;
      if (k % span == 0) s.chunks[chunks++] = pieces;
      Piece& p = s.pieces[pieces];
      p.k = k;
      p.end = close < chunk_end ? close : chunk_end;
      p.group = weight_group_at(w, runs, k);
      p.opens = pieces == 0 || s.pieces[pieces - 1].closes;
      p.closes = p.end == close;
      p.whole = p.opens && p.closes;
      if (p.k % kStep || p.end % kStep) depth = kSumBlock;
      k = p.end;
      pieces++;
    }
    s.chunks[chunks] = pieces;
    for (int i = 0; i < pieces; i++) s.pieces[i].steps = (s.pieces[i].end - s.pieces[i].k) / depth;
  }
  int pairs() const { return half; }
  int panels_of(int pair) const { return panel0 + half + pair < panel1 ? 2 : 1; }
  int panel_of(int pair, int p) const { return panel0 + pair + p * half; }
  const uint8_t* values(int pair, int p) const { return w.data + size_t(panel_of(pair, p)) * w.panel_bytes + w.values_offset; }
  int chunk_start(int chunk) const { return chunk < chunks ? s.pieces[s.chunks[chunk]].k : w.kpad; }

  // Rows [first, first + count) and what the scales of their pieces are, turned so that a tile's rows lie side by side
  void block(int first, int count) {
    row0 = first;
    rows = count;
    row_tiles = (count + 15) / 16;
    padded = row_tiles * 16;
    const Activations& in = call.in;
    for (int i = 0; i < pieces; i++) s.pieces[i].factors = s.pieces[i].k / runs.in_group * padded;
    if (runs.in_varies)
      for (int g = 0; g < in.groups; g++)
        for (int r = 0; r < rows; r++) s.factors[g * padded + r] = in.scale[int64_t(row0 + r) * in.groups + g];
    if (w.has_zeros) {
      int start = 0;
      for (int i = 0; i < pieces; i++) {
        if (s.pieces[i].opens) start = s.pieces[i].k;
        if (!s.pieces[i].closes) continue;
        for (int r = 0; r < rows; r++)
          s.sums[i * padded + r] = float(block_sum(in, row0 + r, w.kpad / kSumBlock, start / kSumBlock, s.pieces[i].end / kSumBlock));
      }
    }
    TileConfig config;
    auto shape = [&](int t, int height, int width) {
      config.rows[t] = uint8_t(height);
      config.bytes[t] = uint16_t(width);
    };
    const int rest = rows % 16 ? rows % 16 : 16;
    shape(kC0, 16, 64);
    shape(kC1, 16, 64);
    shape(kA0, 16, depth);
    shape(kA1, 16, depth);
    shape(kB0, depth / 4, 64);
    shape(kB1, depth / 4, 64);
    shape(kCRest, rest, 64);
    shape(kARest, rest, depth);
    tiles_configure(config);
  }
  enum { kC0, kC1, kCRest, kARest, kA0, kA1, kB0, kB1 };
};

// Bytes of Codes4 k [k, end) of a panel, from `k` on at `out`
static inline void tile_unpack(const Packed& w, const uint8_t* values, int k, int end, uint8_t* out) {
  for (; k < end; k += kStep, out += kStep * kPanel) {
    const uint8_t* at = values + size_t(k) * (kPanel / 2);
    const bool centered = w.meaning == Meaning::Int && !w.has_zeros;
    for (int j = 0; j < 8; j++) {
      prefetch(at + 4096 + j * 64);
      if (centered) tile_bytes<true>(at + j * 64, out + j * 64, out + (8 + j) * 64);
      else tile_bytes<false>(at + j * 64, out + j * 64, out + (8 + j) * 64);
    }
    if (w.meaning == Meaning::Table) look_up(w.table8, out, kStep * kPanel);
  }
}

class TileStream {
 public:
  explicit TileStream(const TileWork& work) : t_(work), small_(work.w.store == Store::Codes4) {
    if (t_.pairs() == 0) { done_ = true; return; }
    if (small_)
      for (int p = 0; p < t_.panels_of(0); p++) tile_unpack(t_.w, t_.values(0, p), 0, t_.chunk_start(1), t_.s.bytes[0][p]);
    enter_chunk();
  }
  // Multiplies the next piece into its slot, if there is one
  inline __attribute__((always_inline)) void step() {
    if (done_) return;
    int32_t* slot = t_.s.slots[slot_];
    const int steps = piece_->steps;
    if (rest_) product<TileWork::kCRest, TileWork::kARest, TileWork::kARest>(steps, slot);
    else if (slot_ & 1) product<TileWork::kC1, TileWork::kA0, TileWork::kA1>(steps, slot);
    else product<TileWork::kC0, TileWork::kA0, TileWork::kA1>(steps, slot);
    if (tile_ == 0) ahead();
    slot_ = (slot_ + 1) % kSlots;
    if (++piece_ == last_) next();
  }
  // The sums of the pieces, in the order they were multiplied: int32 [16 rows][16]
  inline __attribute__((always_inline)) int32_t* take() {
    int32_t* slot = t_.s.slots[taken_];
    taken_ = (taken_ + 1) % kSlots;
    return slot;
  }

 private:
  template <int C, int A, int A2> inline __attribute__((always_inline)) void product(int steps, int32_t* slot) {
    const int64_t stride = t_.w.kpad, depth = t_.depth;
    const int8_t* a = a_;
    const uint8_t* b = b_;
    tile_zero<C>();
    for (; steps > 1; steps -= 2, a += 2 * depth, b += 2 * kPanel * depth) {
      tile_load<A>(a, stride);
      tile_load<TileWork::kB0>(b, 64);
      tile_dot<C, A, TileWork::kB0>();
      tile_load<A2>(a + depth, stride);
      tile_load<TileWork::kB1>(b + kPanel * depth, 64);
      tile_dot<C, A2, TileWork::kB1>();
    }
    if (steps) {
      tile_load<A>(a, stride);
      tile_load<TileWork::kB0>(b, 64);
      tile_dot<C, A, TileWork::kB0>();
      a += depth;
      b += kPanel * depth;
    }
    a_ = a;
    b_ = b;
    tile_store<C>(slot, 64);
  }
  // Unpacks of the next chunk as much as has been multiplied of this one
  inline __attribute__((always_inline)) void ahead() {
    if (panel_ >= next_panels_) return;
    const int want = piece_ + 1 == last_ ? next_end_ : piece_->end - from_ + next_from_, end = (want < next_end_ ? want : next_end_) / kStep * kStep;
    const uint8_t* values = t_.values(next_pair_, panel_);
    if (small_) {
      if (ready_ < end) tile_unpack(t_.w, values, ready_, end, t_.s.bytes[1 - side_][panel_] + size_t(ready_ - next_from_) * kPanel);
      ready_ = end > ready_ ? end : ready_;
    } else {
      for (; ready_ < end; ready_ += 4) prefetch(values + size_t(ready_) * kPanel);
    }
  }
  void enter_chunk() {
    from_ = t_.chunk_start(chunk_);
    first_ = t_.s.pieces + t_.s.chunks[chunk_];
    last_ = t_.s.pieces + t_.s.chunks[chunk_ + 1];
    panels_ = t_.panels_of(pair_);
    const bool over = chunk_ + 1 == t_.chunks;
    next_pair_ = over ? pair_ + 1 : pair_;
    next_panels_ = next_pair_ < t_.pairs() ? t_.panels_of(next_pair_) : 0;
    next_from_ = over ? 0 : t_.chunk_start(chunk_ + 1);
    next_end_ = over ? t_.chunk_start(1) : t_.chunk_start(chunk_ + 2);
    enter_tile(0);
  }
  void enter_tile(int tile) {
    tile_ = tile;
    rest_ = tile * 16 + 16 > t_.rows;
    activations_ = t_.call.in.q + int64_t(t_.row0 + tile * 16) * t_.w.kpad + from_;
    enter_panel(0);
  }
  void enter_panel(int panel) {
    panel_ = panel;
    piece_ = first_;
    ready_ = next_from_;
    a_ = activations_;
    b_ = small_ ? t_.s.bytes[side_][panel] : t_.values(pair_, panel) + size_t(from_) * kPanel;
  }
  __attribute__((noinline)) void next() {
    if (panel_ + 1 < panels_) return enter_panel(panel_ + 1);
    if (tile_ + 1 < t_.row_tiles) return enter_tile(tile_ + 1);
    // A pair of one panel is the last: nothing that follows it has more panels to unpack
    side_ = 1 - side_;
    if (++chunk_ == t_.chunks) {
      chunk_ = 0;
      if (++pair_ == t_.pairs()) { done_ = true; return; }
    }
    enter_chunk();
  }

  const TileWork& t_;
  const bool small_;
  bool done_ = false, rest_ = false;
  int pair_ = 0, chunk_ = 0, tile_ = 0, panel_ = 0, side_ = 0;
  unsigned slot_ = 0, taken_ = 0;
  int from_ = 0, panels_ = 0, next_pair_ = 0, next_panels_ = 0, next_from_ = 0, next_end_ = 0, ready_ = 0;
  const Piece *first_ = nullptr, *piece_ = nullptr, *last_ = nullptr;
  const uint8_t* b_ = nullptr;
  const int8_t *a_ = nullptr, *activations_ = nullptr;
};

// What a run's sums are multiplied by, as run_factor: the weight's scale, the row's, or both. Zeros: any of these, and zeros.
enum class Factor { Weight, Row, Both, Zeros };

// Adds the pieces of one chunk of one panel to R of 16 rows, keeping the stream kLag pieces ahead. Every loop over `total` is unrolled: else gcc
// leaves the sixteen accumulators in memory.
template <int R, Factor F>
static __attribute__((noinline)) void tile_unit(const TileWork& t, TileStream& stream, int pair, int p, int chunk, int tile) {
  const Packed& w = t.w;
  TileScratch& s = t.s;
  const int panel = t.panel_of(pair, p);
  const uint8_t* base = w.data + size_t(panel) * w.panel_bytes;
  float* kept = s.totals[p] + tile * 16 * kPanel;
  int32_t* partial = s.partial[p] + tile * 16 * kPanel;
  f32x16 total[R];
  if (chunk == 0) {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) total[r] = zero();
  } else {
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) total[r] = load(kept + r * kPanel);
  }
  const Piece* const last = s.pieces + s.chunks[chunk + 1];
  for (const Piece* piece = s.pieces + s.chunks[chunk]; piece < last; piece++) {
    stream.step();
    int32_t* sums = stream.take();
    if (!piece->whole) {
      if (!piece->opens)
        for (int j = 0; j < R * kPanel; j++) sums[j] += partial[j];
      if (!piece->closes) {
        std::memcpy(partial, sums, sizeof(int32_t) * R * kPanel);
        continue;
      }
    }
    const f32x16 scale = F == Factor::Row || (F == Factor::Zeros && !t.runs.weight_varies) ? zero() : load_scales(w, base, piece->group);
    const float* mine = s.factors + piece->factors + tile * 16;
    if (F == Factor::Zeros) {
      const f32x16 zeros = load_zeros(w, base, piece->group);
      const float* counts = s.sums + (piece - s.pieces) * t.padded + tile * 16;
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        const f32x16 value = sub(load_i32(sums + r * kPanel), mul(zeros, set1(counts[r])));
        total[r] = fmadd(value, !t.runs.in_varies ? scale : t.runs.weight_varies ? mul(scale, set1(mine[r])) : set1(mine[r]), total[r]);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < R; r++)
        total[r] = fmadd(load_i32(sums + r * kPanel), F == Factor::Weight ? scale : F == Factor::Row ? set1(mine[r]) : mul(scale, set1(mine[r])), total[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) store(kept + r * kPanel, total[r]);
  if (chunk + 1 < t.chunks) return;
  const f32x16 unit = set1(w.meaning == Meaning::Table ? w.table8_unit : 1.f);
  for (int r = 0; r < R && tile * 16 + r < t.rows; r++) {
    const int row = t.row0 + tile * 16 + r;
    const f32x16 y = mul(load(kept + r * kPanel), row_factor(w, base, t.call.in, t.runs, row));
    finish(t.call, panel, row, w.store == Store::Codes4 ? mul(y, unit) : y);
  }
}
template <Factor F> static void tile_units(const TileWork& t) {
  TileStream stream(t);
  for (int i = 0; i < kLag; i++) stream.step();
  for (int pair = 0; pair < t.pairs(); pair++)
    for (int chunk = 0; chunk < t.chunks; chunk++)
      for (int tile = 0; tile < t.row_tiles; tile++)
        for (int p = 0; p < t.panels_of(pair); p++) {
          const int rows = t.rows - tile * 16;
          if (rows > 8) tile_unit<16, F>(t, stream, pair, p, chunk, tile);
          else if (rows > 4) tile_unit<8, F>(t, stream, pair, p, chunk, tile);
          else tile_unit<4, F>(t, stream, pair, p, chunk, tile);
        }
}

static void linear_tiles(const LinearCall& call, int panel0, int panel1, void* scratch) {
  TileWork work(call, panel0, panel1, *static_cast<TileScratch*>(scratch));
  const int lines = work.runs.in_varies || call.w->has_zeros ? (work.pieces > call.in.groups ? work.pieces : call.in.groups) : 1;
  int most = kTileRows;
  if (most > kTileBytes / call.w->kpad) most = kTileBytes / call.w->kpad;
  if (most > kTileFactors / lines) most = kTileFactors / lines;
  most = most < 16 ? 16 : most / 16 * 16;
  for (int row0 = 0; row0 < call.in.rows; row0 += most) {
    work.block(row0, call.in.rows - row0 < most ? call.in.rows - row0 : most);
    if (call.w->has_zeros) tile_units<Factor::Zeros>(work);
    else if (!work.runs.in_varies) tile_units<Factor::Weight>(work);
    else if (!work.runs.weight_varies) tile_units<Factor::Row>(work);
    else tile_units<Factor::Both>(work);
  }
  tiles_release();
}
