#include "sampling.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace octavo {

namespace {

// The index that u picks from weights of which the blocks' sums are known. `weight_of(start, count)` gives the weights of a block.
template <class Weights> int pick(int n, const std::vector<float>& sums, double u, Weights weight_of) {
  const int blocks = (n + kWeightBlock - 1) / kWeightBlock;
  double total = 0;
  for (int b = 0; b < blocks; b++) total += double(sums[size_t(b)]);
  const double target = u * total;
  double before = 0;
  int block = 0;
  while (block < blocks - 1 && before + double(sums[size_t(block)]) <= target) before += double(sums[size_t(block++)]);
  const int start = block * kWeightBlock, count = std::min(kWeightBlock, n - start);
  const float* w = weight_of(start, count);
  int last = 0;
  for (int i = 0; i < count; i++) {
    if (!(w[i] > 0.f)) continue;
    last = i;  // rounding may put the target a hair past the block's own sum
    before += double(w[i]);
    if (before > target) break;
  }
  return start + last;
}

// The largest value first, equal ones by id
bool before(const Candidate& a, const Candidate& b) { return a.x != b.x ? a.x > b.x : a.id < b.id; }

double sum_of(const std::vector<Candidate>& some) {
  double sum = 0;
  for (const Candidate& c : some) sum += double(c.w);
  return sum;
}

// Counted in the order of `before`, the index of the first candidate with which the sum of weights reaches the target (or passes it); at most the
// last. Afterwards it is in its place and those before it are the candidates that belong there. Halves what it looks at instead of sorting all.
int upto(std::vector<Candidate>& some, double target, bool passes) {
  auto begin = some.begin(), end = some.end();
  double sum = 0;
  const auto there = [&](double s) { return passes ? s > target : s >= target; };
  while (end - begin > 48) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, before);
    double left = sum;
    for (auto c = begin; c != middle; ++c) left += double(c->w);
    if (there(left)) end = middle;
    else begin = middle, sum = left;
  }
  std::sort(begin, end, before);
  auto last = begin;
  for (auto c = begin; c != end; ++c) {
    sum += double(c->w);
    if (c->w > 0.f) last = c;
    if (there(sum)) return int(c - some.begin());
  }
  return int(last - some.begin());
}

}  // namespace

int32_t draw(const Kernels& kernels, const Draw& d, int width, DrawSpace& s) {
  int32_t place = 0;
  float top = 0.f;
  kernels.best(d.row, width, width, 0, 1, &place, &top);
  if (!std::isfinite(top)) return place;
  const float scale = 1.f / d.temperature;
  const bool by_rank = 0 < d.top_k && d.top_k < width, nucleus = d.top_p < 1;
  s.weight.resize(size_t(width));
  s.sums.resize(size_t(width / kWeightBlock + 1));
  if (!by_rank && !nucleus && !(d.min_p > 0.f)) {
    kernels.weights(d.row, width, top, scale, nullptr, s.sums.data());
    float sum = 0.f;
    return pick(width, s.sums, d.u, [&](int start, int count) {
      kernels.weights(d.row + start, count, top, scale, s.weight.data(), &sum);
      return s.weight.data();
    });
  }
  double total = 0;
  if (nucleus && !by_rank) {
    kernels.weights(d.row, width, top, scale, nullptr, s.sums.data());
    for (int b = 0; b * kWeightBlock < width; b++) total += double(s.sums[size_t(b)]);
  }
  s.ids.resize(size_t(width) + 1);  // one beyond: the collector writes before it looks
  // Probabilities that matter sit in a short head of the row. What goes into it, as weight relative to the largest: tried in turn, all of the row last.
  for (const double least : {by_rank || nucleus ? 1e-3 : double(d.min_p), 2e-4, 4e-5, 8e-6, 1e-6, 0.0}) {
    const int n = kernels.at_least(d.row, width, top + float(std::log(least)) / scale, s.ids.data());
    if (by_rank && n < d.top_k && least > 0) continue;
    std::vector<float>& w = s.weight;
    for (int i = 0; i < n; i++) w[size_t(i)] = d.row[s.ids[size_t(i)]];
    kernels.weights(w.data(), n, top, scale, w.data(), s.sums.data());
    if (!by_rank && !nucleus)
      return s.ids[size_t(pick(n, s.sums, d.u, [&](int start, int) { return w.data() + start; }))];
    double head = 0;
    for (int b = 0; b * kWeightBlock < n; b++) head += double(s.sums[size_t(b)]);
    if (nucleus && !by_rank && head < d.top_p * total && least > 0 && d.min_p < float(least)) continue;  // the nucleus reaches beyond the head
    auto& found = s.candidates;
    found.clear();
    for (int i = 0; i < n; i++) found.push_back({d.row[s.ids[size_t(i)]], w[size_t(i)], s.ids[size_t(i)]});
    if (by_rank && d.top_k < n) {
      std::nth_element(found.begin(), found.begin() + d.top_k, found.end(), before);
      found.resize(size_t(d.top_k));
    }
    if (by_rank) total = sum_of(found);
    if (d.min_p > 0.f) found.erase(std::remove_if(found.begin(), found.end(), [&](const Candidate& c) { return c.w < d.min_p; }), found.end());
    if (nucleus) found.resize(size_t(upto(found, d.top_p * total, false)) + 1);
    return found[size_t(upto(found, d.u * sum_of(found), true))].id;
  }
  return place;  // not reached: the last head is the whole row
}

void draw_all(const Kernels& kernels, Team& team, const std::vector<Draw>& draws, int width, std::vector<DrawSpace>& space, int32_t* tokens) {
  space.resize(std::max(space.size(), size_t(team.size())));
  if (draws.size() == 1) {
    tokens[0] = draw(kernels, draws[0], width, space[0]);
    return;
  }
  std::atomic<int> next{0};
  team.run([&](int member) {
    for (int i = next.fetch_add(1); i < int(draws.size()); i = next.fetch_add(1)) tokens[i] = draw(kernels, draws[size_t(i)], width, space[size_t(member)]);
  });
}

}  // namespace octavo
