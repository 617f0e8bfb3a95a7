#define OCTAVO_ISA portable
#define OCTAVO_LANES 4
#include "../lanes/trellis.inl.h"
