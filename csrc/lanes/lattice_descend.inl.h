// One pass of the descent (lattice.h), row after row: a part of lattice.inl.h, included there alone.
//
// Few values move in a pass. So a row looks at sixteen of its inputs at a time for the first that would, and passes on what that one lost.

struct Descending {
  const Descent& d;
  const LatticeGrid& g;
  int64_t row;
  float *pull = d.pull + row * d.k, *values = d.values + row * d.k;
  int64_t moved = 0;

  static f32x16 take(const float* p, int count) { return count >= 16 ? load(p) : load_n(p, count); }

  void change(int i, float loss) {
    const float* column = d.matrix + int64_t(i) * d.k;
    const f32x16 share = set1(loss);
    int c = 0;
    for (; c + 16 <= d.k; c += 16) store(pull + c, fmadd(share, load(column + c), load(pull + c)));
    if (c < d.k) store_n(pull + c, fmadd(share, load_n(column + c, d.k - c), load_n(pull + c, d.k - c)), d.k - c);
    moved++;
  }

  void group(int index) {
    const int64_t at = index * g.rows + row;
    const int end = d.starts[index + 1];
    const float size = g.size_of(g.scales[at]), inverse = 1.f / size;
    if (g.table) {
      for (int i = d.starts[index]; i < end; i++) {
        const float was = values[i];
        values[i] = nearest(g.table, g.entries, pull[i] * d.alpha[i] * inverse + was);
        if (values[i] != was) change(i, (was - values[i]) * size);
      }
      return;
    }
    const f32x16 least = set1(g.low[at]), most = set1(g.high[at]), turned = set1(inverse);
    alignas(64) float tried[16];
    for (int i = d.starts[index]; i < end;) {
      const f32x16 was = take(values + i, d.k - i);
      const f32x16 value = min(max(round(add(mul(mul(take(pull + i, d.k - i), take(d.alpha + i, d.k - i)), turned), was)), least), most);
      const uint32_t differ = unequal(value, was) & (end - i >= 16 ? 0xffffu : (1u << (end - i)) - 1);
      if (!differ) {
        i += 16;
        continue;
      }
      const int first = __builtin_ctz(differ);  // those after it are looked at again, now that it moves
      store(tried, value);
      i += first;
      const float before = values[i];
      values[i] = tried[first];
      change(i, (before - tried[first]) * size);
      i++;
    }
  }
};

static int64_t descend_all(const Descent& d, const LatticeGrid& g) {
  int64_t moved = 0;
  for (int64_t row = 0; row < g.rows; row++) {
    Descending descending{d, g, row};
    for (int group = 0; group < g.groups; group++) descending.group(group);
    moved += descending.moved;
  }
  return moved;
}
