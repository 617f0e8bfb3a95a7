// The only file that knows Python: octavo._native. Checks everything that comes from there before a kernel sees it.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "blocks.h"
#include "ceilings.h"
#include "immediate.h"
#include "lattice.h"
#include "pages.h"
#include "products.h"
#include "program.h"
#include "sampling.h"
#include "table.h"
#include "trellis.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

template <class T> using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T> using Matrix = nb::ndarray<const T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T> using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows2 = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Rows2In = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Any = nb::ndarray<nb::c_contig, nb::device::cpu>;

[[noreturn]] void bad(const std::string& what) { throw nb::value_error(what.c_str()); }

// A packed weight whose bytes belong to a NumPy array that is kept alive with it.
struct PackedWeight {
  Packed packed;
  nb::object owner;

  PackedWeight(Vector<uint8_t> blob, int store, int meaning, int scale_type, int n, int k, int kpad, int group, int groups, bool has_zeros,
               const std::vector<float>& table, nb::object keep, int bits, bool rounds_inputs)
      : owner(std::move(keep)) {
    if (store < 0 || store > 6 || meaning < 0 || meaning > 1 || scale_type < 0 || scale_type > 2) bad("packed weight: unknown store, meaning or scale type");
    if (n < 1 || k < 1 || kpad < k || table.size() > 16) bad("packed weight: impossible shape or table");
    packed.store = Store(store);
    packed.meaning = Meaning(meaning);
    packed.scale_type = ScaleType(scale_type);
    packed.n = n;
    packed.k = k;
    packed.kpad = kpad;
    packed.group = group;
    packed.groups = groups;
    packed.has_zeros = has_zeros;
    packed.rounds_inputs = rounds_inputs;
    std::copy(table.begin(), table.end(), packed.table);
    if (!table.empty()) round_table();
    const bool codes = store >= 2;
    size_t at = 0;
    if (codes) {
      if (kpad % kStep || group < 1 || groups != (k + group - 1) / group) bad("packed weight: padding or groups do not fit");
      if (group < kpad && group % 4) bad("packed weight: groups must be multiples of 4");
      if (store > 3 && (meaning != 0 || has_zeros)) bad("packed weight: small floats have neither a table nor zeros");
      at = size_t(groups) * kPanel * (scale_type == 0 ? 4 : 2);
      packed.zeros_offset = at;
      if (has_zeros) at += size_t(groups) * kPanel * 4;
      at = (at + 63) / 64 * 64;
    }
    if (packed.store == Store::Trellis) {
      if (bits < 2 || bits > 4 || group < kpad) bad("packed weight: a trellis has steps of 2 to 4 bits and one scale a row");
      packed.bits = bits;
      at = (4 * size_t(kPanel) * (scale_type == 0 ? 4 : 2) + 63) / 64 * 64;
    }
    packed.values_offset = at;
    const size_t bytes = store == 0 ? 64 * size_t(k) : store == 1 ? 32 * size_t(k) : store == 3 ? 8 * size_t(kpad) : 16 * size_t(kpad);
    packed.panel_bytes = (at + bytes + 63) / 64 * 64;
    if (packed.store == Store::Trellis) packed.panel_bytes = (at + 8 * size_t(bits) * size_t(kpad)) / 4;
    packed.data = blob.data();
    if (reinterpret_cast<uintptr_t>(blob.data()) % 64) bad("packed weight: the blob is not 64-byte aligned");
    const size_t stored = packed.store == Store::Trellis ? (size_t(packed.panels()) + 3) / 4 * 4 : size_t(packed.panels());
    if (blob.size() != packed.panel_bytes * stored) bad("packed weight: the blob has the wrong size");
  }
  void round_table();
};

// Integers for the table, for kernels that multiply bytes: of the multipliers that fill a byte, the one with the smallest error.
// E2M1 (0, 0.5 .. 6) comes out exact at 20; NF4 within 0.3% of its largest value.
void PackedWeight::round_table() {
  float largest = 0.f, best = INFINITY;
  for (float v : packed.table) largest = std::max(largest, std::fabs(v));
  for (int m = 127; m >= 64; m--) {
    const float unit = largest / float(m);
    float worst = 0.f;
    for (float v : packed.table) worst = std::max(worst, std::fabs(v - std::nearbyint(v / unit) * unit));
    if (worst < best * 0.999f) {
      best = worst;
      packed.table8_unit = unit;
      for (int i = 0; i < 16; i++) packed.table8[i] = int8_t(std::nearbyint(packed.table[i] / unit));
    }
  }
}

