// Rounding in the order of inputs (lattice.h): a part of lattice.inl.h, included there alone.

constexpr int kVectors = 3, kRows = 16 * kVectors;  // rows worked on together
constexpr int kSpan = 128;                          // inputs whose changes are passed on together
constexpr int kChunk = 16;                          // of a span, inputs whose changes are passed on together inside it
constexpr int kTile = 2;                            // inputs that receive them together: kTile * kVectors sums stay in registers

// Rows [row, row + count), count <= kRows
struct Strip {
  const Lattice& l;
  const LatticeGrid& g;
  int64_t row;
  int count;
  float* pull;                             // [k][kRows]
  alignas(64) float delta[kSpan][kRows];   // what the inputs of a span lost: was - is
  alignas(64) float value[kRows], size[kRows];

  Strip(const Lattice& lattice, const LatticeGrid& grid, int64_t first, int many, float* memory) : l(lattice), g(grid), row(first), count(many), pull(memory) {}

  void get(const float* p, float* to) const {
    std::memcpy(to, p + row, size_t(count) * 4);
    std::fill(to + count, to + kRows, 0.f);
  }
  void sizes_of(int group) {
    for (int r = 0; r < kRows; r++) size[r] = r < count ? g.size_of(g.scales[group * g.rows + row + r]) : 1.f;
  }

  // to[i] += sum over j in [a, b) of matrix[first + i][start + j] * delta[j]. The order of j is ascending for every i.
  template <int Tile> void pass_on(float* to, int first, int start, int a, int b) const {
    f32x16 sum[Tile][kVectors];
    for (int t = 0; t < Tile; t++)
      for (int v = 0; v < kVectors; v++) sum[t][v] = load(to + t * kRows + 16 * v);
    const float* rows[Tile];
    for (int t = 0; t < Tile; t++) rows[t] = l.matrix + int64_t(first + t) * l.k + start;
    for (int j = a; j < b; j++) {
      f32x16 d[kVectors];
      for (int v = 0; v < kVectors; v++) d[v] = load(delta[j] + 16 * v);
      for (int t = 0; t < Tile; t++) {
        const f32x16 share = set1(rows[t][j]);
        for (int v = 0; v < kVectors; v++) sum[t][v] = fmadd(share, d[v], sum[t][v]);
      }
    }
    for (int t = 0; t < Tile; t++)
      for (int v = 0; v < kVectors; v++) store(to + t * kRows + 16 * v, sum[t][v]);
  }
  void pass_on_all(int first, int last, int start, int a, int b) const {
    int i = first;
    for (; i + kTile <= last; i += kTile) pass_on<kTile>(pull + int64_t(i) * kRows, i, start, a, b);
    for (; i < last; i++) pass_on<1>(pull + int64_t(i) * kRows, i, start, a, b);
  }

  void span(int start, int end) {
    int known = -1, chunk = 0;  // [chunk, at): of the span, inputs whose changes only the next input knows
    for (int i = start; i < end; i++) {
      const int at = i - start;
      if (at && at % kChunk == 0) {
        pass_on_all(i, end, start, chunk, at);
        chunk = at;
      }
      if (l.group[i] != known) sizes_of(known = l.group[i]);
      float* mine = pull + int64_t(i) * kRows;
      pass_on<1>(mine, i, start, chunk, at);
      alignas(64) float was[kRows], low[kRows], high[kRows];
      get(l.from + i * g.rows, was);
      for (int v = 0; v < kVectors; v++) store(value + 16 * v, div(add(load(mine + 16 * v), load(was + 16 * v)), load(size + 16 * v)));
      if (g.table) {
        for (int r = 0; r < kRows; r++) value[r] = nearest(g.table, g.entries, value[r]);
      } else {
        get(g.low + known * g.rows, low);
        get(g.high + known * g.rows, high);
        for (int v = 0; v < kVectors; v++) store(value + 16 * v, min(max(round(load(value + 16 * v)), load(low + 16 * v)), load(high + 16 * v)));
      }
      for (int r = 0; r < kRows; r++) delta[at][r] = r < count ? was[r] - value[r] * size[r] : 0.f;
      std::memcpy(l.values + l.place[i] * g.rows + row, value, size_t(count) * 4);
    }
    pass_on_all(end, l.k, start, 0, end - start);
  }

  void run() {
    std::fill(pull, pull + int64_t(l.k) * kRows, 0.f);
    for (int start = 0; start < l.k; start += kSpan) span(start, std::min(start + kSpan, l.k));
  }
};

static void round_all(const Lattice& l, const LatticeGrid& g) {
  const auto memory = std::make_unique<float[]>(size_t(l.k) * kRows + 16);
  float* aligned = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
  for (int64_t row = 0; row < g.rows; row += kRows) Strip(l, g, row, int(std::min<int64_t>(kRows, g.rows - row)), aligned).run();
}
