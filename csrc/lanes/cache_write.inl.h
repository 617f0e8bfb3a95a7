// Writing the paged cache: one head of one token at a time, so that a code depends on nothing else. Included by attention.inl.h.

static float absmax(const float* x, int n) {
  f32x16 m = zero();
  for (int i = 0; i < n; i += 16) m = max(m, abs(load_n(x + i, n - i < 16 ? n - i : 16)));
  float v[16];
  store(v, m);
  float best = 0.f;
  for (float e : v) best = e > best ? e : best;
  for (int i = 0; i < n; i++)
    if (x[i] != x[i]) return x[i];  // a NaN must not vanish in the maximum
  return best;
}

static inline int8_t round_i8(float x) {
  const float r = std::nearbyint(x);
  return int8_t(r > 127.f ? 127.f : r < -127.f ? -127.f : r);
}

// The nearest E4M3, ties to even, saturating; NaN stays NaN. Counting steps between neighbours gives exponent and mantissa in one integer.
static inline uint8_t round_e4m3(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint8_t sign = uint8_t(bits >> 24 & 0x80u);
  if (x != x) return uint8_t(sign | 0x7f);
  const float magnitude = x < 0.f ? -x : x, bounded = magnitude < 448.f ? magnitude : 448.f;
  uint32_t b;
  std::memcpy(&b, &bounded, 4);
  const int e = int(b >> 23) - 127 > -6 ? int(b >> 23) - 127 : -6;
  const uint32_t step_bits = uint32_t(127 + 3 - e) << 23;
  float step;
  std::memcpy(&step, &step_bits, 4);
  const int code = int(std::nearbyint(bounded * step)) + (e + 6) * 8;
  return uint8_t(sign | (code < 0x7e ? code : 0x7e));
}

static inline float bf16_of(float x, uint32_t& word) {  // rounded to a bfloat16; word: its bits
  uint16_t lanes[16];
  store_bf16(lanes, set1(x));
  word = lanes[0];
  const uint32_t wide = word << 16;
  std::memcpy(&x, &wide, 4);
  return x;
}

// Codes 0..15 of x with a scale and an offset; returns the squared error. Both are rounded as they are stored, in `word`.
static float code_u4(const float* x, int dim, float scale, float offset, bool even, uint8_t* codes, uint32_t& word) {
  uint32_t upper, lower;
  scale = bf16_of(scale, upper);
  offset = bf16_of(even ? -8.f * scale : offset, lower);
  word = upper << 16 | lower;
  const float inverse = scale != 0.f ? 1.f / scale : 0.f;
  f32x16 error = zero();
  const f32x16 s = set1(scale), o = set1(offset), i = set1(inverse), none = set1(0.f), most = set1(15.f);
  for (int d = 0; d < dim; d += 16) {
    const int n = dim - d < 16 ? dim - d : 16;
    const f32x16 value = load_n(x + d, n), code = min(max(round(mul(sub(value, o), i)), none), most), miss = sub(fmadd(code, s, o), value);
    int8_t lanes[16];
    store_i8(lanes, code);
    std::memcpy(codes + d, lanes, size_t(n));
    float keep[16];
    store(keep, mul(miss, miss));
    error = add(error, load_n(keep, n));
  }
  return reduce_add(error);
}

static inline float upper_half(uint32_t word) {
  word &= 0xffff0000u;
  float x;
  std::memcpy(&x, &word, 4);
  return x;
}

// The word of these codes with which they err no more along x than across it. The scale of least error makes them too small (what is cut off, for one), and that
// tells in sums over many tokens where errors that differ in sign do not.
static uint32_t unbiased_u4(const float* x, int dim, bool even, const uint8_t* codes, uint32_t word) {
  const float scale = upper_half(word), offset = upper_half(word << 16);
  float whole = 0.f, stored = 0.f;
  for (int d = 0; d < dim; d++) {
    whole += x[d] * x[d];
    stored += x[d] * (float(codes[d]) * scale + offset);
  }
  const float factor = whole / stored;
  if (!(factor > 0.8f && factor < 1.25f)) return word;
  uint32_t upper, lower;
  const float larger = bf16_of(scale * factor, upper);
  bf16_of(even ? -8.f * larger : offset * factor, lower);
  return upper << 16 | lower;
}

