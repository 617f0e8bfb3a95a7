#include "vec.h"

#define OCTAVO_ISA avx512vnni
#include "../lanes/blocks.inl.h"
