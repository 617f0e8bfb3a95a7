// Rounding of weights: what octavo._native checks before csrc/blocks.h, trellis.h and lattice.h see it. A part of bind.cpp, included there alone.

static LatticeGrid lattice_grid(Rows2 scales, float outer, Rows2In low, Rows2In high, const std::optional<Vector<float>>& table, int scale_store,
                                const std::optional<Vector<float>>& scale_table) {
  const size_t groups = scales.shape(0), rows = scales.shape(1);
  for (const Rows2In* bound : {&low, &high})
    if (bound->shape(0) != groups || bound->shape(1) != rows || groups > size_t(INT32_MAX)) bad("grid: bounds and scales do not fit");
  if (scale_store < 0 || scale_store > int(ScaleStore::Table) || (ScaleStore(scale_store) == ScaleStore::Table && !(scale_table && scale_table->size())) ||
      (table && !table->size()))
    bad("grid: unknown numbers or scales");
  LatticeGrid grid;
  grid.groups = int(groups);
  grid.rows = int64_t(rows);
  grid.scales = scales.data();
  grid.outer = outer;
  grid.low = low.data();
  grid.high = high.data();
  grid.table = table ? table->data() : nullptr;
  grid.entries = table ? int(table->size()) : 0;
  grid.store = ScaleStore(scale_store);
  grid.stored = scale_table ? scale_table->data() : nullptr;
  grid.stored_entries = scale_table ? int(scale_table->size()) : 0;
  return grid;
}

