// The contract between the program (which owns buffers, threads and order) and the kernels (which own arithmetic).
// Nothing here knows Python. One `Kernels` table per instruction set; see table.h for how one is chosen.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace octavo {

constexpr int kPanel = 16;      // output rows in a weight panel
constexpr int kStep = 64;       // K is padded to a multiple of this in panels of int8 and 4-bit codes
constexpr int kPage = 32;       // tokens in a page of the KV cache
constexpr int kSumBlock = 32;   // K values per activation sum

// How the numbers of a weight are stored. Codes8: signed 8-bit integers. Codes4: 4-bit codes 0..15. E4M3, E5M2: small floats of 8 bits (OCP 8-bit
// Floating Point Specification; whoever packs has seen to it that all are finite). Trellis: see trellis.h.
enum class Store : int32_t { F32 = 0, BF16 = 1, Codes8 = 2, Codes4 = 3, E4M3 = 4, E5M2 = 5, Trellis = 6 };
// What a code means: Int = the integer itself (4-bit: code - zero, zero 8 when symmetric); Table = table[code].
enum class Meaning : int32_t { Int = 0, Table = 1 };
enum class ScaleType : int32_t { F32 = 0, F16 = 1, BF16 = 2 };

// A weight [n, k] in the one packed layout, "panel16", that every kernel of every instruction set reads.
// Panel p holds rows 16p .. 16p+15 (missing rows are zero) and lies at data + p * panel_bytes; a panel is
//   scales [groups][16] of ScaleType        (absent for F32, BF16)
//   zeros  [groups][16] float               (only if has_zeros: value = scale * (code - zero))
//   then, 64-byte aligned, the values:
//   F32, BF16: [k][16]                       (k is not padded)
//   Codes8:    [kpad/4][16 rows][4 k]        int8; E4M3, E5M2: the same of their codes
//   Codes4:    [kpad/64][8][16 rows][4 k]    bytes; byte (j, r, i) of a step of 64 holds k = 4j+i in the low nibble and
//                                            k = 32+4j+i in the high nibble. Codes are unsigned 0..15.
// Group g of a row covers k in [g*group, (g+1)*group); group is a multiple of 4 (of 32 where int8 activations are to meet it, see meets_ints), or
// >= kpad for one scale a row. Padding in k holds code 0 for Codes8 and, for Codes4, codes that are multiplied by zero activations.
// Trellis:     four panels, 64 rows, are a tile and share its values: a tile lies at data + p / 4 * 4 * panel_bytes and is
//   scales [4 panels][16] of ScaleType, one group; then, 64-byte aligned, [kpad] rings of 8 * bits bytes. A ring has the bits of 64 steps, those of
//   step t from bit t * bits on (3 bits: 16 bytes with the lower two of each step, then 8 bytes with the third), and the state of step t is the twelve
//   bits that begin there (lower bits of four steps, then their third bits), around the end. Step t is row trellis_row(t) of the tile.
struct Packed {
  Store store = Store::F32;
  int32_t bits = 0;                 // of a step of a trellis
  Meaning meaning = Meaning::Int;
  ScaleType scale_type = ScaleType::F32;
  int32_t n = 0, k = 0, kpad = 0;   // kpad = k for F32 and BF16, else k rounded up to kStep
  int32_t group = 0, groups = 0;    // groups = ceil(k / group)
  bool has_zeros = false;
  bool rounds_inputs = false;       // float activations may be rounded to bfloat16 (avx512bf16/pair_linear.inl.h)
  float table[16] = {};             // Meaning::Table: the values of the codes
  int8_t table8[16] = {};           // the same for int8 activations: table8 * table8_unit is close to table (see bind.cpp)
  float table8_unit = 1.f;
  const uint8_t* data = nullptr;    // 64-byte aligned
  size_t panel_bytes = 0;           // multiple of 64
  size_t zeros_offset = 0, values_offset = 0;  // inside a panel
  // Where the scales of a panel and its values lie
  const uint8_t* base(int panel) const {
    if (store != Store::Trellis) return data + size_t(panel) * panel_bytes;
    return data + size_t(panel / 4) * 4 * panel_bytes + size_t(panel % 4) * kPanel * (scale_type == ScaleType::F32 ? 4 : 2);
  }
  const uint8_t* values(int panel) const {
    return data + (store == Store::Trellis ? size_t(panel / 4) * 4 : size_t(panel)) * panel_bytes + values_offset;
  }
  int panels() const { return (n + kPanel - 1) / kPanel; }
  // Whether values, scales and zero points lie where the other's do, and mean the same
  bool lies_as(const Packed& o) const {
    return store == o.store && bits == o.bits && meaning == o.meaning && scale_type == o.scale_type && n == o.n && k == o.k && group == o.group && has_zeros == o.has_zeros &&
           rounds_inputs == o.rounds_inputs && table8_unit == o.table8_unit && panel_bytes == o.panel_bytes && zeros_offset == o.zeros_offset &&
           values_offset == o.values_offset && std::equal(table, table + 16, o.table) && std::equal(table8, table8 + 16, o.table8);
  }
  bool is_float() const { return store == Store::F32 || store == Store::BF16; }
  // Whether int8 activations can be multiplied by the codes: sums of integers end at multiples of kSumBlock
  bool meets_ints() const { return (store == Store::Codes8 || store == Store::Codes4 || store == Store::Trellis) && (group >= kpad || group % kSumBlock == 0); }
};

