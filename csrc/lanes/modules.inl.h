// What layers of any module need beside linears: layer norms, activations, attention in both directions, recurrent cells. Included after elementwise.inl.h.

void layer_norm(const float* x, int64_t x_stride, const float* weight, const float* bias, float eps, int width, float* y, int64_t y_stride, int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    const float* in = x + r * x_stride;
    float* out = y + r * y_stride;
    f32x16 sum = zero(), squares = zero();
    each16(width, [&](int i, int n) { sum = add(sum, n == 16 ? load(in + i) : load_n(in + i, n)); });
    const f32x16 mean = set1(reduce_add(sum) / float(width));
    each16(width, [&](int i, int n) {  // the deviations once the mean is known: their squares lose nothing to it
      f32x16 v = sub(n == 16 ? load(in + i) : load_n(in + i, n), mean);
      if (n < 16) { float part[16] = {}; store_n(part, v, n); v = load(part); }
      squares = fmadd(v, v, squares);
    });
    const f32x16 factor = set1(1.f / std::sqrt(reduce_add(squares) / float(width) + eps));
    each16(width, [&](int i, int n) {
      if (n == 16) {
        f32x16 v = mul(sub(load(in + i), mean), factor);
        if (weight) v = mul(v, load(weight + i));
        store(out + i, bias ? add(v, load(bias + i)) : v);
        return;
      }
      f32x16 v = mul(sub(load_n(in + i, n), mean), factor);
      if (weight) v = mul(v, load_n(weight + i, n));
      store_n(out + i, bias ? add(v, load_n(bias + i, n)) : v, n);
    });
  }
}

// x Phi(x) = max(x, 0) - z (0.5 - z p(z^2) / q(z^2)), z = |x| but no more than 5.4, where the rest is below 2e-7. The quotient is our own fit of
// erf(z / sqrt 2) / (2 z): the least largest error of the result, 2e-8 before rounding.
static inline f32x16 gelu(f32x16 x) {
  const f32x16 z = min(set1(5.4f), abs(x)), s = mul(z, z);
  f32x16 p = set1(2.277700134291814e-08f), q = set1(1.2086620733035357e-06f);
  p = fmadd(p, s, set1(6.490359903719767e-06f));
  q = fmadd(q, s, set1(7.650941067494908e-05f));
  p = fmadd(p, s, set1(0.00017626371522795744f));
  q = fmadd(q, s, set1(0.0019254775459352951f));
  p = fmadd(p, s, set1(0.004722384703644172f));
  q = fmadd(q, s, set1(0.029027765641909252f));
  p = fmadd(p, s, set1(0.034491847622162154f));
  q = fmadd(q, s, set1(0.253122524098218f));
  p = fmadd(p, s, set1(0.3989420544831256f));
  q = fmadd(q, s, set1(1.f));
  const f32x16 tail = max(zero(), sub(set1(0.5f), div(mul(z, p), q)));  // in this order, here and below, NaN stays
  return sub(max(zero(), x), mul(z, tail));
}

static inline f32x16 activated(Activation kind, f32x16 x) {
  switch (kind) {
    case Activation::Silu: return activate(Gate::Silu, x);
    case Activation::GeluTanh: return activate(Gate::GeluTanh, x);
    case Activation::Gelu: return gelu(x);
    case Activation::Relu: return max(zero(), x);  // in this order NaN stays
    case Activation::Tanh: return tanh(x);
    default: return sigmoid(x);
  }
}

void activate_rows(Activation kind, const float* x, int64_t x_stride, int width, float* y, int64_t y_stride, int row0, int row1) {
  for (int r = row0; r < row1; r++)
    each16(width, [&](int i, int n) {
      if (n == 16) store(y + r * y_stride + i, activated(kind, load(x + r * x_stride + i)));
      else store_n(y + r * y_stride + i, activated(kind, load_n(x + r * x_stride + i, n)), n);
    });
}

// ---- attention: keys of one head transposed, so that lanes are keys for the scores and dimensions for the sums ----

static inline int in_lanes(int n) { return (n + 15) / 16 * 16; }
size_t mutual_attention_scratch_bytes(const MutualCall& c) { return sizeof(float) * size_t(in_lanes(c.longest)) * size_t(c.head_dim + 5); }

