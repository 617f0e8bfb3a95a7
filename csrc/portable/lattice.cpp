#include "vec.h"

#define OCTAVO_ISA portable
#include "../lanes/lattice.inl.h"
