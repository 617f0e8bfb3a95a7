// The linear kernels of one instruction set. Included inside its namespace.
void quantize_rows(const float* x, int64_t stride, int k, int kpad, int group, int row0, int row1, int8_t* q, float* scale, int32_t* sums);
void linear(const LinearCall& call, int panel0, int panel1, void* scratch);
size_t linear_scratch_bytes();
void embed(const Packed& w, const int32_t* tokens, float factor, float* y, int64_t y_stride, int row0, int row1);
