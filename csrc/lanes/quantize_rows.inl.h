// Rows of activations as int8: a scale per row or per group computed as they come, or one that is known beforehand. Included by linear.inl.h.

static inline int32_t four(const int8_t* p) { int32_t v; std::memcpy(&v, p, 4); return v; }

static inline void add_blocks(const int8_t* q, int kpad, int32_t* sums) {
  for (int b = 0; b < kpad / kSumBlock; b++) sums[b] = sum_block(q + b * kSumBlock);
}

void quantize_rows(const float* x, int64_t stride, int k, int kpad, int group, int row0, int row1, int8_t* q, float* scale, int32_t* sums) {
  const int size = group < kpad ? group : kpad, groups = (kpad + size - 1) / size;
  for (int r = row0; r < row1; r++) {
    int8_t* out = q + int64_t(r) * kpad;
    std::memset(out + k, 0, size_t(kpad - k));
    for (int g = 0; g < groups; g++) {
      const int from = g * size, count = k - from < size ? k - from : size, whole = count / 16 * 16;
      const float* in = x + r * stride + from;
      f32x16 largest = zero(), poison = zero();  // 0 * NaN and 0 * infinity are NaN, which a maximum would lose
      for (int i = 0; i < whole; i += 16) { const f32x16 v = load(in + i); largest = max(largest, abs(v)); poison = fmadd(v, zero(), poison); }
      if (whole < count) { const f32x16 v = load_n(in + whole, count - whole); largest = max(largest, abs(v)); poison = fmadd(v, zero(), poison); }
      const float bad = reduce_add(poison), top = reduce_max(largest);
      const bool finite = bad == bad;
      scale[int64_t(r) * groups + g] = finite ? top / 127.f : bad;
      const f32x16 inverse = set1(finite && top > 0.f ? 127.f / top : 0.f);
      for (int i = 0; i < whole; i += 16) store_i8(out + from + i, finite ? mul(load(in + i), inverse) : zero());
      if (whole < count) {
        int8_t last[16];
        store_i8(last, finite ? mul(load_n(in + whole, count - whole), inverse) : zero());
        std::memcpy(out + from + whole, last, size_t(count - whole));
      }
    }
    add_blocks(out, kpad, sums + int64_t(r) * (kpad / kSumBlock));
  }
}

void quantize_fixed(const FixedCodes& how, const float* x, int64_t stride, int k, int kpad, int row0, int row1, int8_t* q, float* scale, int32_t* sums) {
  const f32x16 shift = set1(float(how.zero_point)), low = set1(-127.f), high = set1(127.f);
  const auto code = [&](f32x16 v, f32x16 inverse) { return min(high, max(low, add(round(mul(v, inverse)), shift))); };
  const int whole = k / 16 * 16;
  for (int r = row0; r < row1; r++) {
    int8_t* out = q + int64_t(r) * kpad;
    const float* in = x + r * stride;
    std::memset(out + k, 0, size_t(kpad - k));
    f32x16 poison = zero();
    for (int i = 0; i < whole; i += 16) {
      const f32x16 v = load(in + i);
      poison = fmadd(v, zero(), poison);
      store_i8(out + i, code(v, load(how.inverse + i)));
    }
    if (whole < k) {
      const f32x16 v = load_n(in + whole, k - whole);
      int8_t last[16];
      poison = fmadd(v, zero(), poison);
      store_i8(last, code(v, load_n(how.inverse + whole, k - whole)));
      std::memcpy(out + whole, last, size_t(k - whole));
    }
    const float bad = reduce_add(poison);
    scale[r] = bad == bad ? how.scale : bad;
    if (bad != bad) std::memset(out, 0, size_t(k));
    add_blocks(out, kpad, sums + int64_t(r) * (kpad / kSumBlock));
  }
}
