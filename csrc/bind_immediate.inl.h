// Layers that run at once: what octavo._native.Immediate checks before a kernel sees it. A part of bind.cpp, included there alone.

Inputs checked_inputs(const Packed& w, int group, float fixed, int zero_point, float threshold) {
  if (group && !w.meets_ints()) bad("inputs: int8 ones do not meet this weight");
  const Inputs how{group, fixed, zero_point, threshold, nullptr};
  check_inputs(how, w.k);
  return how;
}
const float* checked_bias(const std::optional<Vector<float>>& bias, int n) {
  if (bias && bias->size() != size_t(n)) bad("bias: " + std::to_string(n) + " numbers expected");
  return bias ? bias->data() : nullptr;
}

struct PyImmediate {
  Immediate layers;

  PyImmediate(std::shared_ptr<Team> team, const std::string& isa) : layers(std::move(team), kernels_for(isa)) {}

  void linear(const PackedWeight& w, Rows2In x, std::optional<Vector<float>> bias, Rows2 y, int group, float fixed, int zero_point, float threshold,
              std::optional<Vector<float>> factors) {
    Inputs how = checked_inputs(w.packed, group, fixed, zero_point, threshold);
    if (factors && (fixed == 0.f || factors->size() != size_t(w.packed.k))) bad("linear: factors, one for each input, go with a fixed scale");
    if (factors) how.factors = factors->data();
    const float* b = checked_bias(bias, w.packed.n);
    if (x.shape(1) != size_t(w.packed.k) || y.shape(1) != size_t(w.packed.n) || y.shape(0) != x.shape(0) || x.shape(0) > size_t(INT32_MAX)) bad("linear: shapes do not fit");
    const float* from = x.data();
    float* to = y.data();
    const int rows = int(x.shape(0));
    nb::gil_scoped_release released;
    layers.linear(w.packed, how, from, w.packed.k, rows, b, to, w.packed.n);
  }

  // x [images, height, width, all channels], y [images, out height, out width, all outputs]; channels [first, first + their number) meet this weight and
  // become outputs [first_out, first_out + n)
  void convolution(const PackedWeight& w, nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu> x, std::optional<Vector<float>> bias,
                   nb::ndarray<float, nb::ndim<4>, nb::c_contig, nb::device::cpu> y, const std::vector<int>& kernel, const std::vector<int>& step,
                   const std::vector<int>& gap, const std::vector<int>& before, int first, int channels, int first_out, int group, float fixed, int zero_point, float threshold) {
    const Inputs how = checked_inputs(w.packed, group, fixed, zero_point, threshold);
    const float* b = checked_bias(bias, w.packed.n);
    for (const auto* two : {&kernel, &step, &gap, &before})
      if (two->size() != 2 || std::min((*two)[0], (*two)[1]) < (two == &before ? 0 : 1) || std::max((*two)[0], (*two)[1]) > 1 << 20) bad("convolution: two sizes for each, down and across");
    if (size_t(x.shape(0)) * y.shape(1) * y.shape(2) > size_t(INT32_MAX) || std::max({x.shape(0), x.shape(1), x.shape(2), x.shape(3), y.shape(3)}) > size_t(1 << 30))
      bad("convolution: the input is too large");
    Window window;
    window.images = int(x.shape(0));
    window.height = int(x.shape(1));
    window.width = int(x.shape(2));
    window.channels = channels;
    window.stride = int64_t(x.shape(3));
    for (int i = 0; i < 2; i++) {
      window.kernel[i] = kernel[size_t(i)];
      window.step[i] = step[size_t(i)];
      window.gap[i] = gap[size_t(i)];
      window.before[i] = before[size_t(i)];
      window.out[i] = int(y.shape(size_t(i) + 1));
    }
    if (first < 0 || channels < 1 || int64_t(first) + channels > window.stride || int64_t(kernel[0]) * kernel[1] * channels != w.packed.k || first_out < 0 ||
        int64_t(first_out) + w.packed.n > int64_t(y.shape(3)) || x.shape(0) != y.shape(0))
      bad("convolution: channels, kernel and weight do not fit");
    const float* from = x.data() + first;
    float* to = y.data() + first_out;
    const int64_t stride = int64_t(y.shape(3));
    nb::gil_scoped_release released;
    layers.convolution(w.packed, how, window, from, b, to, stride);
  }

  void embed(const PackedWeight& w, nb::ndarray<nb::ro, nb::ndim<1>, nb::c_contig, nb::device::cpu> ids, Rows2 y) {
    const bool wide = ids.dtype() == nb::dtype<int64_t>();
    if (!wide && ids.dtype() != nb::dtype<int32_t>()) bad("embed: ids of 32 or 64 bits expected");
    if (y.shape(0) != ids.size() || y.shape(1) != size_t(w.packed.k) || ids.size() > size_t(INT32_MAX)) bad("embed: shapes do not fit");
    std::vector<int32_t> rows(ids.size());
    for (size_t i = 0; i < ids.size(); i++) {
      const int64_t id = wide ? static_cast<const int64_t*>(ids.data())[i] : static_cast<const int32_t*>(ids.data())[i];
      if (id < 0 || id >= w.packed.n) throw nb::index_error(("embed: there is no row " + std::to_string(id) + " of " + std::to_string(w.packed.n)).c_str());
      rows[i] = int32_t(id);
    }
    float* to = y.data();
    nb::gil_scoped_release released;
    layers.embed(w.packed, rows.data(), int(rows.size()), to);
  }

  void recurrent(int kind, const PackedWeight& w, std::optional<Vector<float>> bias, Rows2In from_x, const std::vector<int>& sizes, bool reverse, Rows2 h, std::optional<Rows2> c,
                 Rows2 y, int column, int group, float fixed, int zero_point, float threshold) {
    if (kind < 0 || kind > int(Cell::Relu)) bad("recurrent: unknown cell");
    const Inputs how = checked_inputs(w.packed, group, fixed, zero_point, threshold);
    const float* b = checked_bias(bias, w.packed.n);
    int64_t total = 0;
    for (int size : sizes) {
      if (size < 1 || size_t(size) > h.shape(0)) bad("recurrent: every step needs rows, and no more than there are states");
      total += size;
    }
    const size_t width = size_t(w.packed.k);
    if (size_t(w.packed.n) != width * size_t(kCellGates[kind]) || int64_t(from_x.shape(0)) != total || from_x.shape(1) != size_t(w.packed.n) || h.shape(1) != width ||
        int64_t(y.shape(0)) != total || column < 0 || size_t(column) + width > y.shape(1) || (Cell(kind) == Cell::Lstm) != c.has_value() ||
        (c && (c->shape(0) != h.shape(0) || c->shape(1) != width)))
      bad("recurrent: shapes do not fit");
    const float* x = from_x.data();
    float *state = h.data(), *memory = c ? c->data() : nullptr, *to = y.data() + column;
    const int64_t stride = int64_t(y.shape(1));
    nb::gil_scoped_release released;
    layers.recurrent(Cell(kind), w.packed, how, b, x, sizes, reverse, state, memory, to, stride);
  }
};
