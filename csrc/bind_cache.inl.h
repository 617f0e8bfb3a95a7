// The key-value cache as Python gives it, checked. Included by bind.cpp inside its namespace.

CacheType cache_type(const Any& a, bool pairs) {
  if (a.dtype() == nb::dtype<float>()) return CacheType::F32;
  if (a.dtype() == nb::dtype<uint16_t>()) return CacheType::BF16;
  if (a.dtype() == nb::dtype<int8_t>()) return CacheType::I8;
  if (a.dtype() == nb::dtype<uint8_t>()) return pairs ? CacheType::U4 : CacheType::E4M3;
  bad("cache: float32, uint16 (bfloat16 bits), int8 or uint8 (FP8 E4M3, or pairs of 4-bit codes) expected");
}

// Storage of one layer, kept alive through its arrays.
struct Layer {
  CacheLayer layer;
  std::vector<nb::object> owners;
  std::vector<int32_t> order;  // of the keys' channels, see CacheLayer

  // dim: of a head. *_even: of 4-bit codes, as many above zero as below it. balance: float32 [mean, inverse, gain][heads][dim] of the keys, or None; of 4-bit
  // keys [mean, inverse, gain, jump, order] (ops.h).
  Layer(Any k, Any v, nb::object k_scale, nb::object v_scale, int dim, bool k_even, bool v_even, nb::object balance, std::vector<nb::object> keep)
      : owners(std::move(keep)) {
    const bool shaped = k.ndim() == 4 && v.ndim() == 4 && k.shape(0) == v.shape(0) && k.shape(1) == v.shape(1) && k.shape(3) == kPage && v.shape(2) == kPage;
    const size_t half = size_t(dim + 1) / 2, k_half = size_t(dim + key_lead(dim) + 1) / 2;
    // 4-bit codes have words of scales and offsets where FP8 has floats
    const auto pairs = [&](const Any& a, size_t width, nb::object scales, size_t packed) {
      return a.dtype() == nb::dtype<uint8_t>() && width == packed && !scales.is_none() && nb::cast<Any>(scales).dtype() == nb::dtype<uint32_t>();
    };
    const bool k_pairs = shaped && pairs(k, k.shape(2), k_scale, k_half), v_pairs = shaped && pairs(v, v.shape(3), v_scale, half);
    if (!shaped || dim < 1 || k.shape(2) != (k_pairs ? k_half : size_t(dim)) || v.shape(3) != (v_pairs ? half : size_t(dim)))
      bad("cache: K [pages, heads, dim, 32] and V [pages, heads, 32, dim] expected, of 4-bit codes two to a byte");
    if (dim > 1024 && (k_pairs || v_pairs || !balance.is_none())) bad("cache: heads wider than 1024 cannot be rotated");
    layer.k_type = cache_type(k, k_pairs);
    layer.v_type = cache_type(v, v_pairs);
    layer.k = k.data();
    layer.v = v.data();
    layer.pages = int32_t(k.shape(0));
    layer.kv_heads = int32_t(k.shape(1));
    layer.head_dim = dim;
    layer.k_even = k_even;
    layer.v_even = v_even;
    layer.k_scale = scales(layer.k_type, k_scale, layer.k_fixed);
    layer.v_scale = scales(layer.v_type, v_scale, layer.v_fixed);
    if (k_pairs && balance.is_none()) bad("cache: 4-bit keys need a balance");
    if (balance.is_none()) return;
    auto given = nb::cast<nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>>(balance);
    if (given.shape(0) != (k_pairs ? 5 : 3) || given.shape(1) != size_t(layer.kv_heads) || given.shape(2) != size_t(dim))
      bad("cache: a balance [3, heads, dim] expected, of 4-bit keys [5, heads, dim]");
    layer.k_mean = given.data();
    layer.k_inverse = layer.k_mean + int64_t(layer.kv_heads) * dim;
    layer.k_gain = layer.k_inverse + int64_t(layer.kv_heads) * dim;
    if (!k_pairs) return;
    layer.k_jump = layer.k_gain + int64_t(layer.kv_heads) * dim;
    layer.k_lead = key_lead(dim);
    for (int64_t i = 0; i < int64_t(layer.kv_heads) * dim; i++) {
      const float channel = layer.k_jump[int64_t(layer.kv_heads) * dim + i];
      if (!(channel >= 0.f && channel < float(dim))) bad("cache: an order of channels 0 to dim - 1 expected");
      order.push_back(int32_t(channel));
    }
    layer.k_order = order.data();
  }
  float* scales(CacheType type, nb::object given, bool& fixed) {
    if (type == CacheType::F32 || type == CacheType::BF16) return nullptr;
    if (given.is_none()) bad("cache: 8 and 4 bits need scales");
    auto array = nb::cast<nb::ndarray<nb::c_contig, nb::device::cpu>>(given);
    const bool words = type == CacheType::U4, right = array.dtype() == (words ? nb::dtype<uint32_t>() : nb::dtype<float>());
    fixed = !words && array.ndim() == 1 && array.shape(0) == kPage;
    const bool each = array.ndim() == 3 && array.shape(0) == size_t(layer.pages) && array.shape(1) == size_t(layer.kv_heads) && array.shape(2) == kPage;
    if (!right || !(fixed || each)) bad("cache: scales [pages, heads, 32], or 32 times the one of the layer, expected");
    return static_cast<float*>(array.data());
  }
};
