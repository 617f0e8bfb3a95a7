#include "blocks.h"

#include <algorithm>

#include "table.h"

namespace octavo {

BlockShape block_shape(BlockType type) {
  switch (type) {
    case BlockType::Q4_0: case BlockType::IQ4_NL: return {32, 18};
    case BlockType::Q4_1: return {32, 20};
    case BlockType::Q5_0: return {32, 22};
    case BlockType::Q5_1: return {32, 24};
    case BlockType::Q8_0: return {32, 34};
    case BlockType::MXFP4: return {32, 17};
    case BlockType::Q2_K: return {256, 84};
    case BlockType::Q3_K: return {256, 110};
    case BlockType::Q4_K: return {256, 144};
    case BlockType::Q5_K: return {256, 176};
    case BlockType::Q6_K: return {256, 210};
    case BlockType::TQ1_0: return {256, 54};
    case BlockType::TQ2_0: return {256, 66};
  }
  return {0, 0};
}

static const BlockKernels& blocks_for(const std::string& isa) {
  const std::string name = base_isa(isa);
#if defined(__x86_64__)
  if (name == "avx512vnni") return *avx512vnni_blocks();
  if (name == "avx2") return *avx2_blocks();
#endif
  return *portable_blocks();
}

size_t encode_blocks(const std::string& isa, BlockType type, Floats floats, const void* x, size_t count, uint8_t* out) {
  constexpr size_t kPiece = 4096;  // widened numbers that stay in the first cache
  const BlockKernels& kernels = blocks_for(isa);
  const BlockShape shape = block_shape(type);
  const size_t numbers = size_t(shape.numbers), bytes = size_t(shape.bytes);
  if (floats == Floats::F32) return kernels.encode(type, static_cast<const float*>(x), count / numbers, out);
  alignas(64) float wide[kPiece];
  size_t bad = 0;
  for (size_t at = 0; at < count; at += kPiece) {
    const size_t here = std::min(kPiece, count - at);
    kernels.widen(floats, static_cast<const uint16_t*>(x) + at, here, wide);
    bad += kernels.encode(type, wide, here / numbers, out + at / numbers * bytes);
  }
  return bad;
}

}  // namespace octavo