void bind_rounding(nb::module_& m) {
  m.def("encode_blocks", [](int type, nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> x, nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu> out, const std::string& isa) {
    const BlockShape shape = block_shape(BlockType(type));
    const bool wide = x.dtype() == nb::dtype<float>(), brain = x.dtype() == nb::dtype<uint16_t>();
    const bool half = x.dtype().code == uint8_t(nb::dlpack::dtype_code::Float) && x.dtype().bits == 16;
    if (!shape.numbers || !(wide || brain || half)) bad("encode_blocks: a known type and float32, float16 or bfloat16 (as uint16) numbers expected");
    const size_t rows = x.ndim() == 2 ? x.shape(0) : 0, width = x.ndim() == 2 ? x.shape(1) : 0, blocks = width / size_t(shape.numbers);
    if (x.ndim() != 2 || width % size_t(shape.numbers) || out.shape(0) != rows || out.shape(1) != blocks * size_t(shape.bytes)) bad("encode_blocks: the shapes do not fit");
    const void* from = x.data();
    uint8_t* to = out.data();
    nb::gil_scoped_release released;
    return encode_blocks(isa, BlockType(type), wide ? Floats::F32 : half ? Floats::F16 : Floats::BF16, from, rows * width, to);
  }, nb::arg("type"), nb::arg("x"), nb::arg("out"), nb::arg("isa") = "",
     "Rows of floats as ggml's blocks of a type (its number); returns how many blocks have a scale beyond float16. On the calling thread, without the GIL.");
  m.def("round_trellis", [](int bits, nb::ndarray<float, nb::ndim<2>, nb::device::cpu> weights, Matrix<float> upper, Vector<float> scales,
                            nb::ndarray<uint16_t, nb::ndim<2>, nb::device::cpu> states, Rows2 errors, int threads, const std::string& isa) {
    TrellisBlock block;
    const size_t rows = weights.shape(0), width = weights.shape(1);
    const bool lies = weights.stride(1) == 1 && states.stride(1) == 1 && weights.stride(0) == states.stride(0);
    if (bits < 2 || bits > 4 || threads < 1) bad("round_trellis: 2 to 4 bits and at least one thread expected");
    if (!lies || states.shape(0) != rows || states.shape(1) != width || errors.shape(0) != rows || errors.shape(1) != width || upper.shape(0) != width ||
        upper.shape(1) != width || scales.size() != rows)
      bad("round_trellis: the shapes do not fit");
    block.bits = bits;
    block.rows = int64_t(rows);
    block.width = int(width);
    block.stride = weights.stride(0);
    block.weights = weights.data();
    block.upper = upper.data();
    block.scales = scales.data();
    block.states = states.data();
    block.errors = errors.data();
    nb::gil_scoped_release released;
    round_trellis(isa, block, threads);
  }, nb::arg("bits"), nb::arg("weights"), nb::arg("upper"), nb::arg("scales"), nb::arg("states"), nb::arg("errors"), nb::arg("threads") = 1, nb::arg("isa") = "",
     "Columns of a weight to the nearest paths through a trellis, each column's error made good in those after it (csrc/trellis.h). Changes weights, states and errors.");
  m.def("round_lattice", [](Matrix<float> matrix, Vector<int32_t> group, Vector<int32_t> place, Rows2In from, Rows2 values, Rows2 scales, float outer, Rows2In low,
                            Rows2In high, std::optional<Vector<float>> table, int scale_store, std::optional<Vector<float>> scale_table, const std::string& isa) {
    const size_t k = from.shape(0), rows = from.shape(1), groups = scales.shape(0);
    if (matrix.shape(0) != k || matrix.shape(1) != k || group.size() != k || place.size() != k || scales.shape(1) != rows || values.shape(1) != rows || k > size_t(INT32_MAX))
      bad("round_lattice: the shapes do not fit");
    for (size_t i = 0; i < k; i++)
      if (group.data()[i] < 0 || size_t(group.data()[i]) >= groups || place.data()[i] < 0 || size_t(place.data()[i]) >= values.shape(0))
        bad("round_lattice: there is no such group or place");
    const LatticeGrid grid = lattice_grid(scales, outer, low, high, table, scale_store, scale_table);
    Lattice lattice;
    lattice.k = int(k);
    lattice.matrix = matrix.data();
    lattice.group = group.data();
    lattice.place = place.data();
    lattice.from = from.data();
    lattice.values = values.data();
    nb::gil_scoped_release released;
    round_lattice(isa, lattice, grid);
  }, nb::arg("matrix"), nb::arg("group"), nb::arg("place"), nb::arg("from_"), nb::arg("values"), nb::arg("scales"), nb::arg("outer"), nb::arg("low"), nb::arg("high"),
     nb::arg("table").none(), nb::arg("scale_store"), nb::arg("scale_table").none(), nb::arg("isa") = "",
     "Inputs of weights rounded in order, each knowing what those before it lost (csrc/lattice.h). Changes values; on the calling thread, without the GIL.");
  m.def("descend_lattice", [](Matrix<float> matrix, Vector<float> alpha, Vector<int32_t> starts, Rows2 pull, Rows2 values,
                              Rows2 scales, float outer, Rows2In low, Rows2In high, std::optional<Vector<float>> table, int scale_store,
                              std::optional<Vector<float>> scale_table, const std::string& isa) {
    const size_t rows = pull.shape(0), k = pull.shape(1), groups = scales.shape(0);
    const auto same = [&](const auto& a) { return a.shape(0) == rows && a.shape(1) == k; };
    if (matrix.shape(0) != k || matrix.shape(1) != k || alpha.size() != k || !same(values) || scales.shape(1) != rows || starts.size() != groups + 1 ||
        k > size_t(INT32_MAX))
      bad("descend_lattice: the shapes do not fit");
    if (starts.data()[0] != 0 || size_t(starts.data()[groups]) != k) bad("descend_lattice: groups are runs of all inputs");
    for (size_t g = 0; g < groups; g++)
      if (starts.data()[g] >= starts.data()[g + 1]) bad("descend_lattice: groups are runs of all inputs");
    const LatticeGrid grid = lattice_grid(scales, outer, low, high, table, scale_store, scale_table);
    Descent descent;
    descent.k = int(k);
    descent.matrix = matrix.data();
    descent.alpha = alpha.data();
    descent.starts = starts.data();
    descent.pull = pull.data();
    descent.values = values.data();
    nb::gil_scoped_release released;
    return descend_lattice(isa, descent, grid);
  }, nb::arg("matrix"), nb::arg("alpha"), nb::arg("starts"), nb::arg("pull"), nb::arg("values"),
     nb::arg("scales"), nb::arg("outer"), nb::arg("low"), nb::arg("high"), nb::arg("table").none(), nb::arg("scale_store"), nb::arg("scale_table").none(), nb::arg("isa") = "",
     "One pass over rounded weights, each value to what is best as the others are (csrc/lattice.h); returns how many moved. Changes pull and "
     "values. On the calling thread, without the GIL.");
  m.def("search_scales", [](Rows2In weight, Rows2In importance, Vector<int32_t> starts, Vector<float> ratios, bool fit, std::optional<Rows2> zeros, float steps,
                            int zero_tries, Rows2 scales, float outer, Rows2In low, Rows2In high, std::optional<Vector<float>> table, int scale_store,
                            std::optional<Vector<float>> scale_table, const std::string& isa) {
    const LatticeGrid grid = lattice_grid(scales, outer, low, high, table, scale_store, scale_table);
    const size_t k = weight.shape(0), rows = weight.shape(1), groups = scales.shape(0);
    if (scales.shape(1) != rows || importance.shape(0) != k || (importance.shape(1) != 1 && importance.shape(1) != rows) || starts.size() != groups + 1 ||
        (zeros && (zeros->shape(0) != groups || zeros->shape(1) != rows)) || zero_tries < 1 || zero_tries > 3)
      bad("search_scales: the shapes do not fit");
    for (size_t g = 0; g < groups; g++)
      if (starts.data()[g] < 0 || starts.data()[g] > starts.data()[g + 1] || size_t(starts.data()[g + 1]) > k) bad("search_scales: groups are runs of inputs");
    ScaleSearch search;
    search.weight = weight.data();
    search.importance = importance.data();
    search.importance_stride = importance.shape(1) == 1 ? 0 : int64_t(rows);
    search.starts = starts.data();
    search.ratios = ratios.data();
    search.ratio_count = int(ratios.size());
    search.fit = fit;
    search.zeros = zeros ? zeros->data() : nullptr;
    search.steps = steps;
    search.zero_tries = zero_tries;
    nb::gil_scoped_release released;
    search_scales(isa, search, grid);
  }, nb::arg("weight"), nb::arg("importance"), nb::arg("starts"), nb::arg("ratios"), nb::arg("fit"), nb::arg("zeros").none(), nb::arg("steps"), nb::arg("zero_tries"),
     nb::arg("scales"), nb::arg("outer"), nb::arg("low"), nb::arg("high"), nb::arg("table").none(), nb::arg("scale_store"), nb::arg("scale_table").none(),
     nb::arg("isa") = "", "The scales (and zeros) with the least weighted squared error of rounding (csrc/lattice.h). Changes both; on the calling thread, without the GIL.");
}