// 4-bit codes of a head whose dimensions are alike: of some ranges, from all that it covers to narrower ones, the one with the least squared error. `even`: as
// many codes above zero as below it. The leading components, of 8 bits, are not cut off.
constexpr float kRanges[] = {1.f, 0.92f, 0.84f, 0.76f};
static void fit_u4(const float* x, int lead, int dim, bool even, uint8_t* codes, uint32_t& word) {
  float low = x[lead], high = x[lead], least = INFINITY, most = -INFINITY;  // of the others; of the leading ones
  bool finite = true;
  for (int d = 0; d < dim; d++) {
    float &under = d < lead ? least : low, &over = d < lead ? most : high;
    under = x[d] < under ? x[d] : under;
    over = x[d] > over ? x[d] : over;
    finite = finite && x[d] - x[d] == 0.f;
  }
  if (!finite) {
    std::memset(codes, 0, size_t(dim));
    word = 0x7fc07fc0u;
    return;
  }
  uint8_t tried[kWidestHead];
  float best = INFINITY;
  const float middle = 0.5f * low + 0.5f * high, half = 0.5f * high - 0.5f * low;
  for (float range : kRanges) {
    uint32_t now;
    const float from = std::min(even ? low * range : middle - half * range, least), to = std::max(even ? high * range : middle + half * range, most);
    const float error = even ? code_u4(x + lead, dim - lead, (to > -from ? to : from) / -8.f, 0.f, true, tried, now)
                             : code_u4(x + lead, dim - lead, 0.5f * to / 7.5f - 0.5f * from / 7.5f, from, false, tried, now);
    if (error < best || range == 1.f) {
      best = error;
      word = now;
      std::memcpy(codes + lead, tried, size_t(dim - lead));
    }
  }
  word = unbiased_u4(x + lead, dim - lead, even, codes + lead, word);
  const float scale = upper_half(word), offset = upper_half(word << 16), inverse = scale != 0.f ? 16.f / scale : 0.f;
  for (int d = 0; d < lead; d++) {
    const float code = std::nearbyint((x[d] - offset) * inverse);
    codes[d] = uint8_t(code > 0.f ? (code < 255.f ? code : 255.f) : 0.f);
  }
}

