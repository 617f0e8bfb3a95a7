// The kernels of `base`, with tiles for linears and for attention over caches that bfloat16 holds exactly.
static const Kernels* with_tiles(const char* isa, const Kernels* base) {
  constexpr int kMost = 8;
  static LinearKernel linears[kMost];
  static const Kernels* plain;
  static int count;
  static const Kernels table = [&] {
    plain = base;
    count = base->linear_count < kMost ? base->linear_count : kMost - 1;
    for (int i = 0; i < count; i++) linears[i] = base->linears[i];
    linears[count] = {"tiles", tiles_support, linear_tiles};
    Kernels t = *base;
    t.isa = isa;
    t.linears = linears;
    t.linear_count = count + 1;
    t.rows_each = 128;
    t.usual_linear = [](const Packed& w, int in_group, int rows) {
      return rows >= kTilesFrom && tiles_support(w, in_group, rows) ? count : plain->usual_linear(w, in_group, rows);
    };
    t.linear_scratch_bytes = [] { return sizeof(TileScratch) > plain->linear_scratch_bytes() ? sizeof(TileScratch) : plain->linear_scratch_bytes(); };
    t.attention_items = [](const AttentionCall& c) { return attention_fits_tiles(c) ? tile_attention_items(c) : plain->attention_items(c); };
    t.attention = [](const AttentionCall& c, int item, void* scratch) { attention_fits_tiles(c) ? tile_attention(c, item, scratch) : plain->attention(c, item, scratch); };
    t.attention_scratch_bytes = [](const AttentionCall& c) { return attention_fits_tiles(c) ? tile_attention_scratch_bytes(c) : plain->attention_scratch_bytes(c); };
    return t;
  }();
  return &table;
}
