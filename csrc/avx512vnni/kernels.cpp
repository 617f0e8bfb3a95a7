#include "dots.h"

#define OCTAVO_ISA avx512vnni
#define OCTAVO_LINEARS "../avx512vnni/linears.inl.h"
#include "../lanes/kernels.inl.h"
