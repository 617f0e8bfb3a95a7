// Rows of a block, `most` of them at most, both multiples of a tile: as equal as can be, since a block of few rows takes nearly as long to read the weights for
static inline int even_blocks(int rows, int most, int tile) {
  const int blocks = std::max((rows + most - 1) / most, 1);
  return std::max(((rows + blocks - 1) / blocks + tile - 1) / tile * tile, tile);
}

// Brings near what `finish` will write and add to: with many rows, every line of it is a way to memory
static inline void expect_results(const LinearCall& c, int row, int rows, int first_panel, int apart, int panels, int panel1) {
  for (int p = 0; p < panels && first_panel + p * apart < panel1; p++)
    for (int r = row; r < row + rows; r++) {
      const int n0 = (first_panel + p * apart) * kPanel;
      asm volatile("prefetchw %0" : : "m"(c.y[r * c.y_stride + n0]));
      if (c.residual && c.residual != c.y) prefetch(c.residual + r * c.residual_stride + n0);
    }
}
