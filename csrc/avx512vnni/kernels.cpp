#include "dots.h"

#define OCTAVO_ISA avx512vnni
#define OCTAVO_LINEARS "../avx512vnni/linears.inl.h"
#define OCTAVO_LINEAR_SCRATCH linears_scratch_bytes
#include "../lanes/kernels.inl.h"
