// Rounding to the nearest path through a trellis (trellis.h) by Viterbi's algorithm. Included by
// <isa>/trellis.cpp with OCTAVO_ISA set, and OCTAVO_LANES to the floats of a vector. Nothing is summed in another order than written, so every instruction set gives the same bits.
//
// Inside, states are numbered with the newest digit lowest (a digit is the `bits` of one step): the states that can come before then lie in runs.
#include <algorithm>
#include <cstring>
#include <memory>

#include "../trellis.h"

namespace octavo::OCTAVO_ISA {
namespace trellis {

constexpr float kFar = 1e30f;  // the cost of what cannot be
constexpr int kT = kTrellisRows;

// The compiler's own vectors: every instruction set has them
constexpr int kLanes = OCTAVO_LANES;
typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
static inline Floats load(const float* p) { Floats v; std::memcpy(&v, p, sizeof v); return v; }
static inline Ints ascending() { Ints v; for (int i = 0; i < kLanes; i++) v[i] = i; return v; }

template <int K> struct Path {
  static constexpr int kDigits = kTrellisState / K, kLow = kTrellisState - K, kTails = 1 << kLow, kNext = 1 << K;
  alignas(64) float value[kTrellisStates], cost[2][kTrellisStates];
  alignas(64) uint8_t from[kT][kTails];

  Path() {
    for (int s = 0; s < kTrellisStates; s++) value[s] = float(trellis_value(turned(s), K));
  }
  // The state as the format numbers it: the oldest digit lowest, for three bits with the third ones above the others
  static int turned(int s) {
    int r = 0;
    for (int i = 0; i < kDigits; i++) {
      const int digit = (s >> (kLow - K * i)) & (kNext - 1);
      r |= K == 3 ? (digit & 3) << (2 * i) | (digit >> 2) << (8 + i) : digit << (K * i);
    }
    return r;
  }

  // The cheapest way to each tail, then the cost of each state that follows it
  static void step(const float* cost, float* next, uint8_t* from, const float* value, float x, float weight) {
    for (int u = 0; u < kTails; u += kLanes) {
      Floats least = load(cost + u);
      Ints which = {};
#pragma GCC unroll 16
      for (int j = 1; j < kNext; j++) {
        const Floats other = load(cost + j * kTails + u);
        const Ints less = other < least;
        which = less ? Ints{} + j : which;
        least = less ? other : least;
      }
      const Bytes narrow = __builtin_convertvector(which, Bytes);
      std::memcpy(from + u, &narrow, sizeof narrow);
#pragma GCC unroll 16
      for (int i = 0; i < kNext; i++) {  // the i-th vector of the kNext states that follow each of these
        const Ints lane = (ascending() + i * kLanes) >> K;
        const Floats d = x - load(value + u * kNext + i * kLanes), sum = __builtin_shuffle(least, lane) + weight * d * d;
        std::memcpy(next + u * kNext + i * kLanes, &sum, sizeof sum);
      }
    }
  }

  // The cheapest path for x[0..64), `tail` (its first and last digits but one) given, or any (-1)
  void pass(const float* x, const float* weight, int tail, int* states) {
    float *now = cost[0], *next = cost[1];
    std::fill(now, now + kTrellisStates, tail < 0 ? 0.f : kFar);
    if (tail >= 0) now[tail] = 0.f;
    for (int t = 0; t < kT; t++) {
      step(now, next, from[t], value, x[t], weight[t]);
      std::swap(now, next);
    }
    int s = 0;
    if (tail < 0) s = int(std::min_element(now, now + kTrellisStates) - now);
    else {
      s = tail;
      for (int j = 1; j < kNext; j++)
        if (now[j * kTails + tail] < now[s]) s = j * kTails + tail;
    }
    for (int t = kT - 1; t >= 0; t--) {
      states[t] = s;
      s = (s >> K) | (int(from[t][s >> K]) << kLow);
    }
  }

  // A ring: the digits before the first step are those of the last ones. A free pass over the sequence turned by half finds what they should be.
  void ring(const float* x, const float* weight, int* states) {
    float turned_x[kT], turned_weight[kT];
    for (int t = 0; t < kT; t++) {
      turned_x[t] = x[(t + kT / 2) % kT];
      turned_weight[t] = weight[(t + kT / 2) % kT];
    }
    pass(turned_x, turned_weight, -1, states);
    pass(x, weight, states[kT / 2 - 1] & (kTails - 1), states);
  }
};

template <int K> static void round_tiles(const TrellisBlock& b, int64_t tile0, int64_t tile1) {
  const auto path = std::make_unique<Path<K>>();
  for (int64_t tile = tile0; tile < tile1; tile++) {
    const int64_t row0 = tile * kT;
    int64_t row[kT];
    float x[kT], inverse[kT], weight[kT];
    double total = 0;
    for (int t = 0; t < kT; t++) {
      row[t] = row0 + trellis_row(t);
      const float scale = row[t] < b.rows ? b.scales[row[t]] : 0.f;
      inverse[t] = scale > 0.f ? 1.f / scale : 0.f;
      weight[t] = scale * scale;  // an error counts as much as it is large in the weight
      total += double(weight[t]);
    }
    for (int t = 0; t < kT; t++) weight[t] = total > 0 ? float(double(weight[t]) * kT / total) : 0.f;
    int states[kT];
    for (int c = 0; c < b.width; c++) {
      for (int t = 0; t < kT; t++) x[t] = row[t] < b.rows ? b.weights[row[t] * b.stride + c] * inverse[t] : 0.f;
      path->ring(x, weight, states);
      const float* upper = b.upper + int64_t(c) * b.width;
      for (int t = 0; t < kT; t++) {
        if (row[t] >= b.rows) continue;
        float* w = b.weights + row[t] * b.stride;
        b.states[row[t] * b.stride + c] = uint16_t(Path<K>::turned(states[t]));
        const float error = (w[c] - path->value[states[t]] * b.scales[row[t]]) / upper[c];
        b.errors[row[t] * b.width + c] = error;
        for (int i = c + 1; i < b.width; i++) w[i] -= error * upper[i];
      }
    }
  }
}

static void round(const TrellisBlock& block, int64_t tile0, int64_t tile1) {
  if (block.bits == 2) round_tiles<2>(block, tile0, tile1);
  else if (block.bits == 3) round_tiles<3>(block, tile0, tile1);
  else round_tiles<4>(block, tile0, tile1);
}

}  // namespace trellis
}  // namespace octavo::OCTAVO_ISA

#define OCTAVO_JOIN_OF(a, b) a##b
#define OCTAVO_JOIN(a, b) OCTAVO_JOIN_OF(a, b)

namespace octavo {
const TrellisKernels* OCTAVO_JOIN(OCTAVO_ISA, _trellis)() {
  static const TrellisKernels table = {OCTAVO_ISA::trellis::round};
  return &table;
}
}  // namespace octavo