#include "bind_cache.inl.h"

// Every number of a step that becomes an address is checked here, once; `starts` and `tables` are known to fit `sequences`.
void check_step(const Step& s, int vocabulary, int most_positions, int pages) {
  bool ascending = s.starts[0] == 0 && s.starts[s.sequences] == s.rows;  // before any of them is used as an index
  for (int q = 0; q < s.sequences; q++) ascending = ascending && s.starts[q] < s.starts[q + 1];
  if (!ascending) bad("step: starts must ascend from 0 to the number of rows");
  for (int r = 0; r < s.rows; r++) {
    if (s.tokens[r] < 0 || s.tokens[r] >= vocabulary) bad("step: token " + std::to_string(s.tokens[r]) + " is outside the vocabulary of " + std::to_string(vocabulary));
    if (s.positions[r] < 0 || s.positions[r] >= most_positions) bad("step: position " + std::to_string(s.positions[r]) + " is beyond the rope table of " + std::to_string(most_positions));
    if (s.slots[r] < 0 || int64_t(s.slots[r]) >= int64_t(pages) * kPage) bad("step: slot " + std::to_string(s.slots[r]) + " is outside the cache");
  }
  for (int q = 0; q < s.sequences; q++) {
    const int rows = s.starts[q + 1] - s.starts[q];
    if (s.lengths[q] < rows) bad("step: sequence " + std::to_string(q) + " has fewer tokens than rows");
    const int used = (s.lengths[q] - 1) / kPage + 1;
    if (used > s.table_stride) bad("step: sequence " + std::to_string(q) + " has a page table that is too short");
    for (int i = 0; i < used; i++) {
      const int32_t page = s.tables[int64_t(q) * s.table_stride + i];
      if (page < 0 || page >= pages) bad("step: page " + std::to_string(page) + " is outside the cache");
    }
    for (int r = s.starts[q]; r < s.starts[q + 1]; r++) {
      const int position = s.lengths[q] - rows + r - s.starts[q];  // place in the cache, whatever rope is told
      if (s.slots[r] != s.tables[int64_t(q) * s.table_stride + position / kPage] * kPage + position % kPage) bad("step: slots and page tables disagree");
    }
  }
  std::vector<int32_t> written(s.slots, s.slots + s.rows);  // threads write them at the same time
  std::sort(written.begin(), written.end());
  if (std::adjacent_find(written.begin(), written.end()) != written.end()) bad("step: two rows are written to the same slot");
  for (int i = 0; i < s.logit_rows; i++)
    if (s.select[i] < 0 || s.select[i] >= s.rows) bad("step: select points outside the rows");
}

Step checked_step(Vector<int32_t> tokens, Vector<int32_t> positions, Vector<int32_t> slots, Vector<int32_t> starts, Vector<int32_t> lengths,
                  Matrix<int32_t> tables, Vector<int32_t> select, const Program& program, int pages) {
  Step s;
  s.rows = int32_t(tokens.size());
  s.sequences = int32_t(lengths.size());
  s.logit_rows = int32_t(select.size());
  s.table_stride = int32_t(tables.shape(1));
  s.tokens = tokens.data();
  s.positions = positions.data();
  s.slots = slots.data();
  s.starts = starts.data();
  s.lengths = lengths.data();
  s.tables = tables.data();
  s.select = select.data();
  if (positions.size() != tokens.size() || slots.size() != tokens.size()) bad("step: tokens, positions and slots differ in length");
  if (starts.size() != lengths.size() + 1 || tables.shape(0) != lengths.size()) bad("step: starts, lengths and tables do not fit");
  check_step(s, program.vocabulary(), program.positions(), pages);
  return s;
}

