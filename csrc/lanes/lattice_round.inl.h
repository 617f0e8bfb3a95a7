// Rounding in the order of inputs (lattice.h): a part of lattice.inl.h, included there alone.

constexpr int kVectors = 3, kRows = 16 * kVectors;  // rows worked on together
constexpr int kSpan = 128;                          // inputs whose changes are passed on together
constexpr int kChunk = 16;                          // of a span, inputs whose changes are passed on together inside it
constexpr float kWorthwhile = 1e-3f;                // a new scale moves values by this many squared steps on average, or stays: rounding itself loses 1/12
constexpr int kTile = 2;                            // inputs that receive them together: kTile * kVectors sums stay in registers

// Rows [row, row + count), count <= kRows
struct Strip {
  const Lattice& l;
  const LatticeGrid& g;
  int64_t row;
  int count;
  float *pull, *from;                      // [k][kRows]
  alignas(64) float delta[kSpan][kRows];   // what the inputs of a span lost: was - is
  alignas(64) float own[kSpan][kRows];     // `pull` of a span, kept up to date inside it
  alignas(64) float value[kRows], size[kRows];
  int64_t moved = 0;

  Strip(const Lattice& lattice, const LatticeGrid& grid, int64_t first, int many, float* memory)
      : l(lattice), g(grid), row(first), count(many), pull(memory), from(memory + size_t(lattice.k) * kRows) {}

  void get(const float* p, float* to) const {
    std::memcpy(to, p + row, size_t(count) * 4);
    std::fill(to + count, to + kRows, 0.f);
  }
  void sizes_of(int group) {
    for (int r = 0; r < kRows; r++) size[r] = r < count ? g.size_of(g.scales[group * g.rows + row + r]) : 1.f;
  }

