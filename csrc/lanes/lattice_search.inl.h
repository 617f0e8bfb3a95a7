// The search for scales (lattice.h): a part of lattice.inl.h, included there alone.

// Sixteen rows, or the first `count` of them, of one group of inputs [start, end)
struct Searched {
  const ScaleSearch& s;
  const LatticeGrid& g;
  int start, end;
  int64_t row;
  int count;

  f32x16 get(const float* p) const { return count == 16 ? load(p + row) : load_n(p + row, count); }

  // Of the values that a scale of `sizes` gives: sums of importance * value * weight and of importance * value^2
  void sums(const float* sizes, const float* low, const float* high, float* vw, float* vv) const {
    alignas(64) float inverse[16], scaled[16];
    for (int r = 0; r < 16; r++) inverse[r] = 1.f / sizes[r];
    f32x16 by_weight = zero(), by_value = zero();
    const f32x16 least = load(low), most = load(high), turned = load(inverse);
    for (int i = start; i < end; i++) {
      const f32x16 w = get(s.weight + i * g.rows);
      f32x16 v = mul(w, turned);
      if (g.table) {
        store(scaled, v);
        for (int r = 0; r < 16; r++) scaled[r] = nearest(g.table, g.entries, scaled[r]);
        v = load(scaled);
      } else {
        v = min(max(round(v), least), most);
      }
      const f32x16 weighted = mul(v, s.importance_stride ? get(s.importance + i * s.importance_stride) : set1(s.importance[i]));
      by_weight = fmadd(weighted, w, by_weight);
      by_value = fmadd(weighted, v, by_value);
    }
    store(vw, by_weight);
    store(vv, by_value);
  }

  void run(int group) const {
    alignas(64) float first[16] = {}, best[16], chosen[16], tried[16], sizes[16], low[16], high[16], vw[16], vv[16], least[16], most[16];
    float zero_first[16] = {}, zero_chosen[16] = {};
    const int64_t at = group * g.rows + row;
    std::memcpy(first, g.scales + at, size_t(count) * 4);
    if (s.zeros) {
      std::memcpy(zero_first, s.zeros + at, size_t(count) * 4);
      f32x16 smallest = zero(), largest = zero();
      for (int i = start; i < end; i++) {
        smallest = min(smallest, get(s.weight + i * g.rows));
        largest = max(largest, get(s.weight + i * g.rows));
      }
      store(least, smallest);
      store(most, largest);
    } else {
      store(low, get(g.low + group * g.rows));
      store(high, get(g.high + group * g.rows));
    }
    bool begun = false;
    for (int c = 0; c < s.ratio_count; c++) {
      for (int r = 0; r < 16; r++) {
        tried[r] = stored(g, first[r] * s.ratios[c]);
        sizes[r] = g.size_of(tried[r]);
      }
      for (int z = 0; z < (s.zeros ? s.zero_tries : 1); z++) {
        alignas(64) float zeros[16] = {};
        if (s.zeros) {
          for (int r = 0; r < 16; r++) {
            const float middle = (least[r] + most[r]) / 2 / (tried[r] == 0.f ? 1.f : tried[r]);
            const float centred = std::clamp(std::nearbyint(s.steps / 2 - middle), 0.f, s.steps);
            zeros[r] = std::clamp(centred + (z == 1 ? 1.f : z == 2 ? -1.f : 0.f), 0.f, s.steps);
            low[r] = -zeros[r];
            high[r] = s.steps - zeros[r];
          }
        }
        sums(sizes, low, high, vw, vv);
        for (int r = 0; r < 16; r++) {
          const float fitted = !s.fit ? tried[r] : stored(g, (vv[r] > 0.f ? vw[r] / vv[r] : tried[r] / g.outer) / g.outer);
          const float size = fitted * g.outer, gain = size * (2 * vw[r] - size * vv[r]);
          if (begun && !(gain > best[r])) continue;
          best[r] = gain;
          chosen[r] = fitted;
          zero_chosen[r] = zeros[r];
        }
        begun = true;
      }
    }
    for (int r = 0; r < count; r++) {
      if (first[r] != 0.f) g.scales[at + r] = chosen[r];
      if (s.zeros) s.zeros[at + r] = zero_chosen[r];
    }
  }
};

static void search_all(const ScaleSearch& s, const LatticeGrid& g) {
  if (!s.ratio_count) return;
  for (int group = 0; group < g.groups; group++)
    for (int64_t row = 0; row < g.rows; row += 16) Searched{s, g, s.starts[group], s.starts[group + 1], row, int(std::min<int64_t>(16, g.rows - row))}.run(group);
}
