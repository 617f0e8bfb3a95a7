// Steps that only decode, one after the other without a way back to Python. Part of bind.cpp.

// `steps` steps of sequences with one row each. Each takes the tokens that the step before it gave: the likeliest, or, of the rows `drawn`, one that is drawn by
// the numbers u [steps][drawn]. To places and values [steps][rows]: those tokens, and the largest logit of every row; nothing is drawn from rows that hold a NaN.
void PyProgram::together(Vector<int32_t> tokens, Vector<int32_t> positions, Vector<int32_t> slots, Vector<int32_t> starts, Vector<int32_t> lengths, Matrix<int32_t> tables,
                         Vector<int32_t> select, const std::vector<Layer*>& layers, int result, Rows2 logits, int steps, Out<int32_t> places, Out<float> values,
                         const std::vector<int>& drawn, const std::vector<float>& temperature, const std::vector<int>& top_k, const std::vector<double>& top_p,
                         const std::vector<float>& min_p, const std::vector<double>& u) {
  std::vector<CacheLayer> cache;
  const int pages = cache_of(layers, cache);
  Step step = checked_step(tokens, positions, slots, starts, lengths, tables, select, program, pages);
  const int rows = step.rows, width = program.at(result).width;
  if (steps < 1 || rows < 1 || rows != step.sequences || rows != step.logit_rows) bad("together: at least one step, of one row for each sequence, expected");
  for (int r = 0; r < rows; r++)
    if (step.select[r] != r) bad("together: the logits of all rows, in order, expected");
  if (logits.shape(0) != size_t(rows) || logits.shape(1) != size_t(width) || reinterpret_cast<uintptr_t>(logits.data()) % 64) bad("logits: the array has the wrong shape or place");
  const size_t all = size_t(steps) * size_t(rows);
  if (places.size() != all || values.size() != all || u.size() != size_t(steps) * drawn.size()) bad("together: a place, a value and a number to draw by for each step and row expected");
  std::vector<std::vector<Draw>> draws;  // of each step, checked before anything is computed
  for (int turn = 0; turn < steps; turn++)
    draws.push_back(checked_draws(logits.data(), size_t(rows), size_t(width), drawn, temperature, top_k, top_p, min_p, u.data() + size_t(turn) * drawn.size(), drawn.size()));

  std::vector<int32_t> ids(step.tokens, step.tokens + rows), at(step.positions, step.positions + rows), slot(step.slots, step.slots + rows),
      length(step.lengths, step.lengths + rows);
  step.tokens = ids.data();
  step.positions = at.data();
  step.slots = slot.data();
  step.lengths = length.data();
  float* out = logits.data();
  int32_t* place = places.data();
  float* value = values.data();
  nb::gil_scoped_release released;
  for (int turn = 0; turn < steps; turn++, place += rows, value += rows) {
    if (turn) {
      for (int r = 0; r < rows; r++) {
        ids[size_t(r)] = place[r - rows];
        at[size_t(r)]++;
        const int newest = length[size_t(r)]++;
        if (newest / kPage >= step.table_stride) bad("together: sequence " + std::to_string(r) + " has a page table that is too short for " + std::to_string(steps) + " steps");
        slot[size_t(r)] = step.tables[int64_t(r) * step.table_stride + newest / kPage] * kPage + newest % kPage;
      }
      check_step(step, program.vocabulary(), program.positions(), pages);
    }
    program.run(step, cache, result, out, place, value);
    std::vector<int> rows_drawn;
    std::vector<Draw> sound;
    for (size_t i = 0; i < drawn.size(); i++)
      if (std::isfinite(value[drawn[i]])) {
        rows_drawn.push_back(drawn[i]);
        sound.push_back(draws[size_t(turn)][i]);
      }
    if (sound.empty()) continue;
    std::vector<int32_t> found(sound.size());
    draw_all(program.kernels(), *team, sound, width, space, found.data());
    for (size_t i = 0; i < sound.size(); i++) place[rows_drawn[i]] = found[i];
  }
}