  // to[i] += sum over j of matrix[first + i][start + listed[j]] * delta[listed[j]]. The order of j is ascending for every i.
  template <int Tile> void pass_on(float* to, int first, int start, const int* listed, int many) const {
    f32x16 sum[Tile][kVectors];
    for (int t = 0; t < Tile; t++)
      for (int v = 0; v < kVectors; v++) sum[t][v] = load(to + t * kRows + 16 * v);
    const float* rows[Tile];
    for (int t = 0; t < Tile; t++) rows[t] = l.matrix + int64_t(first + t) * l.k + start;
    for (int at = 0; at < many; at++) {
      const int j = listed[at];
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
  void pass_on_all(float* to, int first, int last, int start, const int* listed, int many) const {
    if (!many) return;
    int i = first;
    for (; i + kTile <= last; i += kTile) pass_on<kTile>(to + int64_t(i - first) * kRows, i, start, listed, many);
    for (; i < last; i++) pass_on<1>(to + int64_t(i - first) * kRows, i, start, listed, many);
  }
  int changed(int width, int* listed) const {
    int many = 0;
    for (int j = 0; j < width; j++)
      if (std::any_of(delta[j], delta[j] + kRows, [](float x) { return x != 0.f; })) listed[many++] = j;
    return many;
  }

  // The best scale of a group [start, end) for its values, where the stored one is further from it; whether any changed. `mine` [end - start][kRows] is
  // its pull. Overwrites delta.
  bool refit(int start, int end, const float* mine) {
    alignas(64) float wanted[kRows] = {}, curved[kRows] = {}, squares[kRows] = {};
    int every[kSpan];
    const int group = l.group[start];
    for (int j = 0; j < kSpan; j++) every[j] = j;
    for (int a = start; a < end; a += kSpan) {
      const int width = std::min(kSpan, end - a);
      for (int j = 0; j < width; j++) {
        get(l.values + l.place[a + j] * g.rows, delta[j]);
        for (int r = 0; r < kRows; r++) {
          wanted[r] += delta[j][r] * mine[(a - start + j) * kRows + r];
          squares[r] += delta[j][r] * delta[j][r];
        }
      }
      for (int i = start; i < end; i += kTile) {  // what the group's values give together, met by the values again
        alignas(64) float met[kTile][kRows] = {}, v[kRows];
        const int many = std::min(kTile, end - i);
        pass_on_all(met[0], i, i + many, a, every, width);
        for (int t = 0; t < many; t++) {
          get(l.values + l.place[i + t] * g.rows, v);
          for (int r = 0; r < kRows; r++) curved[r] += v[r] * met[t][r];
        }
      }
    }
    bool any = false;
    for (int r = 0; r < count; r++) {
      const float step = curved[r] > 0.f ? wanted[r] / curved[r] : 0.f;
      float& scale = g.scales[group * g.rows + row + r];
      const float tried = stored(g, scale + step / g.outer), change = (tried - scale) * g.outer;
      const float share = change / g.size_of(scale);
      if (tried == 0.f || !(std::fabs(change - step) < std::fabs(step)) || share * share * squares[r] < kWorthwhile * float(end - start)) continue;
      scale = tried;
      any = true;
    }
    return any;
  }

  // After a scale has changed: delta of the group's inputs, whose values stay
  void follow(int start, int end) {
    alignas(64) float v[kRows];
    sizes_of(l.group[start]);
    for (int i = start; i < end; i++) {
      get(l.values + l.place[i] * g.rows, v);
      float* at = from + int64_t(i) * kRows;
      for (int r = 0; r < kRows; r++) {
        const float now = v[r] * size[r];
        delta[i - start][r] = at[r] - now;
        at[r] = now;
      }
    }
  }

  void span(int start, int end, bool fit) {
    int listed[kSpan], recent[kChunk];
    const int width = end - start;
    std::memcpy(own, pull + int64_t(start) * kRows, size_t(width) * sizeof own[0]);
    alignas(64) float fitted[kSpan][kRows];
    const bool fits = fit && refit(start, end, own[0]);
    if (fits) {
      follow(start, end);
      pass_on_all(own[0], start, end, start, listed, changed(width, listed));
      std::memcpy(fitted, delta, size_t(width) * sizeof delta[0]);
    }
    int known = -1, many = 0;
    for (int i = start; i < end; i++) {
      const int at = i - start;
      if (at && at % kChunk == 0) {
        pass_on_all(own[at], i, end, start, recent, many);
        many = 0;
      }
      if (l.group[i] != known) sizes_of(known = l.group[i]);
      pass_on<1>(own[at], i, start, recent, many);  // of those before it in its chunk that changed
      float* was = from + int64_t(i) * kRows;
      alignas(64) float change[kRows], low[kRows], high[kRows];
      const f32x16 alpha = set1(l.alpha[i]);
      for (int v = 0; v < kVectors; v++) store(value + 16 * v, div(add(mul(load(own[at] + 16 * v), alpha), load(was + 16 * v)), load(size + 16 * v)));
      if (g.table) {
        for (int r = 0; r < kRows; r++) value[r] = nearest(g.table, g.entries, value[r]);
      } else {
        get(g.low + known * g.rows, low);
        get(g.high + known * g.rows, high);
        for (int v = 0; v < kVectors; v++) store(value + 16 * v, min(max(round(load(value + 16 * v)), load(low + 16 * v)), load(high + 16 * v)));
      }
      bool any = false;
      for (int r = 0; r < kRows; r++) {
        const float now = value[r] * size[r];
        change[r] = r < count ? was[r] - now : 0.f;
        was[r] = now;
        any |= change[r] != 0.f;
      }
      std::memcpy(l.values + l.place[i] * g.rows + row, value, size_t(count) * 4);
      std::memcpy(delta[at], change, sizeof change);
      if (!any) continue;
      recent[many++] = at;
      moved += count - std::count(change, change + count, 0.f);
    }
    if (fits)
      for (int i = 0; i < width; i++)
        for (int r = 0; r < kRows; r++) delta[i][r] += fitted[i][r];
    const int last = changed(width, listed);
    if (l.triangular) pass_on_all(pull + int64_t(end) * kRows, end, l.k, start, listed, last);
    else pass_on_all(pull, 0, l.k, start, listed, last);
  }

  void run() {
    for (int i = 0; i < l.k; i++) {
      get(l.pull + i * g.rows, pull + int64_t(i) * kRows);
      get(l.from + i * g.rows, from + int64_t(i) * kRows);
    }
    for (int start = 0; start < l.k;) {
      int end = start + 1;
      if (l.refit) {
        while (end < l.k && l.group[end] == l.group[start]) end++;
        if (end - start > kSpan) {  // a long group: its scale first, then its inputs span after span
          int listed[kSpan];
          const bool fits = refit(start, end, pull + int64_t(start) * kRows);
          for (int a = start; fits && a < end; a += kSpan) {
            const int b = std::min(a + kSpan, end);
            follow(a, b);
            pass_on_all(pull, 0, l.k, a, listed, changed(b - a, listed));
          }
          for (int a = start; a < end; a += kSpan) span(a, std::min(a + kSpan, end), false);
        } else {
          span(start, end, true);
        }
      } else {
        end = std::min(start + kSpan, l.k);
        span(start, end, false);
      }
      start = end;
    }
    for (int i = 0; i < l.k; i++) {
      std::memcpy(l.pull + i * g.rows + row, pull + int64_t(i) * kRows, size_t(count) * 4);
      std::memcpy(l.from + i * g.rows + row, from + int64_t(i) * kRows, size_t(count) * 4);
    }
  }
};

static int64_t round_all(const Lattice& l, const LatticeGrid& g) {
  const auto memory = std::make_unique<float[]>(size_t(l.k) * kRows * 2 + 16);
  float* aligned = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) / 64 * 64);
  int64_t moved = 0;
  for (int64_t row = 0; row < g.rows; row += kRows) {
    Strip strip(l, g, row, int(std::min<int64_t>(kRows, g.rows - row)), aligned);
    strip.run();
    moved += strip.moved;
  }
  return moved;
}
