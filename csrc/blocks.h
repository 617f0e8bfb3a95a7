// Floats into ggml's blocks: what GGUF files hold. The simple types round as ggml's own reference does, to the byte; the K types and IQ4_NL search
// scales for the least squared error.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace octavo {

// By ggml's numbers of its types.
enum class BlockType : int {
  Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13, Q6_K = 14, IQ4_NL = 20, TQ1_0 = 34, TQ2_0 = 35, MXFP4 = 39
};
enum class Floats : int { F32 = 0, F16 = 1, BF16 = 2 };

struct BlockShape { int numbers, bytes; };  // numbers 0: such a type is not written
BlockShape block_shape(BlockType type);

// One per instruction set; all give the same bytes. Returns how many of the blocks have a scale beyond float16.
struct BlockKernels {
  size_t (*encode)(BlockType type, const float* x, size_t blocks, uint8_t* out);
  void (*widen)(Floats type, const void* x, size_t count, float* out);
};
const BlockKernels* portable_blocks();
const BlockKernels* avx2_blocks();
const BlockKernels* avx512vnni_blocks();

// `count` numbers, whole blocks of them; on the calling thread.
size_t encode_blocks(const std::string& isa, BlockType type, Floats floats, const void* x, size_t count, uint8_t* out);

}  // namespace octavo