// How tokens are drawn from some of `count` rows of `width` logits, by the `us` numbers of u
std::vector<Draw> checked_draws(const float* logits, size_t count, size_t width, const std::vector<int>& rows, const std::vector<float>& temperature,
                                const std::vector<int>& top_k, const std::vector<double>& top_p, const std::vector<float>& min_p, const double* u, size_t us) {
  const size_t n = rows.size();
  if (temperature.size() != n || top_k.size() != n || top_p.size() != n || min_p.size() != n || us != n) bad("draw: as many settings as rows expected");
  std::vector<Draw> draws(n);
  for (size_t i = 0; i < n; i++) {
    if (rows[i] < 0 || size_t(rows[i]) >= count) bad("draw: there is no row " + std::to_string(rows[i]));
    if (!(temperature[i] > 0.f) || !(u[i] >= 0 && u[i] < 1)) bad("draw: a temperature above 0 and u in [0, 1) expected");
    draws[i] = {logits + size_t(rows[i]) * width, temperature[i], top_k[i], top_p[i], min_p[i], u[i]};
  }
  return draws;
}

struct PyProgram {
  Program program;
  std::vector<nb::object> owners;
  std::shared_ptr<Team> team;
  std::vector<DrawSpace> space;  // to draw tokens in

  PyProgram(std::shared_ptr<Team> t, const std::string& isa) : program(t, kernels_for(isa)), team(std::move(t)) {}

  int weight(nb::object w) {
    const int id = program.weight(nb::cast<PackedWeight&>(w).packed);
    owners.push_back(std::move(w));
    return id;
  }
  int constant(nb::ndarray<const float, nb::c_contig, nb::device::cpu> a) { return program.constant(std::vector<float>(a.data(), a.data() + a.size())); }

  void apply(Rows2In x, Vector<int32_t> starts, int input, int result, Rows2 y);
  bool encode(Matrix<int64_t> ids, std::optional<nb::ndarray<nb::ro, nb::ndim<2>, nb::c_contig, nb::device::cpu>> mask, std::optional<Matrix<int64_t>> types, int padding, int result,
              Rows2 y, int chosen, std::optional<Rows2> first);

  int places(Vector<int32_t> a) { return program.places(std::vector<int32_t>(a.data(), a.data() + a.size())); }

  // The layers of a cache; the pages that all of them have
  int cache_of(const std::vector<Layer*>& layers, std::vector<CacheLayer>& cache) const {
    if (int(layers.size()) < program.layers()) bad("cache: fewer layers than the model has");
    int pages = layers.empty() ? 0 : INT32_MAX;
    for (const Layer* l : layers) {
      cache.push_back(l->layer);
      pages = std::min(pages, l->layer.pages);
    }
    return pages;
  }

  void together(Vector<int32_t> tokens, Vector<int32_t> positions, Vector<int32_t> slots, Vector<int32_t> starts, Vector<int32_t> lengths, Matrix<int32_t> tables,
                Vector<int32_t> select, const std::vector<Layer*>& layers, int result, Rows2 logits, int steps, Out<int32_t> places, Out<float> values,
                const std::vector<int>& drawn, const std::vector<float>& temperature, const std::vector<int>& top_k, const std::vector<double>& top_p,
                const std::vector<float>& min_p, const std::vector<double>& u);

  void run(Vector<int32_t> tokens, Vector<int32_t> positions, Vector<int32_t> slots, Vector<int32_t> starts, Vector<int32_t> lengths,
           Matrix<int32_t> tables, Vector<int32_t> select, const std::vector<Layer*>& layers, int result, Rows2 logits, Out<int32_t> place, Out<float> value) {
    std::vector<CacheLayer> cache;
    const int pages = cache_of(layers, cache);
    const Step step = checked_step(tokens, positions, slots, starts, lengths, tables, select, program, pages);
    if (logits.shape(0) != size_t(step.logit_rows) || logits.shape(1) != size_t(program.at(result).width)) bad("logits: the array has the wrong shape");
    if (step.rows == 0) return;
    if (place.size() < logits.shape(0) || value.size() < logits.shape(0)) bad("logits: no room for the largest of each row");
    float* out = logits.data();
    if (step.logit_rows && reinterpret_cast<uintptr_t>(out) % 64) bad("logits: the array is not 64-byte aligned");
    int32_t* places = place.data();
    float* values = value.data();
    nb::gil_scoped_release released;
    program.run(step, cache, result, out, places, values);
  }
};

