// What drawing a token needs of a row of logits. Included inside a namespace that has vec.h's names and elementwise.inl.h's exp.

void weights(const float* x, int n, float top, float scale, float* w, float* sums) {
  const f32x16 t = set1(top), s = set1(scale);
  for (int block = 0; block * kWeightBlock < n; block++) {
    const int start = block * kWeightBlock, end = n - start < kWeightBlock ? n : start + kWeightBlock;
    f32x16 sum = zero();
    int i = start;
    for (; i + 16 <= end; i += 16) {
      const f32x16 e = exp(mul(sub(load(x + i), t), s));
      if (w) store(w + i, e);
      sum = add(sum, e);
    }
    if (i < end) {
      float lane[16] = {};
      store(lane, exp(mul(sub(load_n(x + i, end - i), t), s)));
      for (int j = end - i; j < 16; j++) lane[j] = 0.f;
      if (w) std::memcpy(w + i, lane, sizeof(float) * size_t(end - i));
      sum = add(sum, load(lane));
    }
    sums[block] = reduce_add(sum);
  }
}

int at_least(const float* x, int n, float limit, int32_t* ids) {
  int found = 0, i = 0;
  for (; i + 64 <= n; i += 64) {  // most stretches hold none
    if (reduce_max(max(max(load(x + i), load(x + i + 16)), max(load(x + i + 32), load(x + i + 48)))) < limit) continue;
    for (int j = i; j < i + 64; j++) {
      ids[found] = j;
      found += x[j] >= limit;
    }
  }
  for (; i < n; i++) {
    ids[found] = i;
    found += x[i] >= limit;
  }
  return found;
}
