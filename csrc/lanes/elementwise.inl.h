// Norms, rotary embedding, gates and sums over sixteen float lanes. Included inside a namespace that has vec.h's names.

// e^x / 2^n for n = round(x log2 e): Cody-Waite reduction and a degree-6 polynomial
static inline f32x16 exp_of_rest(f32x16 x, f32x16 n) {
  f32x16 r = fmadd(n, set1(-0.693359375f), x);
  r = fmadd(n, set1(2.12194440e-4f), r);
  f32x16 p = set1(1.9875691500e-4f);
  p = fmadd(p, r, set1(1.3981999507e-3f));
  p = fmadd(p, r, set1(8.3334519073e-3f));
  p = fmadd(p, r, set1(4.1665795894e-2f));
  p = fmadd(p, r, set1(1.6666665459e-1f));
  p = fmadd(p, r, set1(5.0000001201e-1f));
  return fmadd(p, mul(r, r), add(r, set1(1.f)));
}
// e^x within 2 ulp; 0 below -104, infinite above 88.8, NaN stays NaN.
static inline f32x16 exp(f32x16 x) {
  x = min(set1(89.f), max(set1(-104.f), x));
  const f32x16 n = round(mul(x, set1(1.44269504088896341f)));
  const f32x16 p = exp_of_rest(x, n);
  // 2^n in two factors, so that n = 128 does not overflow the exponent
  const f32x16 half = round(mul(n, set1(0.5f)));
  return scale2(scale2(p, half), sub(n, half));
}
// e^x of what is not above 0, at least e^-87
static inline f32x16 exp_below(f32x16 x) {
  x = max(set1(-87.f), x);
  const f32x16 n = round(mul(x, set1(1.44269504088896341f)));
  return scale2(exp_of_rest(x, n), n);
}
static inline f32x16 sigmoid(f32x16 x) { return div(set1(1.f), add(set1(1.f), exp(sub(zero(), x)))); }
static inline f32x16 tanh(f32x16 x) {  // 2 sigmoid(2x) - 1 loses digits near 0, where x - x^3/3 + 2x^5/15 does not
  const f32x16 far = fmadd(set1(2.f), sigmoid(add(x, x)), set1(-1.f));
  float f[16], v[16];
  store(f, far);
  store(v, x);
  for (int i = 0; i < 16; i++)
    if (v[i] < 0.1f && v[i] > -0.1f) { const float s = v[i] * v[i]; f[i] = v[i] * (1.f + s * (-0.333333333f + s * (0.133333333f - s * 0.0539682540f))); }
  return load(f);
}

// fn(x lanes, count) over width values of a row
template <class F>
static inline void each16(int width, F fn) {
  for (int i = 0; i < width; i += 16) fn(i, width - i < 16 ? width - i : 16);
}

void rms_norm(const float* x, int64_t x_stride, const float* weight, float eps, float offset, int width, int groups, float* y,
              int64_t y_stride, int row0, int row1) {
  for (int r = row0; r < row1; r++)
    for (int g = 0; g < groups; g++) {
      const float* in = x + r * x_stride + int64_t(g) * width;
      float* out = y + r * y_stride + int64_t(g) * width;
      f32x16 squares = zero();
      each16(width, [&](int i, int n) { const f32x16 v = n == 16 ? load(in + i) : load_n(in + i, n); squares = fmadd(v, v, squares); });
      const f32x16 factor = set1(1.f / std::sqrt(reduce_add(squares) / float(width) + eps));
      const f32x16 shift = set1(offset);
      each16(width, [&](int i, int n) {
        if (n == 16) store(out + i, mul(mul(load(in + i), factor), add(shift, load(weight + i))));
        else store_n(out + i, mul(mul(load_n(in + i, n), factor), add(shift, load_n(weight + i, n))), n);
      });
    }
}

void rope(float* x, int64_t stride, int heads, int head_dim, int rotary, const float* table, const int32_t* positions, int row0, int row1) {
  const int half = rotary / 2;
  for (int r = row0; r < row1; r++) {
    const float* cosine = table + int64_t(positions[r]) * rotary;
    const float* sine = cosine + half;
    for (int h = 0; h < heads; h++) {
      float* a = x + r * stride + int64_t(h) * head_dim;
      float* b = a + half;
      each16(half, [&](int i, int n) {
        const f32x16 c = load_n(cosine + i, n), s = load_n(sine + i, n), u = load_n(a + i, n), v = load_n(b + i, n);
        store_n(a + i, sub(mul(u, c), mul(v, s)), n);
        store_n(b + i, add(mul(v, c), mul(u, s)), n);
      });
    }
  }
}

static inline f32x16 activate(Gate kind, f32x16 x) {
  if (kind == Gate::Silu) return mul(x, sigmoid(x));
  if (kind == Gate::GeluTanh) {
    const f32x16 cubic = mul(mul(x, x), x);
    const f32x16 inner = mul(set1(0.7978845608028654f), fmadd(set1(0.044715f), cubic, x));
    return mul(mul(set1(0.5f), x), add(set1(1.f), tanh(inner)));
  }
  float v[16];
  store(v, x);
  for (float& e : v) e = 0.5f * e * (1.f + std::erf(e * 0.70710678118654752f));
  return load(v);
}

