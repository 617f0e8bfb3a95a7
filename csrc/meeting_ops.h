// The ops of a program that are more than one pass over each row: linears and attention, whose members share the work in ways of their own.
// For program.cpp alone; what does the same to every row is in rowwise.h.
#pragma once
#include <array>
#include <climits>
#include <cstring>

#include "inputs.h"
#include "rowwise.h"

namespace octavo {
namespace {

struct Linear : Op {
  int x, residual;
  std::vector<int> weights, biases, outs;
  Inputs how;
  std::vector<float> inverse;  // of a fixed scale
  int k = 0, panels = 0;
  bool own_x = false;             // with one row every member has an x of its own
  std::atomic<int> ticket{0};
  std::vector<std::array<int8_t, kBuckets>> choices;  // per weight: index into Kernels::linears, -1: the usual one

  const GateOp* gate = nullptr;   // of these two outputs, which nobody else reads
  bool can_gate(const Program& p) const {
    return weights.size() == 2 && how.threshold == 0.f && residual < 0 && biases[0] < 0 && biases[1] < 0 && p.packed(weights[0]).lies_as(p.packed(weights[1]));
  }
  // The kernel that gates, for so many rows of the step. With one row every member gates for itself, which saves a meeting.
  const LinearKernel* gating(const Program& p, int rows) const {
    if (!gate || rows < 2) return nullptr;
    const int each = by_rows(rows) ? rows / p.members() : rows, bucket = row_bucket(rows);
    const LinearKernel &one = kernel(p, 0, bucket, each), &other = kernel(p, 1, bucket, each);
    return one.gates && &one == &other ? &one : nullptr;
  }
  bool gates(const Program& p, int rows) const override { return gating(p, rows); }

  int by_rows_from = INT_MAX;     // so many rows are shared out, not panels
  bool by_rows(int rows) const { return rows >= by_rows_from; }
  OwnRows own_rows(int rows) const override { return {by_rows(rows) || (how.group != 0 && rows > 1), by_rows(rows)}; }  // several rows are quantized row by row
  Touched touched() const override {
    Touched t{{x}, outs};
    if (residual >= 0) t.reads.push_back(residual);
    return t;
  }

