#include "vec.h"

#define OCTAVO_ISA avx512vnni
#include "../lanes/lattice.inl.h"
