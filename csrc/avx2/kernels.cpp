#include "dots.h"

#define OCTAVO_ISA avx2
#include "../lanes/kernels.inl.h"
