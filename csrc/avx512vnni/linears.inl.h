// The linear kernels of AVX-512 VNNI.
#include "results.inl.h"
#include "streams.inl.h"
#include "floats.inl.h"

static bool any_linear(const Packed& w, int in_group, int) { return in_group == 0 || w.is_float() || w.meets_ints(); }
static const LinearKernel kLinears[] = {{"general", any_linear, linear},
                                        {"two panels", stream_support, linear_streams<2>, true},
                                        {"four panels", stream_support, linear_streams<4>, true},
                                        {"floats", floats_support, floats_linear}};
// Measured on Zen 4 (LOG)
static int usual_linear(const Packed& w, int in_group, int rows) {
  if (floats_support(w, in_group, rows)) return 3;
  if (!stream_support(w, in_group, rows)) return 0;
  return rows >= (w.store == Store::Codes4 ? 2 : 10) && rows <= 20 ? 2 : 1;
}
static size_t linears_scratch_bytes() { return std::max(linear_scratch_bytes(), sizeof(StreamScratch)); }
