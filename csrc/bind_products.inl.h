// Products of matrices: what octavo._native checks before csrc/products.h sees it. A part of bind.cpp, included there alone.

void bind_products(nb::module_& m) {
  m.def("has_products", [](const std::string& isa) { return products_for(isa) != nullptr; }, nb::arg("isa") = "",
        "Whether `product` and `gram` are there for an instruction set, which is where they are faster than products of floats.");
  m.def("product", [](Rows2In x, Rows2In w, Rows2 y, const std::string& isa) {
    const ProductKernels* kernels = products_for(isa);
    if (!kernels) bad("product: this instruction set has none");
    if (x.shape(1) != w.shape(1) || y.shape(0) != x.shape(0) || y.shape(1) != w.shape(0)) bad("product: the shapes do not fit");
    nb::gil_scoped_release released;
    kernels->product(x.data(), int64_t(x.shape(0)), w.data(), int64_t(w.shape(0)), int64_t(x.shape(1)), y.data());
  }, nb::arg("x"), nb::arg("w"), nb::arg("y"), nb::arg("isa") = "",
     "y [m, n] = x [m, k] w^T, numbers rounded to bfloat16 and sums in float32 (csrc/products.h). On the calling thread, without the GIL.");
  m.def("gram", [](Rows2In x, std::optional<Vector<float>> factors, Rows2 y, const std::string& isa) {
    const ProductKernels* kernels = products_for(isa);
    if (!kernels) bad("gram: this instruction set has none");
    if (y.shape(0) != x.shape(1) || y.shape(1) != x.shape(1) || (factors && factors->size() != x.shape(0))) bad("gram: the shapes do not fit");
    nb::gil_scoped_release released;
    kernels->gram(x.data(), int64_t(x.shape(0)), int64_t(x.shape(1)), factors ? factors->data() : nullptr, y.data());
  }, nb::arg("x"), nb::arg("factors").none(), nb::arg("y"), nb::arg("isa") = "",
     "y [k, k] = x^T x, row r of x times factors[r] first, numbers rounded to bfloat16 and sums in float32 (csrc/products.h). On the calling thread, without the GIL.");
}