  void run(Program& p, const Step& step, int member) override {
    const int rows = p.rows(x, step);
    if (rows == 0) return;
    Buffer& in = p.at(x);
    LinearCall call;
    call.in.x = rows == 1 && own_x ? p.own_row(in, member) : in.data();
    call.in.stride = in.stride;
    call.in.rows = rows;
    if (by_rows(rows)) return multiply_own_rows(p, call, rows, member);
    if (how.group) {
      Codes codes(how, k);
      codes.inverse = inverse.data();
      const size_t copies = rows == 1 ? size_t(member) : 0;  // one row: every member has its own copy and nobody waits
      codes.lie_at(p.quantized().as<int8_t>() + copies * codes.bytes(1), rows);
      const auto [a, b] = rows == 1 ? std::pair<int, int>{0, 1} : p.share(rows, member);
      codes.fill(p.kernels(), call.in.x, in.stride, a, b, p.scratch(member).as<void>());
      if (rows > 1) p.meet(member);
      codes.put(call.in);
    }
    const auto* gated = gating(p, rows);
    const int bucket = row_bucket(rows), count = gated ? panels / 2 : panels, piece = piece_of(p, count, rows), fixed = own_panels(p, count, rows, piece);
    if (fixed == 0) {
      const auto [first, last] = p.share(count, member);
      return multiply(p, call, bucket, first, last, member, gated);
    }
    multiply(p, call, bucket, fixed * member, fixed * (member + 1), member, gated);
    const int begin = fixed * p.members(), pieces = (count - begin + piece - 1) / piece;
    int i = ticket.fetch_add(1, std::memory_order_relaxed);
    for (; i < pieces; i = ticket.fetch_add(1, std::memory_order_relaxed))
      multiply(p, call, bucket, begin + i * piece, std::min(begin + (i + 1) * piece, count), member, gated);
    if (i == pieces + p.members() - 1) ticket.store(0, std::memory_order_relaxed);  // the last to leave; all meet before anybody asks again
  }
  // A member's own rows by all panels: nobody waits, and what it has written is still in its cache
  void multiply_own_rows(Program& p, LinearCall& call, int rows, int member) {
    const auto [a, b] = p.share(rows, member);
    call.in.x += a * call.in.stride;
    call.in.rows = b - a;
    if (how.group) {
      Codes codes(how, k);
      codes.inverse = inverse.data();
      codes.lie_at(p.quantized().as<int8_t>() + p.quantized_bytes() * size_t(a), b - a);
      codes.fill(p.kernels(), call.in.x, call.in.stride, 0, b - a, p.scratch(member).as<void>());
      codes.put(call.in);
    }
    const auto* gated = gating(p, rows);
    multiply(p, call, row_bucket(rows), 0, gated ? panels / 2 : panels, member, gated, a);
  }
  // Panels of a piece, and panels that a member has for itself; the rest goes in pieces to whoever comes first, since cores are rarely equally fast for long. 0: all
  // panels are shared out.
  int piece_of(const Program& p, int count, int rows) const { return std::max(rows <= 16 ? 2 : 8, count / p.members() / 24 * 2); }
  int own_panels(const Program& p, int count, int rows, int piece) const {
    const int share = count / p.members();
    if (p.members() == 1 || share < (rows <= 16 ? 24 : 96)) return 0;
    for (int w : weights) if (p.packed(w).store == Store::Trellis) return 0;  // its tiles are four panels
    return share * 3 / 4 / piece * piece;
  }
  // gated: the kernel that gates, which counts pairs of panels, or null; row: the call's first one
  void multiply(Program& p, LinearCall& call, int bucket, int first, int last, int member, const LinearKernel* gated, int row = 0) {
    if (gated) {
      Buffer& y = p.at(gate->out);
      call.w = &p.packed(weights[0]);
      call.up = &p.packed(weights[1]);
      call.gate = gate->kind;
      call.y = y.data() + row * y.stride;
      call.y_stride = y.stride;
      return run_linear(p.kernels(), *gated, call, first, last, p.scratch(member).as<void>());
    }
    int start = 0;
    for (size_t i = 0; i < weights.size(); i++) {
      const Packed& w = p.packed(weights[i]);
      const int count = w.panels(), a = std::max(first - start, 0), b = std::min(last - start, count);
      start += count;
      if (a >= b) continue;
      Buffer& y = p.at(outs[i]);
      call.w = &w;
      call.bias = biases[i] < 0 ? nullptr : p.values(biases[i]).data();
      call.y = y.data() + row * y.stride;
      call.y_stride = y.stride;
      call.residual = residual < 0 ? nullptr : p.at(residual).data() + row * p.at(residual).stride;
      call.residual_stride = residual < 0 ? 0 : p.at(residual).stride;
      run_linear(p.kernels(), kernel(p, i, bucket, call.in.rows), call, a, b, p.scratch(member).as<void>());
    }
  }
  const LinearKernel& kernel(const Program& p, size_t i, int bucket, int rows) const {
    const Kernels& all = p.kernels();
    const Packed& w = p.packed(weights[i]);
    const int mine = choices[i][size_t(bucket)];
    return all.linears[mine >= 0 && all.linears[mine].supports(w, how.group, rows) ? mine : all.usual_linear(w, how.group, rows)];
  }
  OpInfo info(const Program& p, int rows) const override {
    OpInfo i = info_of("linear", p, x, "", 1 + (residual >= 0));
    i.shape = std::to_string(k) + " > ";
    for (size_t j = 0; j < weights.size(); j++) {
      const Packed& w = p.packed(weights[j]);
      const std::string name = kernel(p, j, row_bucket(rows), rows).name;
      i.shape += (j ? "+" : "") + std::to_string(w.n);
      if (i.kernel.find(name) == std::string::npos) i.kernel += (j ? "+" : "") + name;
      i.weight_bytes += double(w.panel_bytes) * w.panels();
      i.row_bytes += gates(p, rows) ? 2.0 * w.n : 4.0 * w.n;
      (how.group ? i.int_ops : i.float_ops) += 2.0 * w.n * k;
    }
    i.shape += " " + weight_name(p.packed(weights[0]));
    if (how.group) i.shape += Codes(how, k).groups > 1 ? " A8g" + std::to_string(how.group) : " A8";
    if (how.threshold > 0.f) i.shape += " beside outliers";
    if (gates(p, rows)) {
      i.shape += ", gated";
      i.float_ops += 10.0 * p.at(gate->out).width;
    }
    return i;
  }
};

// Every row of a sequence meets all rows of it
struct Mutual : Op {
  int q, k, v, out, heads, head_dim;
  float scale;
  std::atomic<int> ticket{0};
  Touched touched() const override { return {{q, k, v}, {out}}; }
  MutualCall call(const Program& p, const Step& step) const {
    const Buffer &qb = p.at(q), &kb = p.at(k), &vb = p.at(v), &y = p.at(out);
    MutualCall c;
    c.starts = step.starts;
    c.sequences = step.sequences;
    for (int s = 0; s < step.sequences; s++) c.longest = std::max(c.longest, step.starts[s + 1] - step.starts[s]);
    c.heads = heads;
    c.head_dim = head_dim;
    c.q = qb.data(); c.q_stride = qb.stride;
    c.k = kb.data(); c.k_stride = kb.stride;
    c.v = vb.data(); c.v_stride = vb.stride;
    c.y = y.data(); c.y_stride = y.stride;
    c.scale = scale;
    return c;
  }
  void run(Program& p, const Step& step, int member) override {
    const MutualCall c = call(p, step);
    const int items = c.sequences * heads;
    int i = ticket.fetch_add(1, std::memory_order_relaxed);
    for (; i < items; i = ticket.fetch_add(1, std::memory_order_relaxed)) p.kernels().mutual_attention(c, i, p.scratch(member).as<void>());
    if (i == items + p.members() - 1) ticket.store(0, std::memory_order_relaxed);  // the last to leave; all meet before anybody asks again
  }
  OpInfo info(const Program& p, int) const override { return info_of("attention", p, q, std::to_string(heads) + " heads, both ways", 4); }
};

struct Attention : Op {
  int q, k, v, out, layer, heads, kv_heads, head_dim, window;
  float scale, cap;
  Need needs() const override { return Cache; }
  OwnRows own_rows(int) const override { return {true, false}; }  // keys and values of prompts are stored row by row
  Touched touched() const override { return {{q, k, v}, {out}}; }
  void run(Program& p, const Step& step, int member) override {
    const auto [a, b] = p.share(step.rows, member);
    const Buffer &kb = p.at(k), &vb = p.at(v), &qb = p.at(q), &y = p.at(out);
    for (int s = 0; s < step.sequences; s++) {
      const int first = std::max(a, step.starts[s]), last = std::min(b, step.starts[s + 1]);
      if (first < last && step.starts[s + 1] - step.starts[s] > 1)
        p.kernels().cache_write(p.cache(layer), kb.data(), kb.stride, vb.data(), vb.stride, step.slots, first, last);
    }
    if (member == 0) p.ticket().store(0, std::memory_order_relaxed);
    p.meet(member);
    AttentionCall call;
    call.step = &step;
    call.gangs = &p.gangs();
    call.cache = &p.cache(layer);
    call.q = qb.data();
    call.q_stride = qb.stride;
    call.y = y.data();
    call.y_stride = y.stride;
    call.k = kb.data();
    call.k_stride = kb.stride;
    call.v = vb.data();
    call.v_stride = vb.stride;
    call.heads = heads;
    call.scale = scale;
    call.softcap = cap;
    call.window = window;
    const int items = p.kernels().attention_items(call);
    // Later items of a prompt see more context: the largest go first
    for (int i = p.ticket().fetch_add(1); i < items; i = p.ticket().fetch_add(1)) p.kernels().attention(call, items - 1 - i, p.scratch(member).as<void>());
  }
  OpInfo info(const Program& p, int) const override {
    OpInfo i = info_of("attention", p, q, std::to_string(heads) + "/" + std::to_string(kv_heads) + " heads of " + std::to_string(head_dim), 2);
    if (window) i.shape += " window " + std::to_string(window);
    i.row_bytes += 8.0 * kv_heads * head_dim;
    i.layer = layer;
    i.heads = heads;
    i.kv_heads = kv_heads;
    i.head_dim = head_dim;
    i.window = window;
    return i;
  }
};

}  // namespace
}  // namespace octavo
