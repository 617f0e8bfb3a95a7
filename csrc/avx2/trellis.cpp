#define OCTAVO_ISA avx2
#define OCTAVO_LANES 8
#include "../lanes/trellis.inl.h"
