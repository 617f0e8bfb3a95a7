// The linear kernels of AVX-512 VNNI.
#include "few_rows.inl.h"

static bool any_linear(const Packed& w, int in_group, int) { return in_group == 0 || w.is_float() || w.meets_ints(); }
static const LinearKernel kLinears[] = {{"general", any_linear, linear}, {"few rows", few_rows_support, linear_few_rows}};
static int usual_linear(const Packed& w, int in_group, int rows) { return rows <= kFewRows && few_rows_support(w, in_group, rows) ? 1 : 0; }
