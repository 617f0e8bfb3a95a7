// Drawing tokens from rows of logits.
#pragma once
#include <cstdint>
#include <vector>

#include "ops.h"
#include "team.h"

namespace octavo {

// One draw from softmax(row / temperature), cut by top_k, then top_p, then min_p; what is left is what u in [0, 1) picks from. Without top_k and
// top_p tokens lie in the order of their ids, else by weight, the largest first and equal ones by id.
struct Draw {
  const float* row = nullptr;
  float temperature = 1.f;
  int top_k = 0;        // 0: all
  double top_p = 1;     // 1: all
  float min_p = 0.f;    // of the largest weight; 0: all
  double u = 0;
};

struct Candidate {
  float x, w;  // logit, weight
  int32_t id;
};

// Arrays of one thread, as long as a row.
struct DrawSpace {
  std::vector<float> weight, sums;
  std::vector<int32_t> ids;
  std::vector<Candidate> candidates;
};

// A row whose largest value is NaN or -infinity gives that value's first place.
int32_t draw(const Kernels& kernels, const Draw& d, int width, DrawSpace& space);

// Each by one member of the team, `space` one per member. A draw looks at nothing but itself: the order and the team do not matter.
void draw_all(const Kernels& kernels, Team& team, const std::vector<Draw>& draws, int width, std::vector<DrawSpace>& space, int32_t* tokens);

}  // namespace octavo
