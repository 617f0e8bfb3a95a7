#include "dots.h"

#define OCTAVO_ISA amx_emulated
#define OCTAVO_LINEARS "tiles.inl.h"
#include "../lanes/kernels.inl.h"