enum class Gate : int32_t { Silu = 0, GeluTanh = 1, Gelu = 2 };

// Activations of one linear, either float32 rows or int8 rows with a float scale per row or per `group` values (dynamic, symmetric, +-127).
struct Activations {
  const float* x = nullptr; int64_t stride = 0;   // float32 [rows, k]
  const int8_t* q = nullptr;                       // int8 [rows, kpad], zero padded; null when float32 is to be used
  const float* scale = nullptr;                    // [rows, groups]
  int group = 0, groups = 1;                       // group: a multiple of 32, or >= kpad for one scale a row
  const int32_t* sums = nullptr;                   // [rows, kpad/32]: sums of q over blocks of 32
  const uint64_t* marks = nullptr;                 // [rows, kpad/64], bit i of word j: value 64 * j + i is 0 in q and counts as it is in x; null: none do
  int rows = 0;
};

// int8 activations whose scale is known beforehand: round(x * inverse[column]) + zero_point within +-127, ties to even. inverse [k]: 1 / scale, times what
// the weight's columns were divided by. The zero point's share of a product is a constant of each output, which is the caller's to subtract.
struct FixedCodes {
  const float* inverse = nullptr;
  float scale = 0.f;
  int zero_point = 0;
};

struct LinearCall {
  Activations in;
  const Packed* w = nullptr;
  const float* bias = nullptr;                     // [n] or null
  const float* residual = nullptr; int64_t residual_stride = 0;  // added when not null; may be y itself
  float* y = nullptr; int64_t y_stride = 0;        // [rows, n]
  const Packed* up = nullptr; Gate gate = Gate::Silu;  // y = gate(x w^T) * (x up^T), for kernels that can; up lies as w does, without bias and residual
};

// One way to run a linear, or why there are several: each is best for some shapes and numbers of rows. All kernels of one instruction set that
// support a problem give the same bits, so that a policy may choose by speed alone.
struct LinearKernel {
  const char* name;
  bool (*supports)(const Packed& w, int in_group, int rows);  // in_group: as Activations::group; 0: float32 activations
  // y[:, 16*panel0 .. 16*panel1) of one linear. scratch: linear_scratch_bytes() private to the thread, 64-byte aligned.
  void (*run)(const LinearCall& call, int panel0, int panel1, void* scratch);
  bool gates = false;  // it knows LinearCall::up
};

// Numbers of rows for which a choice is kept: up to 1, 2, 4 ... rows; beyond the last the last counts.
constexpr int kRowBuckets[] = {1, 2, 4, 8, 16, 32, 64, 128, 512};
constexpr int kBuckets = int(sizeof(kRowBuckets) / sizeof(int));
inline int row_bucket(int rows) {
  int b = 0;
  while (b < kBuckets - 1 && rows > kRowBuckets[b]) b++;
  return b;
}