// Draws tokens; keeps the room that takes.
struct Drawer {
  std::shared_ptr<Team> team;
  const Kernels& kernels;
  std::vector<DrawSpace> space;

  Drawer(std::shared_ptr<Team> t, const std::string& isa) : team(std::move(t)), kernels(kernels_for(isa)) {}

  std::vector<int32_t> draw(Matrix<float> logits, const std::vector<int>& rows, const std::vector<float>& temperature, const std::vector<int>& top_k,
                            const std::vector<double>& top_p, const std::vector<float>& min_p, const std::vector<double>& u) {
    const size_t n = rows.size();
    if (logits.shape(1) < 1 || logits.shape(1) > size_t(INT32_MAX)) bad("draw: rows of at least one logit expected");
    std::vector<Draw> draws = checked_draws(logits.data(), logits.shape(0), logits.shape(1), rows, temperature, top_k, top_p, min_p, u.data(), u.size());
    std::vector<int32_t> tokens(n);
    const int width = int(logits.shape(1));
    nb::gil_scoped_release released;
    if (n) draw_all(kernels, *team, draws, width, space, tokens.data());
    return tokens;
  }
};

#include "bind_immediate.inl.h"
#include "bind_products.inl.h"
#include "bind_rounding.inl.h"
#include "bind_rows.inl.h"
#include "bind_together.inl.h"

// ---- single kernels, for tests and benchmarks: one thread, chosen instruction set ----

