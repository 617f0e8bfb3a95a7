#define OCTAVO_ISA avx512vnni
#define OCTAVO_LANES 8
#include "../lanes/trellis.inl.h"
