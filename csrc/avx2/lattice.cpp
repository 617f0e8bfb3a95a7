#include "vec.h"

#define OCTAVO_ISA avx2
#include "../lanes/lattice.inl.h"