void gate(Gate kind, const float* g, int64_t g_stride, const float* up, int64_t up_stride, int width, float* y, int64_t y_stride, int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    const float *a = g + r * g_stride, *b = up + r * up_stride;
    float* out = y + r * y_stride;
    each16(width, [&](int i, int n) {
      if (n == 16) store(out + i, mul(activate(kind, load(a + i)), load(b + i)));
      else store_n(out + i, mul(activate(kind, load_n(a + i, n)), load_n(b + i, n)), n);
    });
  }
}

void add_rows(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int width, float* y, int64_t y_stride, int row0, int row1) {
  for (int r = row0; r < row1; r++)
    each16(width, [&](int i, int n) { store_n(y + r * y_stride + i, add(load_n(a + r * a_stride + i, n), load_n(b + r * b_stride + i, n)), n); });
}

void columns(const float* x, int64_t x_stride, const int32_t* order, const float* factors, int width, float* y, int64_t y_stride, int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    const float* in = x + r * x_stride;
    float* out = y + r * y_stride;
    if (order)
      for (int j = 0; j < width; j++) out[j] = factors ? in[order[j]] * factors[j] : in[order[j]];
    else
      each16(width, [&](int i, int n) { store_n(out + i, factors ? mul(load_n(in + i, n), load_n(factors + i, n)) : load_n(in + i, n), n); });
  }
}

// y: three stages of butterflies between eight runs of values of x that lie `run` apart, n <= 16 of each; what lies between stays in registers. y may be x.
static inline void eight_runs(const float* x, float* y, int run, int n, bool scaled, f32x16 scale) {
  f32x16 v[8];
  for (int i = 0; i < 8; i++) v[i] = n == 16 ? load(x + i * run) : load_n(x + i * run, n);
#pragma GCC unroll 3
  for (int half = 1; half < 8; half *= 2)
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
      if (!(i & half)) {
        const f32x16 one = v[i], other = v[i + half];
        v[i] = add(one, other);
        v[i + half] = sub(one, other);
      }
  for (int i = 0; i < 8; i++) {
    if (scaled) v[i] = mul(v[i], scale);
    if (n == 16) store(y + i * run, v[i]);
    else store_n(y + i * run, v[i], n);
  }
}

void rotate_rows(const float* x, int64_t x_stride, int width, int block, float* y, int64_t y_stride, int row0, int row1) {
  const int apart = width / block;
  const f32x16 norm = set1(float(1.0 / std::sqrt(double(block))));
  for (int r = row0; r < row1; r++) {
    const float* from = x + r * x_stride;
    float* row = y + r * y_stride;
    if (block == 64) {  // the usual one, in two passes instead of seven
      for (int i = 0; i < width; i += 8 * apart) each16(apart, [&](int j, int n) { eight_runs(from + i + j, row + i + j, apart, n, false, norm); });
      each16(8 * apart, [&](int j, int n) { eight_runs(row + j, row + j, 8 * apart, n, true, norm); });
      continue;
    }
    if (row != from) std::memcpy(row, from, sizeof(float) * size_t(width));
    for (int run = apart; run < width; run *= 2)  // butterflies between runs of values
      for (int i = 0; i < width; i += 2 * run)
        each16(run, [&](int j, int n) {
          float *one = row + i + j, *other = one + run;
          const f32x16 a = load_n(one, n), b = load_n(other, n);
          store_n(one, add(a, b), n);
          store_n(other, sub(a, b), n);
        });
    each16(width, [&](int i, int n) { store_n(row + i, mul(load_n(row + i, n), norm), n); });
  }
}

void softcap(float* x, int64_t stride, int width, float cap, int row0, int row1) {
  const f32x16 c = set1(cap), inverse = set1(1.f / cap);
  for (int r = row0; r < row1; r++)
    each16(width, [&](int i, int n) { float* p = x + r * stride + i; store_n(p, mul(c, tanh(mul(load_n(p, n), inverse))), n); });
}

void best(const float* x, int64_t stride, int width, int row0, int row1, int32_t* place, float* value) {
  constexpr int kBlock = 1024;
  for (int r = row0; r < row1; r++) {
    const float* row = x + r * stride;
    float top = -INFINITY;
    int block = 0;
    f32x16 odd = zero();  // becomes NaN when something is not finite
    for (int start = 0; start < width; start += kBlock) {
      const int end = width - start < kBlock ? width : start + kBlock;
      f32x16 a = set1(-INFINITY), b = a;
      int i = start;
      for (; i + 32 <= end; i += 32) {
        const f32x16 u = load(row + i), v = load(row + i + 16);
        a = max(a, u);
        b = max(b, v);
        odd = fmadd(u, zero(), fmadd(v, zero(), odd));
      }
      float most = reduce_max(max(a, b));
      for (; i < end; i++) {
        if (row[i] > most) most = row[i];
        if (row[i] != row[i]) odd = set1(row[i]);
      }
      if (most > top) { top = most; block = start; }
    }
    const float sum = reduce_add(odd);
    int found = -1;
    if (sum != sum)
      for (int i = 0; i < width && found < 0; i++)
        if (row[i] != row[i]) found = i;
    if (found < 0 && sum != sum) {  // infinities only: maxima above may be right, but are not worth a proof
      found = 0;
      for (int i = 1; i < width; i++)
        if (row[i] > row[found]) found = i;
    }
    if (found < 0) for (found = block; row[found] != top; found++) {}
    place[r] = found;
    value[r] = row[found];
  }
}