// F32, BF16; I8 and E4M3 (OCP FP8) with a scale; U4: two codes a byte, with a scale and an offset, of vectors that were rotated (rotate.inl.h).
enum class CacheType : int32_t { F32 = 0, BF16 = 1, I8 = 2, E4M3 = 3, U4 = 4 };

// One layer of the KV cache. Keys are stored transposed inside a page so that lanes are tokens.
//   K: [page][kv_head][head_dim][kPage], V: [page][kv_head][kPage][head_dim]
//   K of U4: [page][kv_head][ceil(key_rows / 2)][kPage] bytes: a byte for each leading component of the key, then two codes a byte, component 2i of the rest
//   in the low bits, 2i + 1 in the high bits
//   V of U4: [page][kv_head][kPage][ceil(head_dim / 2)] bytes: dimension i of a run of 32 in the low bits, i + 16 in the high bits; of a last run of n < 32,
//   i and i + ceil(n / 2)
// I8 and E4M3: scales float [page][kv_head][kPage], or one for all (`fixed`: then kPage times the same float). U4: as many words, each a bfloat16 scale (upper
// half) and a bfloat16 offset: value = code * scale + offset; of a leading component (8 bits): code / 16 * scale + offset. The sign of a key's scale says that
// its k_jump was taken away.
struct CacheLayer {
  CacheType k_type = CacheType::BF16, v_type = CacheType::BF16;
  void *k = nullptr, *v = nullptr;
  float *k_scale = nullptr, *v_scale = nullptr;
  bool k_fixed = false, v_fixed = false;   // scales are stored, not computed
  bool k_even = false, v_even = false;     // U4: the offset is -8 scales
  // Keys balanced before they are stored: (key - k_mean) * k_inverse, rotated; queries then meet them times k_gain, rotated. [kv_head][head_dim] each, or null.
  const float *k_mean = nullptr, *k_inverse = nullptr, *k_gain = nullptr;
  // Of U4 keys, in the order in which they are stored: channel k_order[i] is component i, and the first k_lead are not rotated but stored in 8 bits. k_inverse and
  // k_gain are in that order too. k_jump: by how much sinks differ from k_mean, in components.
  const float* k_jump = nullptr;
  const int32_t* k_order = nullptr;
  int32_t k_lead = 0;
  int32_t pages = 0, kv_heads = 0, head_dim = 0;
  // Numbers that a query's dimensions become: a leading component is two codes of 4 bits
  int key_rows() const { return head_dim + k_lead; }
  float* k_scales(int64_t cell) const { return k_scale + (k_fixed ? 0 : cell * kPage); }
  float* v_scales(int64_t cell) const { return v_scale + (v_fixed ? 0 : cell * kPage); }
};
// Components of a key that are stored in 8 bits where the others have 4, in U4
inline int key_lead(int dim) { return dim / 8; }
// Bytes of `count` values: of whole rows of a page, or of whole pages
inline int64_t cache_bytes(CacheType type, int64_t rows, int dim) {
  return rows * (type == CacheType::F32 ? 4 * int64_t(dim) : type == CacheType::BF16 ? 2 * int64_t(dim) : type == CacheType::U4 ? (dim + 1) / 2 : int64_t(dim));
}

// The tensors of one forward. Sequence s owns rows starts[s] .. starts[s+1]-1; after this step it has lengths[s] tokens in
// the cache, the last of which are these rows. tables[s * table_stride + i] is its i-th page.
struct Step {
  int32_t rows = 0, sequences = 0, logit_rows = 0, table_stride = 0;
  const int32_t* tokens = nullptr;      // [rows]
  const int32_t* positions = nullptr;   // [rows]
  const int32_t* types = nullptr;       // [rows] which segment a token belongs to, in models that know such
  const int32_t* slots = nullptr;       // [rows] page * kPage + offset where this row's key and value go
  const int32_t* starts = nullptr;      // [sequences + 1]
  const int32_t* lengths = nullptr;     // [sequences]
  const int32_t* tables = nullptr;      // [sequences, table_stride]
  const int32_t* select = nullptr;      // [logit_rows] rows whose logits are wanted
};

constexpr int kGang = 8;  // sequences at most that attend together

