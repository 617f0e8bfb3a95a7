// Layers run at once, one call each, for modules whose forward is somebody else's program. Nothing here knows Python.
#pragma once
#include <memory>
#include <mutex>
#include <vector>

#include "inputs.h"
#include "ops.h"
#include "program.h"
#include "team.h"

namespace octavo {

// A picture [height, width, channels]; its pixels lie `stride` floats apart, so that groups of channels are pictures too. Sizes of the kernel, steps,
// gaps between its cells and the rows and columns of zeros before the first pixel, down and across.
struct Window {
  int images = 0, height = 0, width = 0, channels = 0;
  int64_t stride = 0;
  int kernel[2] = {1, 1}, step[2] = {1, 1}, gap[2] = {1, 1}, before[2] = {0, 0}, out[2] = {0, 0};
  int rows() const { return images * out[0] * out[1]; }
};

class Immediate {
 public:
  Immediate(std::shared_ptr<Team> team, const Kernels& kernels) : team_(std::move(team)), kernels_(kernels) {}
  // y [rows, n] = x [rows, k] w^T + bias (null: none)
  void linear(const Packed& w, const Inputs& how, const float* x, int64_t x_stride, int rows, const float* bias, float* y, int64_t y_stride);
  // y [images * out height * out width, n]; columns of w: kernel rows, kernel columns, channels
  void convolution(const Packed& w, const Inputs& how, const Window& window, const float* x, const float* bias, float* y, int64_t y_stride);
  // y [count, k]: rows of w; ids have been checked
  void embed(const Packed& w, const int32_t* ids, int count, float* y);
  // Steps of a recurrent layer: step t takes the next sizes[t] rows of from_x [sum of sizes, gates * width] and of y, last step first when `reverse`;
  // h, c [most rows, width] begin as the first state and end as the last. bias [gates * width]: of the state's share; null: none.
  void recurrent(Cell kind, const Packed& w, const Inputs& how, const float* bias, const float* from_x, const std::vector<int>& sizes, bool reverse, float* h, float* c,
                 float* y, int64_t y_stride);
  int threads() const { return team_->size(); }

 private:
  // Members for so many multiplications: waking others costs some microseconds
  int members(double products) const { return products < 4e5 ? 1 : team_->size(); }
  // job(member) on the first `members` of the team, each with a scratch block for linears and for `spare` bytes
  template <class F> void on(int members, size_t spare, F job);
  std::shared_ptr<Team> team_;
  const Kernels& kernels_;
  std::mutex one_;  // a second caller waits
  Block quantized_, gates_;
  std::vector<Block> scratch_, patches_;
};

}  // namespace octavo