void linear_once(const PackedWeight& w, Rows2 x, Rows2 y, const std::string& isa, int group, int repeat, const std::string& kernel, float threshold) {
  const Kernels& kernels = kernels_for(isa);
  const int rows = int(x.shape(0)), k = w.packed.k;
  if (int(x.shape(1)) != k || int(y.shape(1)) != w.packed.n || y.shape(0) != x.shape(0)) bad("linear: shapes do not fit");
  const LinearKernel* chosen = kernel.empty() ? &kernels.linears[kernels.usual_linear(w.packed, group, rows)] : nullptr;
  for (int i = 0; i < kernels.linear_count; i++)
    if (kernel == kernels.linears[i].name) chosen = &kernels.linears[i];
  if (!chosen) bad("linear: there is no kernel " + kernel + " for " + kernels.isa);
  if (!chosen->supports(w.packed, group, rows)) bad("linear: the kernel " + kernel + " does not support this weight");
  const Inputs how{group, 0.f, 0, threshold, nullptr};
  check_inputs(how, k);
  Codes codes(how, k);
  Block room, scratch;
  LinearCall call;
  call.in.x = x.data();
  call.in.stride = k;
  call.in.rows = rows;
  call.w = &w.packed;
  call.y = y.data();
  call.y_stride = w.packed.n;
  scratch.reserve(std::max(kernels.linear_scratch_bytes(), codes.spare_bytes()));
  nb::gil_scoped_release released;
  if (group) {
    room.reserve(codes.bytes(rows));
    codes.lie_at(room.as<void>(), rows);
    codes.fill(kernels, x.data(), k, 0, rows, scratch.as<void>());
    codes.put(call.in);
  }
  for (int i = 0; i < repeat; i++) run_linear(kernels, *chosen, call, 0, w.packed.panels(), scratch.as<void>());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Native CPU kernels of Octavo and the program that replays them.";
  m.def("available_isas", &available_isas, "Instruction sets that run here, best first.");
  m.def("cpu_features", &cpu_features, "Features of this CPU that kernels care about.");
  m.def("linear_kernels", [](const std::string& isa) {
    const Kernels& kernels = kernels_for(isa);
    std::vector<std::string> names;
    for (int i = 0; i < kernels.linear_count; i++) names.emplace_back(kernels.linears[i].name);
    return names;
  }, nb::arg("isa") = "", "Names of the ways to run a linear on an instruction set; all give the same bits.");
  m.def("linear_supported", [](const PackedWeight& w, const std::string& isa, int group, int rows, const std::string& kernel) {
    const Kernels& kernels = kernels_for(isa);
    for (int i = 0; i < kernels.linear_count; i++)
      if (kernel == kernels.linears[i].name) return kernels.linears[i].supports(w.packed, group, rows);
    bad("linear: there is no kernel " + kernel + " for " + kernels.isa);
  }, nb::arg("weight"), nb::arg("isa"), nb::arg("group"), nb::arg("rows"), nb::arg("kernel"));
  m.def("row_buckets", [] { return std::vector<int>(kRowBuckets, kRowBuckets + kBuckets); }, "Numbers of rows, upper bounds, for which a choice of kernel is kept.");
  m.def("read_rate", [](Team& team, const std::string& isa, Vector<uint8_t> data, double seconds) {
    if (data.size() < 4096 || reinterpret_cast<uintptr_t>(data.data()) % 64) bad("read_rate: at least 4096 bytes that start 64-byte aligned expected");
    const CeilingKernels& kernels = ceilings_for(isa);
    nb::gil_scoped_release released;
    return read_rate(team, kernels, data.data(), data.size(), seconds);
  }, "Bytes a second at which the team reads an array again and again.");
  m.def("operation_rate", [](Team& team, const std::string& isa, bool integers, double seconds) {
    const CeilingKernels& kernels = ceilings_for(isa);
    nb::gil_scoped_release released;
    return operation_rate(team, integers ? kernels.int8 : kernels.floats, seconds);
  }, "Operations a second of the team from registers: int8 products and sums, or float32 ones.");
  m.def("populate", [](Vector<uint8_t> bytes) {
    const uint8_t* data = bytes.data();
    const size_t size = bytes.size();
    nb::gil_scoped_release released;
    populate(data, size);
  }, nb::arg("bytes"), "Bring the pages of a mapped file into memory and into this process, in order; other threads run meanwhile.");
  bind_products(m);
  bind_rounding(m);
  m.attr("PAGE") = kPage;
  m.attr("PANEL") = kPanel;

  nb::class_<Team>(m, "Team").def("__init__", [](Team* t, int size, int patience) { new (t) Team(size, 1000L * std::clamp(patience, 2, 10'000)); },
                                  nb::arg("size"), nb::arg("patience") = int(kPatience / 1000), "patience: microseconds that a barrier spins at most").def_prop_ro("size", &Team::size);
  nb::class_<Drawer>(m, "Drawer")
      .def(nb::init<std::shared_ptr<Team>, const std::string&>(), nb::arg("team"), nb::arg("isa") = "")
      .def("draw", &Drawer::draw, nb::arg("logits"), nb::arg("rows"), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"), nb::arg("u"),
           "A token of each row of logits; see csrc/sampling.h. One call at a time.");
  nb::class_<PackedWeight>(m, "PackedWeight")
      .def(nb::init<Vector<uint8_t>, int, int, int, int, int, int, int, int, bool, const std::vector<float>&, nb::object, int, bool>(), nb::arg("blob"),
           nb::arg("store"), nb::arg("meaning"), nb::arg("scale_type"), nb::arg("n"), nb::arg("k"), nb::arg("kpad"), nb::arg("group"),
           nb::arg("groups"), nb::arg("has_zeros"), nb::arg("table"), nb::arg("keep"), nb::arg("bits") = 0,
           nb::arg("rounds_inputs") = false)
      .def_prop_ro("n", [](const PackedWeight& w) { return w.packed.n; })
      .def_prop_ro("k", [](const PackedWeight& w) { return w.packed.k; });
  nb::class_<Layer>(m, "Layer").def(nb::init<Any, Any, nb::object, nb::object, int, bool, bool, nb::object, std::vector<nb::object>>(), nb::arg("k"), nb::arg("v"),
                                    nb::arg("k_scale").none(), nb::arg("v_scale").none(), nb::arg("dim"), nb::arg("k_even"),
                                    nb::arg("v_even"), nb::arg("balance").none(), nb::arg("keep"));
  nb::class_<PyProgram>(m, "Program")
      .def(nb::init<std::shared_ptr<Team>, const std::string&>(), nb::arg("team"), nb::arg("isa") = "")
      .def("buffer", [](PyProgram& p, int width, bool logits) { return p.program.buffer(width, logits ? Rows::Logits : Rows::Step); })
      .def("constant", &PyProgram::constant)
      .def("places", &PyProgram::places)
      .def("weight", &PyProgram::weight)
      .def("embed", [](PyProgram& p, int w, float factor, int out) { p.program.embed(w, factor, out); })
      .def("embed_by", [](PyProgram& p, int w, int ids, int out) {
        if (ids < 0 || ids > int(Ids::Types)) bad("embed_by: 0 tokens, 1 positions, 2 types");
        p.program.embed(w, 1.f, out, Ids(ids)); })
      .def("linear", [](PyProgram& p, int x, std::vector<int> w, std::vector<int> b, std::vector<int> out, int residual, int group, float fixed, int zero_point, float threshold, int factors) {
        p.program.linear(x, std::move(w), std::move(b), std::move(out), residual, {group, fixed, zero_point, threshold, nullptr}, factors); },
        nb::arg("x"), nb::arg("weights"), nb::arg("biases"), nb::arg("outs"), nb::arg("residual"), nb::arg("group"), nb::arg("fixed") = 0.f, nb::arg("zero_point") = 0,
        nb::arg("threshold") = 0.f, nb::arg("factors") = -1)
      .def("layer_norm", [](PyProgram& p, int x, int gain, int bias, float eps, int out) { p.program.layer_norm(x, gain, bias, eps, out); })
      .def("activate", [](PyProgram& p, int kind, int x, int out) { p.program.activate(kind, x, out); })
      .def("mutual_attention", [](PyProgram& p, int q, int k, int v, int out, int heads, int head_dim, float scale) {
        p.program.mutual_attention(q, k, v, out, heads, head_dim, scale); })
      .def("apply", &PyProgram::apply)
      .def("encode", &PyProgram::encode, nb::arg("ids"), nb::arg("mask").none(), nb::arg("types").none(), nb::arg("padding"), nb::arg("result"), nb::arg("y"), nb::arg("chosen"),
           nb::arg("first").none())
      .def("rms_norm", [](PyProgram& p, int x, int gain, float eps, float offset, int groups, int out) { p.program.rms_norm(x, gain, eps, offset, groups, out); })
      .def("rope", [](PyProgram& p, int x, int table, int heads, int head_dim, int rotary) { p.program.rope(x, table, heads, head_dim, rotary); })
      .def("gate", [](PyProgram& p, int kind, int g, int up, int out) { p.program.gate(kind, g, up, out); })
      .def("add", [](PyProgram& p, int a, int b, int out) { p.program.add(a, b, out); })
      .def("columns", [](PyProgram& p, int x, int order, int factors, int rotation, int out) { p.program.columns(x, order, factors, rotation, out); })
      .def("softcap", [](PyProgram& p, int x, float cap) { p.program.softcap(x, cap); })
      .def("select", [](PyProgram& p, int x, int out) { p.program.select(x, out); })
      .def("squares", [](PyProgram& p, int x, Out<double> sums) {
        if (int64_t(sums.size()) != p.program.at(x).width) bad("squares: one sum for each column of x");
        p.program.squares(x, sums.data()); }, nb::keep_alive<1, 3>())
      .def("attention", [](PyProgram& p, int q, int k, int v, int out, int layer, int heads, int kv_heads, int head_dim, float scale, int window, float cap) {
        p.program.attention(q, k, v, out, layer, heads, kv_heads, head_dim, scale, window, cap); })
      .def("run", &PyProgram::run)
      .def("together", &PyProgram::together)
      .def("linears", [](const PyProgram& p) {
        nb::list found;
        for (const auto& l : p.program.linears()) {
          nb::dict one;
          one["n"] = l.weight->n; one["k"] = l.weight->k; one["store"] = int(l.weight->store); one["table"] = l.weight->meaning == Meaning::Table;
          one["group"] = l.weight->group; one["zeros"] = l.weight->has_zeros; one["scale_type"] = int(l.weight->scale_type);
          one["activation_group"] = l.in_group; one["logits"] = l.logits;
          one["bytes"] = l.weight->panel_bytes * size_t(l.weight->panels());
          found.append(one);
        }
        return found;
      })
      .def("trace", [](PyProgram& p, bool on) { p.program.trace(on); })
      .def("describe", [](const PyProgram& p, int rows, int logit_rows) {
        nb::list found;
        for (const OpInfo& i : p.program.describe(rows, logit_rows)) {
          nb::dict one;
          one["kind"] = i.kind; one["shape"] = i.shape; one["kernel"] = i.kernel; one["logit_rows"] = i.logit_rows;
          one["weight_bytes"] = i.weight_bytes; one["row_bytes"] = i.row_bytes; one["int_ops"] = i.int_ops; one["float_ops"] = i.float_ops;
          one["layer"] = i.layer; one["heads"] = i.heads; one["kv_heads"] = i.kv_heads; one["head_dim"] = i.head_dim; one["window"] = i.window;
          one["int_pairs"] = i.int_pairs;
          found.append(one);
        }
        return found;
      })
      .def("last_trace", [](const PyProgram& p) {  // (entered, left, [member: [(op, what, until)]]), in nanoseconds of the steady clock
        const Trace& t = p.program.last_trace();
        nb::list members;
        for (int m = 0; m < t.members(); m++) {
          nb::list marks;
          for (const Mark& k : t.marks(m)) marks.append(nb::make_tuple(k.op, int(k.what), t.nanoseconds(k.at)));
          members.append(marks);
        }
        return nb::make_tuple(t.entered(), t.left(), members);
      })
      .def("choose", [](PyProgram& p, int linear, int bucket, const std::string& kernel) { p.program.choose(linear, bucket, kernel); })
      .def("chosen", [](const PyProgram& p, int linear, int bucket) { return p.program.chosen(linear, bucket); })
      .def_prop_ro("ops", [](const PyProgram& p) { return p.program.ops(); })
      .def_prop_ro("buffer_bytes", [](const PyProgram& p) { return p.program.buffer_bytes(); });
  nb::class_<PyImmediate>(m, "Immediate")
      .def(nb::init<std::shared_ptr<Team>, const std::string&>(), nb::arg("team"), nb::arg("isa") = "")
      .def("linear", &PyImmediate::linear, nb::arg("weight"), nb::arg("x"), nb::arg("bias").none(), nb::arg("y"), nb::arg("group") = 0, nb::arg("fixed") = 0.f, nb::arg("zero_point") = 0,
           nb::arg("threshold") = 0.f, nb::arg("factors") = nb::none())
      .def("convolution", &PyImmediate::convolution, nb::arg("weight"), nb::arg("x"), nb::arg("bias").none(), nb::arg("y"), nb::arg("kernel"), nb::arg("step"), nb::arg("gap"),
           nb::arg("before"), nb::arg("first"), nb::arg("channels"), nb::arg("first_out"), nb::arg("group") = 0, nb::arg("fixed") = 0.f, nb::arg("zero_point") = 0, nb::arg("threshold") = 0.f)
      .def("embed", &PyImmediate::embed, nb::arg("weight"), nb::arg("ids"), nb::arg("y"))
      .def("recurrent", &PyImmediate::recurrent, nb::arg("kind"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("from_x"), nb::arg("sizes"), nb::arg("reverse"), nb::arg("h"),
           nb::arg("c").none(), nb::arg("y"), nb::arg("column"), nb::arg("group") = 0, nb::arg("fixed") = 0.f, nb::arg("zero_point") = 0, nb::arg("threshold") = 0.f);
  m.def("linear_once", &linear_once, nb::arg("weight"), nb::arg("x"), nb::arg("y"), nb::arg("isa") = "", nb::arg("group") = 0, nb::arg("repeat") = 1, nb::arg("kernel") = "",
        nb::arg("threshold") = 0.f, "y = x w^T on one thread with the kernels of one instruction set; group: of int8 activations, 0 for float ones; threshold: from "
        "which on they stay float. For tests, benchmarks and the policy search.");
}