// The sequences of a step, each in one gang: gang g is members[first[g]] .. members[first[g + 1] - 1]. Several in one gang have one row each, the same first
// `shared[g]` pages, all of them written in earlier steps, and their newest token in a later page.
struct Gangs {
  int32_t count = 0;
  const int32_t *first = nullptr, *members = nullptr, *shared = nullptr;
};

struct AttentionCall {
  const Step* step = nullptr;
  const Gangs* gangs = nullptr;
  const CacheLayer* cache = nullptr;
  const float* q = nullptr; int64_t q_stride = 0;   // [rows, heads * head_dim]
  float* y = nullptr; int64_t y_stride = 0;         // [rows, heads * head_dim]
  // [rows, kv_heads * head_dim]: what attention itself stores of sequences with one row, which nobody else reads; null: all is in the cache
  const float *k = nullptr, *v = nullptr; int64_t k_stride = 0, v_stride = 0;
  int32_t heads = 0;
  float scale = 1.f;
  float softcap = 0.f;                               // 0: none
  int32_t window = 0;                                // 0: full causal; else a token sees itself and window-1 before it
};

enum class Activation : int32_t { Silu = 0, GeluTanh = 1, Gelu = 2, Relu = 3, Tanh = 4, Sigmoid = 5 };

// Attention in which every row of a sequence sees all rows of it: starts[s] .. starts[s+1]-1 are those of sequence s.
struct MutualCall {
  const int32_t* starts = nullptr;
  int32_t sequences = 0, longest = 0, heads = 0, head_dim = 0;
  const float *q = nullptr, *k = nullptr, *v = nullptr; int64_t q_stride = 0, k_stride = 0, v_stride = 0;  // [rows, heads * head_dim]
  float* y = nullptr; int64_t y_stride = 0;
  float scale = 1.f;
};

// The state of a recurrent layer: what its gates are made of from the inputs' share and the state's.
enum class Cell : int32_t { Lstm = 0, Gru = 1, Tanh = 2, Relu = 3 };
constexpr int kCellGates[] = {4, 3, 1, 1};

// Every function is called by each thread with its own share; none of them synchronises.
// Results do not depend on how rows or panels are shared out, nor on what other rows are in the call: for each output
// element the order of operations is fixed (k ascending, one accumulator per group).
constexpr int kWeightBlock = 256;  // values whose weights are summed together

