// Inputs that are too large to share an int8 scale with the rest of their row: they are left out of the codes, and their products are added to what a
// linear kernel gives (LLM.int8(), arXiv 2208.07339). Included by kernels.inl.h after linear.inl.h.

void split_row(const float* x, int k, float threshold, float* rest, uint64_t* marks) {
  const int kpad = (k + kStep - 1) / kStep * kStep;
  for (int from = 0; from < kpad; from += kStep) {
    const int count = k - from < kStep ? k - from : kStep;
    uint64_t found = 0;
    f32x16 largest = zero();
    for (int i = 0; i < count; i += 16) largest = max(largest, abs(count - i < 16 ? load_n(x + from + i, count - i) : load(x + from + i)));
    std::memcpy(rest + from, x + from, sizeof(float) * size_t(count));
    if (!(reduce_max(largest) < threshold))
      for (int i = 0; i < count; i++) {
        const float size = std::fabs(x[from + i]);
        if (!(size >= threshold && size <= 3.402823466e38f)) continue;  // what is not finite stays, and makes the row NaN
        found |= uint64_t(1) << i;
        rest[from + i] = 0.f;
      }
    marks[from / kStep] = found;
  }
}

// Sixteen rows of a weight at one k: the numbers that widen_panel makes
static inline f32x16 weight_column(const Packed& w, int panel, int k) {
  const uint8_t *base = w.base(panel), *at = w.values(panel);
  const int in_step = k % kStep, group = k / w.group;
  uint8_t bytes[kStep * kPanel];
  int32_t codes[kPanel];
  if (w.store == Store::Codes4) {
    at += size_t(k - in_step) * (kPanel / 2) + in_step % 32 / 4 * 64 + k % 4;
    for (int r = 0; r < kPanel; r++) codes[r] = in_step < 32 ? at[4 * r] & 15 : at[4 * r] >> 4;
  } else {
    if (w.store == Store::Trellis) spread_states(w, panel, k - in_step, k - in_step + kStep, bytes);
    at = w.store == Store::Trellis ? bytes + in_step / 4 * 64 + k % 4 : at + size_t(k / 4) * 64 + k % 4;
    for (int r = 0; r < kPanel; r++) codes[r] = int8_t(at[4 * r]);
  }
  const f32x16 scale = load_scales(w, base, group);
  if (w.meaning == Meaning::Table) {
    float values[kPanel];
    for (int r = 0; r < kPanel; r++) values[r] = w.table[codes[r] & 15];
    return mul(load(values), scale);
  }
  return mul(sub(load_i32(codes), w.has_zeros ? load_zeros(w, base, group) : set1(w.store == Store::Codes4 ? 8.f : 0.f)), scale);
}

// One row, panel after panel as they lie: the same sums as below, and four neighbours of 8-bit codes are widened together.
static void add_outliers_of_row(const LinearCall& c, int row, int panel0, int panel1) {
  const Packed& w = *c.w;
  const int words = w.kpad / kStep;
  const uint64_t* marks = c.in.marks + int64_t(row) * words;
  const float* x = c.in.x + row * c.in.stride;
  uint64_t any = 0;
  for (int i = 0; i < words; i++) any |= marks[i];
  for (int p = panel0; p < panel1 && any; p++) {
    const int n = w.n - p * kPanel < kPanel ? w.n - p * kPanel : kPanel;
    float* y = c.y + row * c.y_stride + p * kPanel;
    f32x16 total = n == kPanel ? load(y) : load_n(y, n);
    for (int i = 0; i < words; i++) {
      if (!marks[i]) continue;
      f32x16 sum = zero();
      for (uint64_t left = marks[i]; left;) {
        const int j = __builtin_ctzll(left), k = i * kStep + j;
        if (w.store != Store::Codes8) {
          sum = fmadd(set1(x[k]), weight_column(w, p, k), sum);
          left &= left - 1;
          continue;
        }
        const int k4 = k / 4 * 4, group = k / w.group;
        const f32x16 scale = load_scales(w, w.base(p), group), shift = w.has_zeros ? load_zeros(w, w.base(p), group) : zero();
        f32x16 lanes[4];
        signed_lanes(w.values(p) + size_t(k4) * kPanel, lanes);
        for (int b = 0; b < 4; b++)
          if (left >> (k4 % kStep + b) & 1) sum = fmadd(set1(x[k4 + b]), mul(sub(lanes[b], shift), scale), sum);
        left &= ~(uint64_t(15) << k4 % kStep);
      }
      total = add(total, sum);
    }
    if (n == kPanel) store(y, total);
    else store_n(y, total, n);
  }
}

// For each output a sum over each 64 values of k in turn, which is then added to it. A column of weights is widened once for up to 64 rows.
void add_outliers(const LinearCall& c, int panel0, int panel1) {
  constexpr int kRows = 64;
  const Packed& w = *c.w;
  const int words = w.kpad / kStep;
  alignas(64) float sums[kRows][kPanel];
  for (int row0 = 0; row0 < c.in.rows; row0 += kRows) {
    const int rows = c.in.rows - row0 < kRows ? c.in.rows - row0 : kRows;
    if (rows == 1) {
      add_outliers_of_row(c, row0, panel0, panel1);
      continue;
    }
    const float* x = c.in.x + row0 * c.in.stride;
    for (int i = 0; i < words; i++) {
      const uint64_t* marks = c.in.marks + int64_t(row0) * words + i;
      uint64_t columns = 0, touched = 0, of[kStep];  // of[j]: the rows in which column j of these 64 is marked
      for (int r = 0; r < rows; r++) columns |= marks[int64_t(r) * words];
      for (uint64_t left = columns; left; left &= left - 1) {
        const int j = __builtin_ctzll(left);
        of[j] = 0;
        for (int r = 0; r < rows; r++) of[j] |= (marks[int64_t(r) * words] >> j & 1) << r;
        touched |= of[j];
      }
      if (!columns) continue;
      const bool one = (touched & (touched - 1)) == 0;
      const int only = __builtin_ctzll(touched);
      for (int p = panel0; p < panel1; p++) {
        f32x16 sum = zero();
        for (uint64_t r = touched; r && !one; r &= r - 1) store(sums[__builtin_ctzll(r)], zero());
        for (uint64_t left = columns; left; left &= left - 1) {
          const int j = __builtin_ctzll(left), k = i * kStep + j;
          const f32x16 column = weight_column(w, p, k);
          if (one) sum = fmadd(set1(x[only * c.in.stride + k]), column, sum);
          for (uint64_t rest = of[j]; rest && !one; rest &= rest - 1) {
            const int r = __builtin_ctzll(rest);
            store(sums[r], fmadd(set1(x[r * c.in.stride + k]), column, load(sums[r])));
          }
        }
        if (one) store(sums[only], sum);
        const int n = w.n - p * kPanel < kPanel ? w.n - p * kPanel : kPanel;
        for (uint64_t rest = touched; rest; rest &= rest - 1) {
          const int r = __builtin_ctzll(rest);
          float* y = c.y + (row0 + r) * c.y_stride + p * kPanel;
          if (n == kPanel) store(y, add(load(y), load(sums[r])));
          else store_n(y, add(load_n(y, n), load(sums[r])), n);
        }
      }
    }
  }
}
