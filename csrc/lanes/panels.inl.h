// What every linear kernel reads of a panel beside its values, and how a panel's sums become numbers of the result. Included inside a namespace that has
// vec.h's and dots.h's names.

static inline f32x16 load_scales(const Packed& w, const uint8_t* panel, int group) {
  if (w.scale_type == ScaleType::F32) return load(reinterpret_cast<const float*>(panel) + group * kPanel);
  const uint16_t* p = reinterpret_cast<const uint16_t*>(panel) + group * kPanel;
  return w.scale_type == ScaleType::F16 ? load_f16(p) : load_bf16(p);
}
// Scales lie before codes, and are read much more slowly: lines left out would break the sequence that prefetching hardware follows (a third of the rate, LOG)
static inline void touch_scales(const Packed& w, const uint8_t* panel) {
  for (size_t i = 0; i < w.values_offset; i += 64) prefetch(panel + i);
}
static inline f32x16 load_zeros(const Packed& w, const uint8_t* panel, int group) {
  return load(reinterpret_cast<const float*>(panel + w.zeros_offset) + group * kPanel);
}

// bias and residual, then the valid rows of the panel
static inline void finish(const LinearCall& c, int panel, int row, f32x16 y) {
  const int n0 = panel * kPanel, n = c.w->n - n0 < kPanel ? c.w->n - n0 : kPanel;
  if (n == kPanel) {
    if (c.bias) y = add(y, load(c.bias + n0));
    if (c.residual) y = add(y, load(c.residual + row * c.residual_stride + n0));
    store(c.y + row * c.y_stride + n0, y);
  } else {
    if (c.bias) y = add(y, load_n(c.bias + n0, n));
    if (c.residual) y = add(y, load_n(c.residual + row * c.residual_stride + n0, n));
    store_n(c.y + row * c.y_stride + n0, y, n);
  }
}
