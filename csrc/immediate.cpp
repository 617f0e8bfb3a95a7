#include "immediate.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace octavo {

namespace {
constexpr int kPatchRows = 96;  // rows of patches that a member gathers at a time

std::pair<int, int> share(int n, int member, int members) { return {int(int64_t(n) * member / members), int(int64_t(n) * (member + 1) / members)}; }
}  // namespace

namespace {
// Rows of inputs that meet a weight, with room for their int8 form inside a block where it is wanted
struct Rows8 {
  std::vector<float> inverse;
  Codes codes;
  Rows8(const Packed& w, const Inputs& how) : inverse(inverses(how, w.k)), codes(how, w.k) { codes.inverse = inverse.data(); }
  void lie_in(Block& block, int rows) {
    block.reserve(codes.bytes(rows));
    codes.lie_at(block.as<void>(), rows);
  }
  LinearCall call(const Packed& w, const float* x, int64_t stride, int rows, const float* bias, float* y, int64_t y_stride) const {
    LinearCall c;
    c.in.x = x;
    c.in.stride = stride;
    c.in.rows = rows;
    if (codes.how.group) codes.put(c.in);
    c.w = &w;
    c.bias = bias;
    c.y = y;
    c.y_stride = y_stride;
    return c;
  }
};
}  // namespace

template <class F> void Immediate::on(int members, size_t spare, F job) {
  scratch_.resize(size_t(team_->size()));
  for (auto& s : scratch_) s.reserve(std::max(kernels_.linear_scratch_bytes(), spare));
  if (members == 1) job(0);
  else team_->run(job);
}

void Immediate::linear(const Packed& w, const Inputs& how, const float* x, int64_t x_stride, int rows, const float* bias, float* y, int64_t y_stride) {
  if (!rows) return;
  std::lock_guard<std::mutex> one(one_);
  Rows8 inputs(w, how);
  if (how.group) inputs.lie_in(quantized_, rows);
  const int count = members(double(rows) * w.n * w.k);
  const LinearCall call = inputs.call(w, x, x_stride, rows, bias, y, y_stride);
  const LinearKernel& kernel = kernels_.linears[kernels_.usual_linear(w, how.group, rows)];
  on(count, inputs.codes.spare_bytes(), [&](int member) {
    if (how.group) {
      const auto [a, b] = share(rows, member, count);
      inputs.codes.fill(kernels_, x, x_stride, a, b, scratch_[size_t(member)].as<void>());
      if (count > 1) team_->barrier();
    }
    const auto [first, last] = share(w.panels(), member, count);
    if (first < last) run_linear(kernels_, kernel, call, first, last, scratch_[size_t(member)].as<void>());
  });
}

// Rows [a, b) of the patches of all images, as [kernel rows, kernel columns, channels]
static void gather(const Window& w, const float* x, int a, int b, float* out) {
  const int across = w.kernel[1] * w.channels, pixels = w.out[0] * w.out[1];
  for (int row = a; row < b; row++) {
    const int image = row / pixels, top = row % pixels / w.out[1] * w.step[0] - w.before[0], left = row % w.out[1] * w.step[1] - w.before[1];
    for (int i = 0; i < w.kernel[0]; i++, out += across) {
      const int r = top + i * w.gap[0];
      if (r < 0 || r >= w.height) {
        std::memset(out, 0, sizeof(float) * size_t(across));
        continue;
      }
      const float* line = x + (int64_t(image) * w.height + r) * w.width * w.stride;
      for (int j = 0; j < w.kernel[1]; j++) {
        const int c = left + j * w.gap[1];
        if (c < 0 || c >= w.width) std::memset(out + j * w.channels, 0, sizeof(float) * size_t(w.channels));
        else std::memcpy(out + j * w.channels, line + c * w.stride, sizeof(float) * size_t(w.channels));
      }
    }
  }
}

