// Programs without a cache, as Python calls them: over rows of floats, and over the ids of a tokenizer. Part of bind.cpp.

void PyProgram::apply(Rows2In x, Vector<int32_t> starts, int input, int result, Rows2 y) {
  Step step;
  step.sequences = int(starts.size()) - 1;
  step.rows = int(x.shape(0));
  step.starts = starts.data();
  if (x.shape(1) != size_t(program.at(input).width) || y.shape(1) != size_t(program.at(result).width) || y.shape(0) != x.shape(0)) bad("apply: the arrays have the wrong shape");
  bool ascending = step.sequences >= 1 && starts(0) == 0 && starts(size_t(step.sequences)) == step.rows;
  for (int s = 0; s < step.sequences && ascending; s++) ascending = starts(size_t(s)) < starts(size_t(s) + 1);
  if (!ascending) bad("apply: starts must ascend from 0 to the number of rows");
  Program::Apply call;
  call.input = input;
  call.result = result;
  call.x = x.data();
  call.y = y.data();
  nb::gil_scoped_release released;
  program.apply(step, call);
}

namespace {

// A matrix of ids [batch, length] without its padding: one row for each token that counts.
struct Unpadded {
  std::vector<int32_t> tokens, positions, types, starts{0}, origin, firsts;

  // mask, types: null where all tokens count, or are of segment 0. padding: id of the tokens that have no position of their own, which then begin after
  // it; -1: a token's position is its column.
  template <class Mask>
  Unpadded(const int64_t* ids, const Mask* mask, const int64_t* segments, int batch, int length, int padding, const Program& limits) {
    const size_t room = size_t(batch) * size_t(length);
    for (auto* list : {&tokens, &positions, &types}) list->reserve(room);
    origin.resize(room);
    const auto checked = [](const char* what, int64_t value, int most) {
      if (value < 0 || value >= most) throw nb::index_error((std::string(what) + " " + std::to_string(value) + " is outside the table of " + std::to_string(most)).c_str());
      return int32_t(value);
    };
    for (int b = 0; b < batch; b++) {
      int real = 0;
      for (int i = 0; i < length; i++) {
        const size_t at = size_t(b) * size_t(length) + size_t(i);
        const bool pads = padding >= 0 && ids[at] == padding;
        real += !pads;
        origin[at] = -1;
        if (mask && !mask[at]) continue;
        if (i == 0) firsts.push_back(int32_t(tokens.size()));
        origin[at] = int32_t(tokens.size());
        tokens.push_back(checked("token", ids[at], limits.vocabulary()));
        positions.push_back(checked("position", padding < 0 ? i : pads ? padding : padding + real, limits.positions()));
        types.push_back(checked("segment", segments ? segments[at] : 0, limits.types()));
      }
      if (int32_t(tokens.size()) > starts.back()) starts.push_back(int32_t(tokens.size()));
    }
  }
};

}  // namespace

bool PyProgram::encode(Matrix<int64_t> ids, std::optional<nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>> mask, std::optional<Matrix<int64_t>> types, int padding,
                       int result, Rows2 y, int chosen, std::optional<Rows2> first) {
  const size_t batch = ids.shape(0), length = ids.shape(1);
  const auto same = [&](const auto& a) { return a.shape(0) == batch && a.shape(1) == length; };
  const bool wide = mask && mask->dtype() == nb::dtype<int64_t>();
  if (mask && !wide && mask->dtype() != nb::dtype<bool>()) bad("encode: a mask of booleans or 64-bit integers expected");
  if ((mask && !same(*mask)) || (types && !same(*types)) || y.shape(0) != batch * length || y.shape(1) != size_t(program.at(result).width) || batch * length > size_t(INT32_MAX) / 2 ||
      (chosen >= 0) != first.has_value() || (first && (first->shape(0) != batch || first->shape(1) != size_t(program.at(chosen).width))))
    bad("encode: the arrays have the wrong shape");
  const int64_t* segments = types ? types->data() : nullptr;
  const void* counts = mask ? mask->data() : nullptr;
  const Unpadded rows = wide ? Unpadded(ids.data(), static_cast<const int64_t*>(counts), segments, int(batch), int(length), padding, program)
                             : Unpadded(ids.data(), static_cast<const bool*>(counts), segments, int(batch), int(length), padding, program);
  Step step;
  step.rows = int32_t(rows.tokens.size());
  step.sequences = int32_t(rows.starts.size()) - 1;
  step.starts = rows.starts.data();
  step.tokens = rows.tokens.data();
  step.positions = rows.positions.data();
  step.types = rows.types.data();
  const bool all_begin = rows.firsts.size() == batch;  // else the first column holds padding, of which there is no row to select
  if (chosen >= 0 && all_begin) {
    step.logit_rows = int32_t(batch);
    step.select = rows.firsts.data();
  }
  Program::Apply call;
  call.result = result;
  call.y = y.data();
  call.y_rows = int(batch * length);
  if (rows.tokens.size() < batch * length) call.origin = rows.origin.data();
  call.chosen = chosen;
  if (first) call.chosen_y = first->data();
  nb::gil_scoped_release released;
  program.apply(step, call);
  return all_begin;
}
