#include "dots.h"

#define OCTAVO_ISA avx2
#define OCTAVO_LINEARS "../avx2/linears.inl.h"
#define OCTAVO_LINEAR_SCRATCH linears_scratch_bytes
#include "../lanes/kernels.inl.h"
