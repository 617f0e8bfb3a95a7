// vdpbf16ps: sixteen sums, each of two products, an instruction. What is multiplied lies in panels, [panel of 64 columns][pair][64 columns], a pair being two
// numbers that are multiplied one after the other; a tile of 6 rows x 64 columns is summed in 24 registers.
// gcc 12 warns of its own header here (its PR 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "../products.h"

#include <algorithm>
#include <vector>

#include "../avx512vnni/vec.h"

namespace octavo::avx512bf16 {
using namespace avx512vnni;

constexpr int kRows = 6, kVectors = 4, kWide = 16 * kVectors;
constexpr int64_t kBlockBytes = 384 << 10;  // of x in pairs: less than half of an L2 cache, whose rest the panels pass through

#include "pairs.inl.h"

// Numbers of two rows as pairs
static inline __m512i paired(__m512 first, __m512 second) {
  const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(first)), high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(second));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// R rows x 64 columns of y, `columns` of which there are: the sum over pairs i of a[r * row + i * step] * b[i][64]
template <int R>
static inline void tile(const uint32_t* a, int64_t row, int64_t step, const uint32_t* b, int64_t pairs, float* y, int64_t y_stride, int columns) {
  __m512 sum[R][kVectors];
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) sum[r][j] = _mm512_setzero_ps();
  for (int64_t i = 0; i < pairs; i++, a += step, b += kWide) {
    __m512i w[kVectors];
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) w[j] = _mm512_loadu_si512(b + 16 * j);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const __m512i x = _mm512_set1_epi32(int(a[r * row]));
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; j++) sum[r][j] = _mm512_dpbf16_ps(sum[r][j], (__m512bh)w[j], (__m512bh)x);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; j++) store_n(y + r * y_stride + 16 * j, {sum[r][j]}, columns - 16 * j);
}
template <int R = kRows>
static void rows_of(int64_t rows, const uint32_t* a, int64_t row, int64_t step, const uint32_t* b, int64_t pairs, float* y, int64_t y_stride, int columns) {
  for (; rows >= R; rows -= R, a += R * row, y += R * y_stride) tile<R>(a, row, step, b, pairs, y, y_stride, columns);
  if constexpr (R > 1) {
    if (rows > 0) rows_of<R - 1>(rows, a, row, step, b, pairs, y, y_stride, columns);
  }
}

static void product(const float* x, int64_t m, const float* w, int64_t n, int64_t k, float* y) {
  const int64_t pairs = (k + 1) / 2, panels = (n + kWide - 1) / kWide, most = std::max<int64_t>(kRows, kBlockBytes / (4 * std::max<int64_t>(pairs, 1)) / kRows * kRows);
  std::vector<uint32_t> packed(size_t(panels * pairs * kWide)), row(size_t(std::max<int64_t>(pairs, 1)) * 16), block(size_t(std::min(m, most) * pairs));
  for (int64_t n0 = 0; n0 < n; n0 += 16) {
    const int64_t rows = std::min<int64_t>(16, n - n0);
    for (int64_t r = 0; r < rows; r++) pair_row(w + (n0 + r) * k, k, pairs, row.data() + r * pairs);
    uint32_t* to = packed.data() + n0 / kWide * pairs * kWide + n0 % kWide;
    for (int64_t i = 0; i < pairs; i++)
      for (int64_t r = 0; r < rows; r++) to[i * kWide + r] = row[size_t(r * pairs + i)];
  }
  for (int64_t m0 = 0; m0 < m; m0 += most) {
    const int64_t rows = std::min(most, m - m0);
    for (int64_t r = 0; r < rows; r++) pair_row(x + (m0 + r) * k, k, pairs, block.data() + r * pairs);
    for (int64_t p = 0; p < panels; p++)
      rows_of(rows, block.data(), pairs, 1, packed.data() + p * pairs * kWide, pairs, y + m0 * n + p * kWide, n, int(std::min<int64_t>(kWide, n - p * kWide)));
  }
}

static void gram(const float* x, int64_t rows, int64_t k, const float* factors, float* y) {
  const int64_t pairs = (rows + 1) / 2, panels = (k + kWide - 1) / kWide;
  std::vector<uint32_t> packed(size_t(panels * pairs * kWide));
  for (int64_t i = 0; i < pairs; i++) {
    const bool both = 2 * i + 1 < rows;
    const float *first = x + 2 * i * k, *second = both ? first + k : first;
    const __m512 one = _mm512_set1_ps(factors ? factors[2 * i] : 1.f), two = _mm512_set1_ps(!both ? 0.f : factors ? factors[2 * i + 1] : 1.f);
    for (int64_t j = 0; j < panels * kWide; j += 16) {
      const int left = int(std::min<int64_t>(k - j, 16));
      const __m512 next = both ? _mm512_mul_ps(load_n(second + j, left).v, two) : _mm512_setzero_ps();
      _mm512_storeu_si512(packed.data() + (j / kWide * pairs + i) * kWide + j % kWide, paired(_mm512_mul_ps(load_n(first + j, left).v, one), next));
    }
  }
  for (int64_t p = 0; p < panels; p++) {
    const int64_t height = std::min<int64_t>(kWide, k - p * kWide);
    for (int64_t q = p; q < panels; q++)
      rows_of(height, packed.data() + p * pairs * kWide, 1, kWide, packed.data() + q * pairs * kWide, pairs, y + p * kWide * k + q * kWide, k,
              int(std::min<int64_t>(kWide, k - q * kWide)));
  }
  for (int64_t i = 0; i < k; i++)
    for (int64_t j = 0; j < i; j++) y[i * k + j] = y[j * k + i];
}

}  // namespace octavo::avx512bf16

namespace octavo {
const ProductKernels* avx512bf16_products() {
  static const ProductKernels table = {avx512bf16::product, avx512bf16::gram};
  return &table;
}
}  // namespace octavo