struct Kernels {
  const char* isa;
  // float32 [rows, k] -> int8 [rows, kpad], scales [rows, ceil(kpad/group)], block sums (see Activations); rows [row0, row1).
  void (*quantize_rows)(const float* x, int64_t stride, int k, int kpad, int group, int row0, int row1, int8_t* q, float* scale, int32_t* sums);
  // The same with one scale for all, known beforehand. scales [rows]: NaN for a row that is not finite.
  void (*quantize_fixed)(const FixedCodes& how, const float* x, int64_t stride, int k, int kpad, int row0, int row1, int8_t* q, float* scale, int32_t* sums);
  // The finite values of a row of k that are at least `threshold` in size: marks, see Activations; rest [k]: the row with zeros in their places.
  void (*split_row)(const float* x, int k, float threshold, float* rest, uint64_t* marks);
  // y[:, 16*panel0 .. 16*panel1) += the marked values' products with the weight: in float32, k ascending.
  void (*add_outliers)(const LinearCall& call, int panel0, int panel1);
  const LinearKernel* linears;
  int linear_count;
  int (*usual_linear)(const Packed& w, int in_group, int rows);  // which of them runs when no policy says otherwise
  size_t (*linear_scratch_bytes)();
  // y[r] = row tokens[r] of w as float32 times factor, r in [row0, row1). Token ids are valid (checked before).
  void (*embed)(const Packed& w, const int32_t* tokens, float factor, float* y, int64_t y_stride, int row0, int row1);
  // y = x / sqrt(mean(x^2) + eps) * (offset + weight), over `width` values, `groups` times per row (heads: groups > 1). y may be x.
  void (*rms_norm)(const float* x, int64_t x_stride, const float* weight, float eps, float offset, int width, int groups,
                   float* y, int64_t y_stride, int row0, int row1);
  // Rotary embedding in place, half-split pairs (i, i + rotary/2); table rows: [cos rotary/2 | sin rotary/2] by position.
  void (*rope)(float* x, int64_t stride, int heads, int head_dim, int rotary, const float* table, const int32_t* positions, int row0, int row1);
  void (*gate)(Gate kind, const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int width, float* y, int64_t y_stride, int row0, int row1);
  void (*add_rows)(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int width, float* y, int64_t y_stride, int row0, int row1);
  // y[r][j] = x[r][order[j]] * factors[j] for j < width; order null: j itself; factors null: 1. y is not x.
  void (*columns)(const float* x, int64_t x_stride, const int32_t* order, const float* factors, int width, float* y, int64_t y_stride, int row0, int row1);
  // y = x in blocks of `block` values (a power of two that divides the width) that lie width / block apart: each to its Walsh-Hadamard transform / sqrt(block).
  // y may be x.
  void (*rotate_rows)(const float* x, int64_t x_stride, int width, int block, float* y, int64_t y_stride, int row0, int row1);
  // softcap > 0: y = softcap * tanh(x / softcap)
  void (*softcap)(float* x, int64_t stride, int width, float cap, int row0, int row1);
  // k, v float32 [rows, kv_heads * head_dim] -> the cache, rows [row0, row1)
  void (*cache_write)(const CacheLayer& cache, const float* k, int64_t k_stride, const float* v, int64_t v_stride, const int32_t* slots, int row0, int row1);
  // Work items of attention: one is (gang, kv head, block of query rows); the thread runs those it claims.
  int (*attention_items)(const AttentionCall& call);
  void (*attention)(const AttentionCall& call, int item, void* scratch);
  size_t (*attention_scratch_bytes)(const AttentionCall& call);
  // The largest value of each row and its first place; a NaN counts as the largest of all. Rows [row0, row1), width > 0.
  void (*best)(const float* x, int64_t stride, int width, int row0, int row1, int32_t* place, float* value);
  // w = exp((x - top) * scale), not kept where w is null; sums[b]: of the b-th kWeightBlock of them. w may be x.
  void (*weights)(const float* x, int n, float top, float scale, float* w, float* sums);
  // Places, ascending, of the values >= limit; returns how many. Room for one more than n.
  int (*at_least)(const float* x, int n, float limit, int32_t* ids);
  // y = (x - mean) / sqrt(variance + eps) * weight + bias over each row; weight, bias: null for 1 and 0. y may be x.
  void (*layer_norm)(const float* x, int64_t x_stride, const float* weight, const float* bias, float eps, int width, float* y, int64_t y_stride, int row0, int row1);
  void (*activate)(Activation kind, const float* x, int64_t x_stride, int width, float* y, int64_t y_stride, int row0, int row1);
  // One (sequence, head): item = sequence * heads + head
  void (*mutual_attention)(const MutualCall& call, int item, void* scratch);
  size_t (*mutual_attention_scratch_bytes)(const MutualCall& call);
  // One step of rows [row0, row1): from_x, from_h [rows, gates * width] (biases are in); h, c [rows, width] are replaced, y gets h. c: Lstm only.
  void (*cell)(Cell kind, const float* from_x, int64_t x_stride, const float* from_h, int64_t h_stride, int width, float* h, float* c, int64_t state_stride,
               float* y, int64_t y_stride, int row0, int row1);
  // Rows a member, for each member of the team, from which it pays that members share out rows instead of panels: every one of them then reads all weights,
  // which so many rows must outweigh even when each reads them from memory. Rate of products a core / (bytes of a weight * rate of reading), rounded up
  int rows_each = 6;
};

const Kernels* portable_kernels();
const Kernels* avx2_kernels();          // null when not compiled in
const Kernels* avx512vnni_kernels();    // null when not compiled in
const Kernels* avx512bf16_kernels();    // avx512vnni, and attention and linears with 16-bit inputs on pairs of bfloat16
const Kernels* amx_kernels();           // avx512vnni and tiles
const Kernels* amx_emulated_kernels();  // the same over avx2, tiles in plain C++: for tests

}  // namespace octavo
