"""One file per kind of layer that becomes a quantized one; each ends with LAYER. A `Kind` knows which torch modules it replaces, what of them meets a
weight, and how to make the quantized layer, from numbers or from what a file says."""
