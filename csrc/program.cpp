#include "program.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "meeting_ops.h"

namespace octavo {

Block::~Block() { std::free(data_); }
Block::Block(Block&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; other.bytes_ = 0; }
void Block::reserve(size_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  if (bytes <= bytes_) return;
  std::free(data_);
  data_ = nullptr;
  bytes_ = 0;
  void* fresh = std::aligned_alloc(64, bytes);
  if (!fresh) throw std::bad_alloc();
  std::memset(fresh, 0, bytes);
  data_ = fresh;
  bytes_ = bytes;
}

int Program::buffer(int width, Rows rows) {
  Buffer b;
  b.width = width;
  b.stride = (width + 15) / 16 * 16;
  b.rows = rows;
  buffers_.push_back(std::move(b));
  return int(buffers_.size()) - 1;
}
int Program::constant(std::vector<float> values) {
  constants_.push_back(std::move(values));
  return int(constants_.size()) - 1;
}
int Program::places(std::vector<int32_t> order) {
  places_.push_back(std::move(order));
  return int(places_.size()) - 1;
}
int Program::weight(const Packed& packed) {
  weights_.push_back(packed);
  return int(weights_.size()) - 1;
}

void Program::same_rows(const char* op, std::initializer_list<int> buffers, const Rows* kind) {
  const Rows rows = kind ? *kind : at(*buffers.begin()).rows;
  for (int b : buffers)
    if (at(b).rows != rows) throw std::invalid_argument(std::string(op) + ": rows of the step and selected rows do not mix");
}

constexpr Rows kStepRows = Rows::Step, kLogitRows = Rows::Logits;

void Program::embed(int weight, float factor, int out, Ids by) {
  same_rows("embed", {out}, &kStepRows);
  auto op = std::make_unique<Embed>();
  op->weight = weight;
  op->factor = factor;
  op->out = out;
  op->by = by;
  int& most = by == Ids::Tokens ? vocabulary_ : by == Ids::Positions ? positions_ : types_;
  most = std::min(most, packed(weight).n);
  if (packed(weight).k != at(out).width) throw std::invalid_argument("embed: the buffer is not as wide as the weight");
  ops_.push_back(std::move(op));
}

void Program::linear(int x, std::vector<int> weights, std::vector<int> biases, std::vector<int> outs, int residual, const Inputs& how, int factors) {
  auto op = std::make_unique<Linear>();
  if (weights.empty() || weights.size() != outs.size() || weights.size() != biases.size()) throw std::invalid_argument("linear: weights, biases and outputs differ in number");
  for (size_t i = 0; i < weights.size(); i++) {
    const Packed& w = packed(weights[i]);
    if (w.k != at(x).width || w.n != at(outs[i]).width) throw std::invalid_argument("linear: weight and buffers do not fit");
    same_rows("linear", {x, outs[i]});
    if (how.group && !w.is_float() && !w.meets_ints()) throw std::invalid_argument("linear: int8 activations do not meet this weight");
    if (biases[i] >= 0 && values(biases[i]).size() != size_t(w.n)) throw std::invalid_argument("linear: bias and weight do not fit");
    op->panels += w.panels();
  }
  if (residual >= 0) {
    same_rows("linear", {x, residual});
    if (outs.size() != 1 || at(residual).width != at(outs[0]).width) throw std::invalid_argument("linear: residual and output do not fit");
  }
  op->by_rows_from = by_rows_from();
  op->x = x;
  op->k = at(x).width;
  op->weights = std::move(weights);
  op->biases = std::move(biases);
  op->outs = std::move(outs);
  op->choices.resize(op->weights.size());
  for (auto& c : op->choices) c.fill(-1);
  op->residual = residual;
  op->how = how;
  check_inputs(how, op->k);
  if (factors >= 0 && (how.fixed == 0.f || values(factors).size() != size_t(op->k))) throw std::invalid_argument("linear: factors, one for each input, go with a fixed scale");
  op->how.factors = factors < 0 ? nullptr : values(factors).data();
  op->inverse = inverses(op->how, op->k);
  if (how.group) {
    const Codes codes(how, op->k);
    quantized_bytes_ = std::max(quantized_bytes_, codes.bytes(1));
    spare_bytes_ = std::max(spare_bytes_, codes.spare_bytes());
  }
  ops_.push_back(std::move(op));
}

namespace {
// The `index`th weight of all linears
template <class Ops> std::pair<Linear*, size_t> find_linear(const Ops& ops, int index) {
  for (const auto& op : ops)
    if (auto* linear = dynamic_cast<Linear*>(op.get())) {
      if (index >= 0 && size_t(index) < linear->weights.size()) return {linear, size_t(index)};
      index -= int(linear->weights.size());
    }
  throw std::invalid_argument("there is no such linear in this program");
}
}  // namespace

std::vector<Program::LinearInfo> Program::linears() const {
  std::vector<LinearInfo> found;
  for (const auto& op : ops_)
    if (const auto* linear = dynamic_cast<const Linear*>(op.get()))
      for (int w : linear->weights) found.push_back({&packed(w), linear->how.group, buffers_.at(size_t(linear->x)).rows == Rows::Logits});
  return found;
}

void Program::choose(int index, int bucket, const std::string& kernel) {
  const auto [linear, i] = find_linear(ops_, index);
  if (bucket < 0 || bucket >= kBuckets) throw std::invalid_argument("there is no such bucket of rows");
  int found = -1;
  for (int c = 0; c < kernels_.linear_count; c++)
    if (kernel == kernels_.linears[c].name) found = c;
  if (found < 0 && !kernel.empty()) throw std::invalid_argument("there is no linear kernel " + kernel + " for " + kernels_.isa);
  if (found >= 0 && !kernels_.linears[found].supports(packed(linear->weights[i]), linear->how.group, kRowBuckets[bucket]))
    throw std::invalid_argument("the linear kernel " + kernel + " does not support this weight");
  std::lock_guard<std::mutex> between_runs(running_);
  linear->choices[i][size_t(bucket)] = int8_t(found);
}

std::string Program::chosen(int index, int bucket) const {
  const auto [linear, i] = find_linear(ops_, index);
  if (bucket < 0 || bucket >= kBuckets) throw std::invalid_argument("there is no such bucket of rows");
  return linear->kernel(*this, i, bucket, kRowBuckets[bucket]).name;
}

void Program::rms_norm(int x, int gain, float eps, float offset, int groups, int out) {
  if (groups < 1 || at(x).width % groups || values(gain).size() != size_t(at(x).width / groups) || at(out).width != at(x).width)
    throw std::invalid_argument("rms_norm: gain, groups and buffers do not fit");
  same_rows("rms_norm", {x, out});
  auto op = std::make_unique<Norm>();
  op->x = x;
  op->gain = gain;
  op->eps = eps;
  op->offset = offset;
  op->groups = groups;
  op->out = out;
  ops_.push_back(std::move(op));
}

void Program::rope(int x, int table, int heads, int head_dim, int rotary) {
  same_rows("rope", {x}, &kStepRows);
  if (heads * head_dim != at(x).width || rotary % 2 || rotary < 2 || rotary > head_dim || values(table).size() % size_t(rotary))
    throw std::invalid_argument("rope: table, heads and buffer do not fit");
  auto op = std::make_unique<Rope>();
  op->x = x;
  op->table = table;
  op->heads = heads;
  op->head_dim = head_dim;
  op->rotary = rotary;
  positions_ = std::min<int64_t>(positions_, int64_t(values(table).size()) / rotary);
  ops_.push_back(std::move(op));
}

void Program::gate(int kind, int gate, int up, int out) {
  if (kind < 0 || kind > 2 || at(gate).width != at(up).width || at(out).width != at(up).width) throw std::invalid_argument("gate: buffers do not fit");
  same_rows("gate", {gate, up, out});
  auto op = std::make_unique<GateOp>();
  op->kind = Gate(kind);
  op->g = gate;
  op->up = up;
  op->out = out;
  ops_.push_back(std::move(op));
}

void Program::add(int a, int b, int out) {
  if (at(a).width != at(b).width || at(out).width != at(a).width) throw std::invalid_argument("add: buffers do not fit");
  same_rows("add", {a, b, out});
  auto op = std::make_unique<Add>();
  op->a = a;
  op->b = b;
  op->out = out;
  ops_.push_back(std::move(op));
}

void Program::columns(int x, int order, int factors, int rotation, int out) {
  same_rows("columns", {x, out});
  const int width = at(out).width;
  if (x == out || (order < 0 && at(x).width != width) || (factors >= 0 && values(factors).size() != size_t(width)))
    throw std::invalid_argument("columns: order, factors and buffers do not fit");
  if (rotation < 0 || (rotation && ((rotation & (rotation - 1)) || width % rotation))) throw std::invalid_argument("columns: the rotation does not divide the width");
  if (order >= 0) {
    if (places(order).size() != size_t(width)) throw std::invalid_argument("columns: the order is not as long as the output");
    for (int32_t place : places(order))
      if (place < 0 || place >= at(x).width) throw std::invalid_argument("columns: the order names an input that is not there");
  }
  auto op = std::make_unique<Columns>();
  op->x = x;
  op->order = order;
  op->factors = factors;
  op->rotation = rotation;
  op->out = out;
  ops_.push_back(std::move(op));
}

void Program::softcap(int x, float cap) {
  same_rows("softcap", {x});
  if (!(cap > 0.f)) throw std::invalid_argument("softcap: the cap must be above 0");
  auto op = std::make_unique<Softcap>();
  op->x = x;
  op->cap = cap;
  ops_.push_back(std::move(op));
}

void Program::squares(int x, double* sums) {
  same_rows("squares", {x});
  auto op = std::make_unique<Squares>();
  op->x = x;
  op->sums = sums;
  ops_.push_back(std::move(op));
}

void Program::select(int x, int out) {
  if (at(x).width != at(out).width) throw std::invalid_argument("select: buffers do not fit");
  same_rows("select", {x}, &kStepRows);
  same_rows("select", {out}, &kLogitRows);
  auto op = std::make_unique<Select>();
  op->x = x;
  op->out = out;
  ops_.push_back(std::move(op));
}

void Program::attention(int q, int k, int v, int out, int layer, int heads, int kv_heads, int head_dim, float scale, int window, float softcap) {
  same_rows("attention", {q, k, v, out}, &kStepRows);
  if (layer < 0 || heads < 1 || kv_heads < 1 || head_dim < 1 || heads % kv_heads || at(q).width != heads * head_dim || at(out).width != heads * head_dim ||
      at(k).width != kv_heads * head_dim || at(v).width != kv_heads * head_dim)
    throw std::invalid_argument("attention: heads and buffers do not fit");
  auto op = std::make_unique<Attention>();
  op->q = q;
  op->k = k;
  op->v = v;
  op->out = out;
  op->layer = layer;
  op->heads = heads;
  op->kv_heads = kv_heads;
  op->head_dim = head_dim;
  op->scale = scale;
  op->window = window;
  op->cap = softcap;
  layers_ = std::max(layers_, layer + 1);
  ops_.push_back(std::move(op));
}

void Program::layer_norm(int x, int gain, int bias, float eps, int out) {
  const size_t width = size_t(at(x).width);
  if (at(out).width != at(x).width || values(gain).size() != width || (bias >= 0 && values(bias).size() != width)) throw std::invalid_argument("layer_norm: gain, bias and buffers do not fit");
  same_rows("layer_norm", {x, out});
  auto op = std::make_unique<LayerNorm>();
  op->x = x;
  op->gain = gain;
  op->bias = bias;
  op->eps = eps;
  op->out = out;
  ops_.push_back(std::move(op));
}

void Program::activate(int kind, int x, int out) {
  if (kind < 0 || kind > int(Activation::Sigmoid) || at(x).width != at(out).width) throw std::invalid_argument("activate: unknown kind, or buffers do not fit");
  same_rows("activate", {x, out});
  auto op = std::make_unique<Activate>();
  op->kind = Activation(kind);
  op->x = x;
  op->out = out;
  ops_.push_back(std::move(op));
}

void Program::mutual_attention(int q, int k, int v, int out, int heads, int head_dim, float scale) {
  same_rows("attention", {q, k, v, out}, &kStepRows);
  for (int b : {q, k, v, out})
    if (heads < 1 || head_dim < 1 || at(b).width != heads * head_dim) throw std::invalid_argument("attention: heads and buffers do not fit");
  auto op = std::make_unique<Mutual>();
  op->q = q;
  op->k = k;
  op->v = v;
  op->out = out;
  op->heads = heads;
  op->head_dim = head_dim;
  op->scale = scale;
  ops_.push_back(std::move(op));
}

int Program::by_rows_from() const {
  constexpr int least = 24;  // of a member: fewer leave products waiting for weights (LOG)
  return members() == 1 ? INT_MAX : members() * std::max(least, kernels_.rows_each * members());
}

void Program::plan(const std::vector<int>& kept) {
  const auto has = [](const std::vector<int>& list, int b) { return std::find(list.begin(), list.end(), b) != list.end(); };
  std::vector<Op::Touched> touched;
  for (const auto& op : ops_) touched.push_back(op->touched());
  // A norm, a gate or an order of columns whose result only linears (and orders of columns) read, from the next op on until it is overwritten
  for (size_t i = ops_.size(); i-- > 0;) {
    if (i + 1 >= ops_.size()) continue;
    if (!dynamic_cast<Norm*>(ops_[i].get()) && !dynamic_cast<GateOp*>(ops_[i].get()) && !dynamic_cast<Columns*>(ops_[i].get())) continue;
    const int out = touched[i].writes[0];
    bool fits = !has(kept, out) && !has(touched[i].reads, out) && has(touched[i + 1].reads, out);
    std::vector<bool*> readers;
    for (size_t j = i + 1; j < ops_.size() && fits; j++) {
      if (has(touched[j].reads, out)) {
        if (auto* linear = dynamic_cast<Linear*>(ops_[j].get())) {
          fits = linear->x == out && linear->residual != out;
          readers.push_back(&linear->own_x);
        } else if (auto* columns = dynamic_cast<Columns*>(ops_[j].get())) {
          readers.push_back(&columns->own_x);
        } else {
          fits = false;
        }
      }
      if (has(touched[j].writes, out)) break;
    }
    for (size_t j = i + 1; j < ops_.size() && fits; j++) {  // a member may still read what the others would write before they all meet again
      for (int b : touched[i].reads) fits = fits && !has(touched[j].writes, b);
      if (!ops_[j]->copies) break;
    }
    if (!fits) continue;
    ops_[i]->copies = true;
    for (bool* reader : readers) *reader = true;
  }
  // A gate of what the linear before it gives, and nobody else reads, is for the linear's kernel to do
  for (size_t i = 0; i + 1 < ops_.size(); i++) {
    auto* linear = dynamic_cast<Linear*>(ops_[i].get());
    auto* gate = dynamic_cast<GateOp*>(ops_[i + 1].get());
    if (!linear || !gate || !linear->can_gate(*this) || linear->outs != std::vector<int>{gate->g, gate->up}) continue;
    const auto read_later = [&](int b) {
      for (size_t j = i + 2; j < ops_.size(); j++) {
        if (has(touched[j].reads, b)) return true;
        if (has(touched[j].writes, b)) return false;
      }
      return has(kept, b);
    };
    const auto lost = [&](int b) { return b == gate->out || !read_later(b); };
    if (!lost(gate->g) || !lost(gate->up) || gate->out == linear->x) continue;
    linear->gate = gate;
    gate->before = linear;
  }
  constexpr int rows_of_kind[] = {2, 1, INT_MAX};
  for (int step = 0; step < 3; step++)
    for (int logit = 0; logit < 3; logit++) {
      auto& meets = meets_[step][logit];
      meets.assign(ops_.size(), 1);
      for (size_t i = 0; i + 1 < ops_.size(); i++) {
        const Rows kind = at(touched[i].writes[0]).rows, next_kind = at(touched[i + 1].writes[0]).rows;
        const int rows = rows_of_kind[kind == Rows::Step ? step : logit], next_rows = rows_of_kind[next_kind == Rows::Step ? step : logit];
        const bool own = kind == next_kind && ops_[i]->own_rows(rows).ends && ops_[i + 1]->own_rows(next_rows).begins;
        if (own || (ops_[i]->copies && rows == 1)) meets[i] = 0;
      }
    }
}

size_t Program::buffer_bytes() const {
  size_t total = quantized_.bytes();
  for (const auto& b : buffers_) total += b.block.bytes();
  for (const auto& s : scratch_) total += s.bytes();
  return total;
}

void Program::make_room(const Step& step, size_t scratch) {
  // Room for this many rows. Buffers only ever grow, and nothing in them outlives a step.
  for (auto& b : buffers_)
    if (!b.lent) b.block.reserve(sizeof(float) * size_t(b.stride) * size_t(std::max(b.rows == Rows::Step ? step.rows : step.logit_rows, members())));
  quantized_.reserve(quantized_bytes_ * size_t(std::max({step.rows, step.logit_rows, members()})));
  scratch_.resize(size_t(members()));
  for (auto& s : scratch_) s.reserve(std::max({scratch, kernels_.linear_scratch_bytes(), spare_bytes_}));
}

namespace {
// A buffer that lies in the caller's memory while this lives
struct Lent {
  Buffer& buffer;
  Lent(Buffer& b, float* data) : buffer(b) { if (b.stride == b.width) b.lent = data; }
  ~Lent() { buffer.lent = nullptr; }
};
}  // namespace

template <class Finish>
void Program::replay(const Step& step, const std::vector<int>& kept, Finish finish) {
  if (meets_[0][0].size() != ops_.size()) plan(kept);
  const char* meets = meets_[kind_of(step.rows)][kind_of(step.logit_rows)].data();
  at_op_.resize(16 * size_t(members()));
  if (tracing_) trace_.start(members(), ops_.size());
  team_->run([&](int member) {
    int& op = at_op_[size_t(member) * 16];
    if (tracing_) trace_.mark(member, 0, Mark::Begin);
    for (op = 0; op < int(ops_.size()); op++) {
      ops_[size_t(op)]->run(*this, step, member);
      if (meets[op]) meet(member);
      else if (tracing_) trace_.mark(member, op, Mark::Work);
    }
    finish(member);
    if (tracing_) trace_.mark(member, op, Mark::Work);
  });
  if (tracing_) trace_.finish();
}

namespace {
// Rows [first, last) of a buffer that does not lie with the caller
void copy_rows(const Buffer& from, int first, int last, float* to) {
  for (int r = first; r < last && !from.lent; r++) std::memcpy(to + int64_t(r) * from.width, from.data() + r * from.stride, sizeof(float) * size_t(from.width));
}
}  // namespace

void Program::apply(const Step& step, const Apply& call) {
  std::lock_guard<std::mutex> one(running_);
  Buffer none, &in = call.input < 0 ? none : at(call.input), &out = at(call.result), &selected = call.chosen < 0 ? none : at(call.chosen);
  same_rows("apply", {call.result}, &kStepRows);
  if (call.input >= 0) same_rows("apply", {call.input}, &kStepRows);
  if (call.chosen >= 0) same_rows("apply", {call.chosen}, &kLogitRows);
  size_t need = 0;
  for (const auto& op : ops_) {
    if (const auto* a = dynamic_cast<const Mutual*>(op.get())) need = std::max(need, kernels_.mutual_attention_scratch_bytes(a->call(*this, step)));
    const auto wants = op->needs();
    if (wants == Op::Cache || (wants == Op::Numbers && !(step.tokens && step.positions && step.types)) || (wants == Op::Selection && call.chosen < 0))
      throw std::invalid_argument("apply: the list holds an op that needs numbers, selected rows or a cache");
  }
  const Lent from(in, const_cast<float*>(call.x)), to(out, call.origin ? nullptr : call.y), there(selected, call.chosen_y);
  make_room(step, need);
  if (call.input >= 0 && !in.lent)
    for (int r = 0; r < step.rows; r++) std::memcpy(in.data() + r * in.stride, call.x + int64_t(r) * in.width, sizeof(float) * size_t(in.width));
  replay(step, {call.result, call.chosen}, [&](int member) {
    if (call.origin) {
      const auto [a, b] = share(call.y_rows, member);
      const size_t bytes = sizeof(float) * size_t(out.width);
      for (int r = a; r < b; r++) {
        float* y = call.y + int64_t(r) * out.width;
        if (call.origin[r] < 0) std::memset(y, 0, bytes);
        else std::memcpy(y, out.data() + call.origin[r] * out.stride, bytes);
      }
    } else {
      const auto [a, b] = share(step.rows, member);
      copy_rows(out, a, b, call.y);
    }
    const auto [a, b] = share(step.logit_rows, member);
    copy_rows(selected, a, b, call.chosen_y);
  });
}

void Program::run(const Step& step, const std::vector<CacheLayer>& cache, int result, float* logits, int32_t* place, float* value) {
  std::lock_guard<std::mutex> one(running_);
  same_rows("result", {result}, &kLogitRows);
  Buffer& out = at(result);
  const Lent there(out, logits);  // nothing to copy then
  gangs_.plan(step, members(), cache.empty() ? 1 : cache[0].kv_heads);
  size_t need = kernels_.linear_scratch_bytes();
  for (const auto& op : ops_)
    if (const auto* a = dynamic_cast<const Attention*>(op.get())) {
      const CacheLayer& layer = cache.at(size_t(a->layer));
      if (layer.kv_heads != a->kv_heads || layer.head_dim != a->head_dim)
        throw std::invalid_argument("cache: layer " + std::to_string(a->layer) + " has " + std::to_string(layer.kv_heads) + " heads of " + std::to_string(layer.head_dim) +
                                    ", the model " + std::to_string(a->kv_heads) + " of " + std::to_string(a->head_dim));
      AttentionCall call;
      call.step = &step;
      call.gangs = &gangs_.all();
      call.cache = &layer;
      call.heads = a->heads;
      need = std::max(need, kernels_.attention_scratch_bytes(call));
    }
  if (types_ != INT32_MAX && !step.types) throw std::invalid_argument("run: a step with a cache knows no segments");
  make_room(step, need);
  cache_ = &cache;
  replay(step, {result}, [&](int member) {
    const auto [a, b] = share(step.logit_rows, member);
    copy_rows(out, a, b, logits);
    kernels_.best(out.data(), out.stride, out.width, a, b, place, value);
  });
}

std::vector<OpInfo> Program::describe(int rows, int logit_rows) const {
  std::vector<OpInfo> found;
  for (const auto& op : ops_) {
    found.push_back(op->info(*this, rows));
    if (found.back().logit_rows) found.back() = op->info(*this, logit_rows);
  }
  return found;
}

}  // namespace octavo
