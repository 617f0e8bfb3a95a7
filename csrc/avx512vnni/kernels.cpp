#include "dots.h"

#define OCTAVO_ISA avx512vnni
#include "../lanes/kernels.inl.h"
