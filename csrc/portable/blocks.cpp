#include "vec.h"

#define OCTAVO_ISA portable
#include "../lanes/blocks.inl.h"
