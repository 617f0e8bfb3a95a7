// A model's forward as a flat list of operations over numbered float32 buffers: described once, replayed for every step.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gangs.h"
#include "inputs.h"
#include "ops.h"
#include "team.h"
#include "trace.h"

namespace octavo {

// A 64-byte aligned block that only grows; what it held is lost when it does.
class Block {
 public:
  ~Block();
  Block() = default;
  Block(Block&& other) noexcept;
  Block& operator=(Block&&) = delete;
  void reserve(size_t bytes);
  template <class T> T* as() const { return static_cast<T*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

enum class Rows { Step, Logits };
enum class Ids { Tokens, Positions, Types };  // arrays of the step that choose rows of a table

struct Buffer {
  int width = 0;
  int64_t stride = 0;  // floats; rows start 64-byte aligned
  Rows rows = Rows::Step;
  Block block;
  float* lent = nullptr;  // during a run: memory of the caller instead of the block
  float* data() const { return lent ? lent : block.as<float>(); }
};

class Program;

struct Op {
  virtual ~Op() = default;
  // Called by every member of the team. An op that needs to meet inside calls program.meet(member). All members meet after it, unless the plan
  // found that they need not.
  virtual void run(Program& program, const Step& step, int member) = 0;
  // Whether a member, until it first meets the others in this op and after it last met them, touches only the rows that are its share
  struct OwnRows { bool begins = false, ends = false; };
  virtual OwnRows own_rows(int rows) const { (void)rows; return {}; }
  // Buffers that it reads and writes; their rows are of one kind, that of writes[0]
  struct Touched { std::vector<int> reads, writes; };
  virtual Touched touched() const = 0;
  // What it reads of the step, beside its rows and where sequences begin
  enum Need { Nothing = 0, Numbers = 1, Selection = 2, Cache = 4 };
  virtual Need needs() const { return Nothing; }
  // One row: an op that can give every member a result of its own, which then only linears read, saves them a meeting
  bool copies = false;
  // Whether this op does the gate behind it, too
  virtual bool gates(const Program& program, int rows) const { (void)program, (void)rows; return false; }
  // For a step with that many rows of the op's kind
  virtual OpInfo info(const Program& program, int rows) const = 0;
};

class Program {
 public:
  Program(std::shared_ptr<Team> team, const Kernels& kernels) : team_(std::move(team)), kernels_(kernels) {}

  int buffer(int width, Rows rows);
  int constant(std::vector<float> values);           // norm gains, biases, rope tables
  int places(std::vector<int32_t> order);            // of columns
  int weight(const Packed& packed);                  // the data stays with the caller

  void embed(int weight, float factor, int out, Ids by = Ids::Tokens);
  // how: a fixed scale wants a group that spans the row; its factors are the constant `factors`, -1 for none
  void linear(int x, std::vector<int> weights, std::vector<int> biases, std::vector<int> outs, int residual, const Inputs& how, int factors = -1);
  // The weights of all linears in the order of recording, and the kernel that runs them in a bucket of rows (ops.h).
  struct LinearInfo { const Packed* weight; int in_group; bool logits; };
  std::vector<LinearInfo> linears() const;
  // std::invalid_argument for an unknown name, or a kernel that does not support the weight; "" goes back to the usual one
  void choose(int linear, int bucket, const std::string& kernel);
  std::string chosen(int linear, int bucket) const;
  void rms_norm(int x, int gain, float eps, float offset, int groups, int out);
  void rope(int x, int table, int heads, int head_dim, int rotary);
  void gate(int kind, int gate, int up, int out);
  void add(int a, int b, int out);
  // out[r][j] = x[r][order[j]] * factors[j], then rotated in blocks (ops.h); order (as `places`), factors (a constant): -1 for none; rotation: 0 for none
  void columns(int x, int order, int factors, int rotation, int out);
  void softcap(int x, float cap);
  void select(int x, int out);
  void squares(int x, double* sums);  // see rowwise.h; the sums [width of x] stay with the caller
  void attention(int q, int k, int v, int out, int layer, int heads, int kv_heads, int head_dim, float scale, int window, float softcap);

  void layer_norm(int x, int gain, int bias, float eps, int out);  // bias: -1 for none
  void activate(int kind, int x, int out);
  void mutual_attention(int q, int k, int v, int out, int heads, int head_dim, float scale);

  // A run of a list without a cache. Rows come from `x` [rows, width of `input`], a buffer that nothing in the list writes, or (input -1) from the step's
  // numbers. The rows of `result` go to y; `origin` [y_rows]: which of them each row of y is, -1 for zeros; null: they are y. Selected rows of
  // `chosen`, where it is not -1, go to chosen_y.
  struct Apply {
    int input = -1, result = 0, chosen = -1, y_rows = 0;
    const float* x = nullptr;
    const int32_t* origin = nullptr;
    float *y = nullptr, *chosen_y = nullptr;
  };
  // Of the step only what the list needs is looked at: std::invalid_argument where that is not there. A second caller waits.
  void apply(const Step& step, const Apply& call);
  // Runs the list; the rows of `result` (a Logits buffer) go to `logits` [logit_rows, width], 64-byte aligned, the largest value of each and its place
  // to `value` and `place` [logit_rows]. The step has been checked; the cache is here: std::invalid_argument when its heads are not those of the
  // recording. A second caller waits.
  void run(const Step& step, const std::vector<CacheLayer>& cache, int result, float* logits, int32_t* place, float* value);

  // While tracing is on, each run leaves its marks. Not during a run.
  void trace(bool on) { tracing_ = on; }
  const Trace& last_trace() const { return trace_; }
  // Of every op, for a step of this many rows
  std::vector<OpInfo> describe(int rows, int logit_rows) const;

  // Least table length and smallest vocabulary over the ops: what tokens, positions and types must stay below
  int vocabulary() const { return vocabulary_; }
  int positions() const { return positions_; }
  int types() const { return types_; }
  int layers() const { return layers_; }
  size_t ops() const { return ops_.size(); }
  size_t buffer_bytes() const;
  int members() const { return team_->size(); }

  // For ops. An unknown number throws std::out_of_range, which happens while recording if ever.
  Buffer& at(int i) { return buffers_.at(size_t(i)); }
  const Buffer& at(int i) const { return buffers_.at(size_t(i)); }
  const std::vector<float>& values(int i) const { return constants_.at(size_t(i)); }
  const std::vector<int32_t>& places(int i) const { return places_.at(size_t(i)); }
  const Packed& packed(int i) const { return weights_.at(size_t(i)); }
  const Kernels& kernels() const { return kernels_; }
  // All members meet: every member calls it as often as the others.
  void meet(int member) {
    if (!tracing_) return team_->barrier();
    const int op = at_op_[size_t(member) * 16];
    trace_.mark(member, op, Mark::Work);
    team_->barrier();
    trace_.mark(member, op, Mark::Wait);
  }
  const CacheLayer& cache(int layer) const { return (*cache_)[size_t(layer)]; }
  // A row that is each member's own, when there is one row
  float* own_row(const Buffer& b, int member) const { return b.data() + int64_t(member) * b.stride; }
  int rows(int buffer, const Step& step) const { return buffers_[size_t(buffer)].rows == Rows::Step ? step.rows : step.logit_rows; }
  // This member's share [first, last) of n things
  std::pair<int, int> share(int n, int member) const { return {int(int64_t(n) * member / members()), int(int64_t(n) * (member + 1) / members())}; }
  Block& scratch(int member) { return scratch_[size_t(member)]; }
  Block& quantized() { return quantized_; }
  size_t quantized_bytes() const { return quantized_bytes_; }  // of one row
  std::atomic<int>& ticket() { return ticket_; }
  const Gangs& gangs() const { return gangs_.all(); }

 private:
  // Buffers of one op have as many rows as each other, and as the step where the op reads the step's arrays
  void same_rows(const char* op, std::initializer_list<int> buffers, const Rows* kind = nullptr);
  std::shared_ptr<Team> team_;
  const Kernels& kernels_;
  std::mutex running_;
  bool tracing_ = false;
  Trace trace_;
  std::vector<int> at_op_;      // of each member, a cache line apart
  std::vector<Buffer> buffers_;
  std::vector<std::vector<float>> constants_;
  std::vector<std::vector<int32_t>> places_;
  std::vector<Packed> weights_;
  std::vector<std::unique_ptr<Op>> ops_;
  void make_room(const Step& step, size_t scratch);
  int by_rows_from() const;
  int kind_of(int rows) const { return rows == 1 ? 1 : rows >= by_rows_from() ? 2 : 0; }
  // After which ops members meet: [rows in the step][logit rows], each 0: some, 1: one, 2: so many that linears are shared out by rows; made at the first run after recording. `kept`: what is read after the last op
  void plan(const std::vector<int>& kept);
  // All ops by all members; finish(member) when all are done
  template <class Finish> void replay(const Step& step, const std::vector<int>& kept, Finish finish);
  std::vector<char> meets_[3][3];
  std::vector<Block> scratch_;
  Block quantized_;
  size_t quantized_bytes_ = 0;  // of one row, in the widest linear with int8 activations
  size_t spare_bytes_ = 0;      // of one member, to find such rows
  std::atomic<int> ticket_{0};
  GangPlan gangs_;  // of the step that runs
  const std::vector<CacheLayer>* cache_ = nullptr;
  int vocabulary_ = INT32_MAX, positions_ = INT32_MAX, types_ = INT32_MAX, layers_ = 0;
};

}  // namespace octavo