// outside [padded]: 0, and minus infinity where there is no key. The rows go through every step side by side: one alone would wait for its own results.
template <int R>
static void mutual_rows(const MutualCall& c, int first, int n, int row, int head, const float* keys, const float* outside, float* scores) {
  const int padded = in_lanes(n), at = head * c.head_dim;
  const float* q = c.q + row * c.q_stride + at;
  f32x16 most[R], total[R];
  for (int r = 0; r < R; r++) { most[r] = set1(-INFINITY); total[r] = zero(); }
  for (int j = 0; j < padded; j += 16) {
    f32x16 sum[R];
    for (int r = 0; r < R; r++) sum[r] = zero();
    for (int d = 0; d < c.head_dim; d++) {
      const f32x16 key = load(keys + int64_t(d) * padded + j);
      for (int r = 0; r < R; r++) sum[r] = fmadd(set1(q[r * c.q_stride + d]), key, sum[r]);
    }
    const f32x16 none = load(outside + j);
    for (int r = 0; r < R; r++) {
      sum[r] = add(sum[r], none);
      most[r] = max(most[r], sum[r]);
      store(scores + int64_t(r) * padded + j, sum[r]);
    }
  }
  for (int r = 0; r < R; r++) most[r] = set1(reduce_max(most[r]));
  for (int j = 0; j < padded; j += 16)
    for (int r = 0; r < R; r++) {
      float* s = scores + int64_t(r) * padded + j;
      const f32x16 w = exp_below(sub(load(s), most[r]));  // where there is no key e^-87, which changes no sum of at least 1
      store(s, w);
      total[r] = add(total[r], w);
    }
  for (int r = 0; r < R; r++) total[r] = set1(1.f / reduce_add(total[r]));
  for (int d = 0; d < c.head_dim; d += 16) {
    const int m = c.head_dim - d < 16 ? c.head_dim - d : 16;
    f32x16 sum[R];
    for (int r = 0; r < R; r++) sum[r] = zero();
    const float* v = c.v + first * c.v_stride + at + d;
    for (int j = 0; j < n; j++, v += c.v_stride) {
      const f32x16 value = m == 16 ? load(v) : load_n(v, m);
      for (int r = 0; r < R; r++) sum[r] = fmadd(set1(scores[int64_t(r) * padded + j]), value, sum[r]);
    }
    for (int r = 0; r < R; r++) {
      float* y = c.y + (row + r) * c.y_stride + at + d;
      if (m == 16) store(y, mul(sum[r], total[r]));  // a masked store takes ten times as long
      else store_n(y, mul(sum[r], total[r]), m);
    }
  }
}

void mutual_attention(const MutualCall& c, int item, void* scratch) {
  const int sequence = item / c.heads, head = item % c.heads, first = c.starts[sequence], n = c.starts[sequence + 1] - first, padded = in_lanes(n);
  float *keys = static_cast<float*>(scratch), *outside = keys + int64_t(c.head_dim) * padded, *scores = outside + padded;
  for (int j = 0; j < padded; j++) outside[j] = j < n ? 0.f : -INFINITY;
  for (int d = 0; d < c.head_dim; d++)
    for (int j = n; j < padded; j++) keys[int64_t(d) * padded + j] = 0.f;
  for (int j = 0; j < n; j++) {
    const float* k = c.k + (first + j) * c.k_stride + head * c.head_dim;
    for (int d = 0; d < c.head_dim; d++) keys[int64_t(d) * padded + j] = k[d] * c.scale;
  }
  int r = 0;
  for (; r + 4 <= n; r += 4) mutual_rows<4>(c, first, n, first + r, head, keys, outside, scores);
  if (n - r == 3) mutual_rows<3>(c, first, n, first + r, head, keys, outside, scores);
  else if (n - r == 2) mutual_rows<2>(c, first, n, first + r, head, keys, outside, scores);
  else if (n - r == 1) mutual_rows<1>(c, first, n, first + r, head, keys, outside, scores);
}

// ---- recurrent cells, in the order of gates that torch documents: LSTM i f g o, GRU r z n ----

void cell(Cell kind, const float* from_x, int64_t x_stride, const float* from_h, int64_t h_stride, int width, float* h, float* c, int64_t state_stride, float* y,
          int64_t y_stride, int row0, int row1) {
  for (int r = row0; r < row1; r++) {
    const float *a = from_x + r * x_stride, *b = from_h + r * h_stride;
    float *state = h + r * state_stride, *out = y + r * y_stride;
    each16(width, [&](int i, int n) {
      const auto both = [&](int gate) { return add(load_n(a + gate * width + i, n), load_n(b + gate * width + i, n)); };
      f32x16 next;
      if (kind == Cell::Lstm) {
        float* memory = c + r * state_stride + i;
        const f32x16 kept = fmadd(sigmoid(both(1)), load_n(memory, n), mul(sigmoid(both(0)), tanh(both(2))));
        store_n(memory, kept, n);
        next = mul(sigmoid(both(3)), tanh(kept));
      } else if (kind == Cell::Gru) {
        const f32x16 reset = sigmoid(both(0)), update = sigmoid(both(1)), old = load_n(state + i, n);
        const f32x16 fresh = tanh(fmadd(reset, load_n(b + 2 * width + i, n), load_n(a + 2 * width + i, n)));
        next = fmadd(update, sub(old, fresh), fresh);
      } else {
        next = kind == Cell::Tanh ? tanh(both(0)) : max(zero(), both(0));
      }
      store_n(state + i, next, n);
      store_n(out + i, next, n);
    });
  }
}
