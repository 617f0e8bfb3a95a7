// Operations that do the same to every row, without meeting: each member takes its share of the rows. What info_of says about an op is for them
// and for those in program.cpp.
#pragma once
#include <cstring>

#include "program.h"

namespace octavo {

// "W4g64": what a weight is stored in
inline std::string weight_name(const Packed& w) {
  if (w.is_float()) return w.store == Store::F32 ? "fp32" : "bf16";
  if (w.store == Store::Trellis) return "Wtcq" + std::to_string(w.bits);
  std::string name = w.store == Store::E4M3 ? "Wfp8" : w.store == Store::E5M2 ? "Wfp8e5m2" : w.store == Store::Codes8 ? "W8" : w.meaning == Meaning::Table ? "W4 table" : "W4";
  if (w.group < w.kpad) name += "g" + std::to_string(w.group);
  return w.has_zeros ? name + "z" : name;
}
// An op on rows as wide as a buffer that passes over `passes` such rows, with `ops` float operations for each number
inline OpInfo info_of(const char* kind, const Program& p, int buffer, const std::string& more, int passes, double ops = 0) {
  const Buffer& b = p.at(buffer);
  OpInfo i;
  i.kind = kind;
  i.shape = std::to_string(b.width) + (more.empty() ? "" : " " + more);
  i.logit_rows = b.rows == Rows::Logits;
  i.row_bytes = 4.0 * passes * b.width;
  i.float_ops = ops * b.width;
  return i;
}

// Its members keep to their rows from beginning to end.
struct RowOp : Op {
  OwnRows own_rows(int rows) const override { return {!(copies && rows == 1), true}; }
};

struct Embed : RowOp {
  int weight, out;
  float factor;
  Ids by;
  Need needs() const override { return Numbers; }
  Touched touched() const override { return {{}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [a, b] = p.share(step.rows, member);
    Buffer& y = p.at(out);
    p.kernels().embed(p.packed(weight), by == Ids::Tokens ? step.tokens : by == Ids::Positions ? step.positions : step.types, factor, y.data(), y.stride, a, b);
  }
  OpInfo info(const Program& p, int) const override {
    const Packed& w = p.packed(weight);
    OpInfo i = info_of("embed", p, out, weight_name(w), 1);
    i.row_bytes += double(w.panel_bytes) / kPanel;
    return i;
  }
};

struct Norm : RowOp {
  int x, gain, groups, out;
  float eps, offset;
  Touched touched() const override { return {{x}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const int rows = p.rows(x, step);
    Buffer &in = p.at(x), &y = p.at(out);
    if (copies && rows == 1) {
      p.kernels().rms_norm(in.data(), in.stride, p.values(gain).data(), eps, offset, in.width / groups, groups, p.own_row(y, member), y.stride, 0, 1);
      return;
    }
    const auto [a, b] = p.share(rows, member);
    p.kernels().rms_norm(in.data(), in.stride, p.values(gain).data(), eps, offset, in.width / groups, groups, y.data(), y.stride, a, b);
  }
  OpInfo info(const Program& p, int) const override { return info_of("rms_norm", p, x, groups > 1 ? "x" + std::to_string(groups) : "", 2, 4); }
};

struct Rope : RowOp {
  int x, table, heads, head_dim, rotary;
  Need needs() const override { return Numbers; }
  Touched touched() const override { return {{x}, {x}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [a, b] = p.share(p.rows(x, step), member);
    Buffer& in = p.at(x);
    p.kernels().rope(in.data(), in.stride, heads, head_dim, rotary, p.values(table).data(), step.positions, a, b);
  }
  OpInfo info(const Program& p, int) const override { return info_of("rope", p, x, std::to_string(heads) + " heads", 2, 3); }
};

struct GateOp : RowOp {
  Gate kind;
  int g, up, out;
  const Op* before = nullptr;  // the linear that may have done it
  Touched touched() const override { return {{g, up}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const int rows = p.rows(g, step);
    if (before && before->gates(p, rows)) return;
    Buffer &x = p.at(g), &u = p.at(up), &y = p.at(out);
    if (copies && rows == 1) {
      p.kernels().gate(kind, x.data(), x.stride, u.data(), u.stride, x.width, p.own_row(y, member), y.stride, 0, 1);
      return;
    }
    const auto [a, b] = p.share(rows, member);
    p.kernels().gate(kind, x.data(), x.stride, u.data(), u.stride, x.width, y.data(), y.stride, a, b);
  }
  OpInfo info(const Program& p, int rows) const override {
    const bool done = before && before->gates(p, rows);
    return info_of("gate", p, g, done ? "in the linear" : "", done ? 0 : 3, done ? 0 : 10);
  }
};

struct Add : RowOp {
  int a, b, out;
  Touched touched() const override { return {{a, b}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [first, last] = p.share(p.rows(a, step), member);
    Buffer &x = p.at(a), &u = p.at(b), &y = p.at(out);
    p.kernels().add_rows(x.data(), x.stride, u.data(), u.stride, x.width, y.data(), y.stride, first, last);
  }
  OpInfo info(const Program& p, int) const override { return info_of("add", p, a, "", 3, 1); }
};

// The inputs of a linear whose weight has its columns in another order, multiplies its inputs by factors, or is of rotated inputs
struct Columns : RowOp {
  int x, order, factors, rotation, out;  // order, factors: -1 for none; rotation: a block, 0 for none
  bool own_x = false;          // with one row every member has an x of its own
  Touched touched() const override { return {{x}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const int rows = p.rows(x, step);
    Buffer &in = p.at(x), &y = p.at(out);
    const int32_t* places = order < 0 ? nullptr : p.places(order).data();
    const float* by = factors < 0 ? nullptr : p.values(factors).data();
    const float* from = rows == 1 && own_x ? p.own_row(in, member) : in.data();
    const bool own = copies && rows == 1, moves = places || by || !rotation;
    float* to = own ? p.own_row(y, member) : y.data();
    const auto [a, b] = own ? std::pair<int, int>{0, 1} : p.share(rows, member);
    if (moves) p.kernels().columns(from, in.stride, places, by, y.width, to, y.stride, a, b);
    if (rotation) p.kernels().rotate_rows(moves ? to : from, moves ? y.stride : in.stride, y.width, rotation, to, y.stride, a, b);
  }
  OpInfo info(const Program& p, int) const override { return info_of("columns", p, out, "", 2, (factors < 0 ? 0 : 1) + (rotation ? 1 + __builtin_ctz(unsigned(rotation)) : 0)); }
};

struct LayerNorm : RowOp {
  int x, gain, bias, out;  // bias: -1 for none
  float eps;
  Touched touched() const override { return {{x}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [a, b] = p.share(p.rows(x, step), member);
    Buffer &in = p.at(x), &y = p.at(out);
    p.kernels().layer_norm(in.data(), in.stride, p.values(gain).data(), bias < 0 ? nullptr : p.values(bias).data(), eps, in.width, y.data(), y.stride, a, b);
  }
  OpInfo info(const Program& p, int) const override { return info_of("layer_norm", p, x, "", 3, 6); }
};

struct Activate : RowOp {
  Activation kind;
  int x, out;
  Touched touched() const override { return {{x}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [a, b] = p.share(p.rows(x, step), member);
    Buffer &in = p.at(x), &y = p.at(out);
    p.kernels().activate(kind, in.data(), in.stride, in.width, y.data(), y.stride, a, b);
  }
  OpInfo info(const Program& p, int) const override { return info_of("activate", p, x, "", 2, 20); }
};

struct Softcap : RowOp {
  int x;
  float cap;
  Touched touched() const override { return {{x}, {x}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [a, b] = p.share(p.rows(x, step), member);
    p.kernels().softcap(p.at(x).data(), p.at(x).stride, p.at(x).width, cap, a, b);
  }
  OpInfo info(const Program& p, int) const override { return info_of("softcap", p, x, "", 2, 10); }
};

// The squares of all rows, added to sums of the caller, one for each column: what calibration asks of a linear's inputs. Members share the columns, so
// that any number of them gives the same bits.
struct Squares : Op {
  static constexpr int kStrip = 64, kTogether = 16;  // columns, and rows that are added in float32
  int x;
  double* sums;
  Touched touched() const override { return {{x}, {x}}; }
  void run(Program& p, const Step& step, int member) override {
    const Buffer& in = p.at(x);
    const int rows = p.rows(x, step), strips = (in.width + kStrip - 1) / kStrip;
    const auto [a, b] = p.share(strips, member);
    for (int first = a * kStrip; first < b * kStrip; first += kStrip) {
      const int n = in.width - first < kStrip ? in.width - first : kStrip;
      for (int r = 0; r < rows; r += kTogether) {
        float part[kStrip] = {};
        for (int i = r; i < r + kTogether && i < rows; i++) {
          const float* row = in.data() + i * in.stride + first;
          if (n == kStrip)
            for (int c = 0; c < kStrip; c++) part[c] += row[c] * row[c];
          else
            for (int c = 0; c < n; c++) part[c] += row[c] * row[c];
        }
        for (int c = 0; c < n; c++) sums[first + c] += part[c];
      }
    }
  }
  OpInfo info(const Program& p, int) const override { return info_of("squares", p, x, "", 1, 2); }
};

struct Select : Op {
  int x, out;
  Need needs() const override { return Selection; }
  OwnRows own_rows(int) const override { return {false, true}; }  // it reads any row of the step
  Touched touched() const override { return {{x}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [a, b] = p.share(step.logit_rows, member);
    Buffer &in = p.at(x), &y = p.at(out);
    for (int r = a; r < b; r++) std::memcpy(y.data() + r * y.stride, in.data() + step.select[r] * in.stride, sizeof(float) * size_t(in.width));
  }
  OpInfo info(const Program& p, int) const override { return info_of("select", p, out, "", 2); }
};

}  // namespace octavo
