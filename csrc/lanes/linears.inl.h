// The linear kernels of an instruction set that has only the general one.
static bool any_linear(const Packed& w, int in_group, int) { return in_group == 0 || w.is_float() || w.meets_ints(); }
static const LinearKernel kLinears[] = {{"general", any_linear, linear}};
static int usual_linear(const Packed&, int, int) { return 0; }
