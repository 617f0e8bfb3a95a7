#include "dots.h"

#define OCTAVO_ISA portable
#include "../lanes/kernels.inl.h"