// One head of one token; step is the distance of neighbouring dimensions in the page (of pairs of them: U4), 1 for values. lead: components of 8 bits.
static void write_head(CacheType type, const float* x, int dim, void* page, int64_t at, int64_t step, float* scale, bool fixed, bool even, int lead = 0) {
  if (type == CacheType::F32) {
    float* to = static_cast<float*>(page) + at;
    for (int d = 0; d < dim; d++) to[d * step] = x[d];
  } else if (type == CacheType::BF16) {
    uint16_t* to = static_cast<uint16_t*>(page) + at;
    uint16_t lanes[16];
    for (int d = 0; d < dim; d += 16) {
      const int n = dim - d < 16 ? dim - d : 16;
      store_bf16(lanes, load_n(x + d, n));
      for (int i = 0; i < n; i++) to[(d + i) * step] = lanes[i];
    }
  } else if (type == CacheType::I8) {
    int8_t* to = static_cast<int8_t*>(page) + at;
    const float largest = fixed ? *scale * 127.f : absmax(x, dim);
    if (!fixed) *scale = largest / 127.f;
    const float inverse = fixed ? 1.f / *scale : largest > 0.f ? 127.f / largest : 0.f;
    for (int d = 0; d < dim; d++) to[d * step] = largest == largest && x[d] == x[d] ? round_i8(x[d] * inverse) : int8_t(0);
  } else if (type == CacheType::E4M3) {
    uint8_t* to = static_cast<uint8_t*>(page) + at;
    const float largest = fixed ? 0.f : absmax(x, dim);
    if (!fixed) *scale = largest / 448.f;
    const float inverse = fixed ? 1.f / *scale : largest > 0.f ? 448.f / largest : 0.f;
    for (int d = 0; d < dim; d++) to[d * step] = largest == largest ? round_e4m3(x[d] * inverse) : uint8_t(0);
  } else {
    uint8_t codes[kWidestHead + 1];
    uint32_t word;
    fit_u4(x, lead, dim, even, codes, word);
    std::memcpy(scale, &word, 4);
    codes[dim] = 0;
    uint8_t* to = static_cast<uint8_t*>(page) + at;
    if (step > 1) {
      for (int d = 0; d < lead; d++, to += step) *to = codes[d];
      for (int d = lead; d < dim; d += 2, to += step) *to = uint8_t(codes[d] | codes[d + 1] << 4);
    } else {
      for (int d = 0; d < dim; d += 32, to += 16) {
        const int n = dim - d < 32 ? dim - d : 32, half = (n + 1) / 2;
        for (int i = 0; i < half; i++) to[i] = uint8_t(codes[d + i] | (i + half < n ? codes[d + i + half] << 4 : 0));
      }
    }
  }
}

static inline void write_token(const CacheLayer& cache, int head, const float* key, const float* value, int32_t slot) {
  const int dim = cache.head_dim, offset = slot % kPage;
  const int64_t k_values = cache.k_type == CacheType::U4 ? (cache.key_rows() + 1) / 2 : dim, v_values = cache.v_type == CacheType::U4 ? (dim + 1) / 2 : dim;
  const int64_t cell = int64_t(slot / kPage) * cache.kv_heads + head;
  float key_room[kWidestHead], value_room[kWidestHead];
  bool jumped = false;
  if (cache.k_type == CacheType::U4) {
    jumped = key_components(cache, head, key, key_room);
    key = key_room;
  } else if (cache.k_mean) {
    key = turned_key(cache, head, key, key_room);
  }
  if (cache.v_type == CacheType::U4) {
    std::memcpy(value_room, value, sizeof(float) * size_t(dim));
    rotate(value_room, dim);
    value = value_room;
  }
  float* scale = cache.k_scale ? cache.k_scales(cell) + offset : nullptr;
  write_head(cache.k_type, key, dim, cache.k, cell * k_values * kPage + offset, kPage, scale, cache.k_fixed, cache.k_even, cache.k_lead);
  if (jumped) reinterpret_cast<uint8_t*>(scale)[3] |= 0x80;
  write_head(cache.v_type, value, dim, cache.v, (cell * kPage + offset) * v_values, 1, cache.v_scale ? cache.v_scales(cell) + offset : nullptr, cache.v_fixed,
             cache.v_even);
}

void cache_write(const CacheLayer& cache, const float* k, int64_t k_stride, const float* v, int64_t v_stride, const int32_t* slots, int row0, int row1) {
  for (int r = row0; r < row1; r++)
    for (int h = 0; h < cache.kv_heads; h++)
      write_token(cache, h, k + r * k_stride + int64_t(h) * cache.head_dim, v + r * v_stride + int64_t(h) * cache.head_dim, slots[r]);
}

// What AttentionCall leaves to the item that reads it next: its lines are on their way there already
static inline void write_single(const AttentionCall& c, int sequence, int head) {
  const int row = c.step->starts[sequence];
  if (!c.k || c.step->starts[sequence + 1] - row != 1) return;
  const int64_t at = int64_t(head) * c.cache->head_dim;
  write_token(*c.cache, head, c.k + row * c.k_stride + at, c.v + row * c.v_stride + at, c.step->slots[row]);
}
