// The linear kernels of an instruction set that has only the general one.
static bool any_linear(const Packed&, int, int) { return true; }
static const LinearKernel kLinears[] = {{"general", any_linear, linear}};
static int usual_linear(const Packed&, int, int) { return 0; }