void Immediate::convolution(const Packed& w, const Inputs& how, const Window& window, const float* x, const float* bias, float* y, int64_t y_stride) {
  const int rows = window.rows();
  if (!rows) return;
  std::lock_guard<std::mutex> one(one_);
  const int count = members(double(rows) * w.n * w.k);
  const bool whole = window.kernel[0] * window.kernel[1] == 1 && window.step[0] * window.step[1] == 1 && window.before[0] + window.before[1] == 0;  // rows are pixels
  struct Mine {
    Block rows, codes;
  };
  patches_.resize(2 * size_t(team_->size()));
  std::atomic<int> next{0};
  const int parts = (rows + kPatchRows - 1) / kPatchRows;
  on(count, Codes(how, w.k).spare_bytes(), [&](int member) {
    Block &patches = patches_[2 * size_t(member)], &room = patches_[2 * size_t(member) + 1];
    patches.reserve(sizeof(float) * size_t(kPatchRows) * size_t(w.k));
    Rows8 inputs(w, how);
    if (how.group) inputs.lie_in(room, kPatchRows);
    for (int part = next.fetch_add(1); part < parts; part = next.fetch_add(1)) {
      const int a = part * kPatchRows, b = std::min(rows, a + kPatchRows);
      const float* from = whole ? x + int64_t(a) * window.stride : patches.as<float>();
      const int64_t stride = whole ? window.stride : w.k;
      if (!whole) gather(window, x, a, b, patches.as<float>());
      if (how.group) inputs.codes.fill(kernels_, from, stride, 0, b - a, scratch_[size_t(member)].as<void>());
      const LinearCall call = inputs.call(w, from, stride, b - a, bias, y + int64_t(a) * y_stride, y_stride);
      run_linear(kernels_, kernels_.linears[kernels_.usual_linear(w, how.group, b - a)], call, 0, w.panels(), scratch_[size_t(member)].as<void>());
    }
  });
}

void Immediate::embed(const Packed& w, const int32_t* ids, int count, float* y) {
  if (!count) return;
  std::lock_guard<std::mutex> one(one_);
  kernels_.embed(w, ids, 1.f, y, w.k, 0, count);
}

void Immediate::recurrent(Cell kind, const Packed& w, const Inputs& how, const float* bias, const float* from_x, const std::vector<int>& sizes, bool reverse, float* h, float* c,
                          float* y, int64_t y_stride) {
  if (sizes.empty()) return;
  std::lock_guard<std::mutex> one(one_);
  const int width = w.k, gates = w.n, steps = int(sizes.size()), most = *std::max_element(sizes.begin(), sizes.end());
  Rows8 inputs(w, how);
  if (how.group) inputs.lie_in(quantized_, most);
  gates_.reserve(sizeof(float) * size_t(most) * size_t(gates));
  std::vector<int64_t> starts(size_t(steps) + 1, 0);
  for (int t = 0; t < steps; t++) starts[size_t(t) + 1] = starts[size_t(t)] + sizes[size_t(t)];
  const int count = members(double(most) * gates * width);
  float* mine = gates_.as<float>();
  on(count, inputs.codes.spare_bytes(), [&](int member) {
    const auto [first, last] = share(w.panels(), member, count);
    for (int i = 0; i < steps; i++) {
      const int t = reverse ? steps - 1 - i : i, rows = sizes[size_t(t)];
      const auto [a, b] = share(rows, member, count);
      if (how.group) inputs.codes.fill(kernels_, h, width, a, b, scratch_[size_t(member)].as<void>());
      if (count > 1) team_->barrier();
      const LinearCall call = inputs.call(w, h, width, rows, bias, mine, gates);
      if (first < last) run_linear(kernels_, kernels_.linears[kernels_.usual_linear(w, how.group, rows)], call, first, last, scratch_[size_t(member)].as<void>());
      if (count > 1) team_->barrier();
      kernels_.cell(kind, from_x + starts[size_t(t)] * gates, gates, mine, gates, width, h, c, width, y + starts[size_t(t)] * y_stride, y_stride, a, b);
      if (count > 1) team_->barrier();  // shares differ from step to step where sequences end
    }
  });
}

}  // namespace octavo
