"""TCQ2.

What it is: trellis-coded numbers of 2 bits. A sequence of 64 weights is a path through 4,096 states; each weight adds two bits to the state, whose
  value is one of some 180 nearly Gaussian ones. On Gaussian numbers it loses 7.6% of their variance (the best single numbers of 2 bits: 11.8%; the
  limit of any code: 6.25%).
When to choose it: 2 bits a weight with calibration text, `--method trellis`; 2.03 bits with scales.
Limits: only `--method trellis` rounds to it, which takes minutes; only Octavo's own checkpoints hold it; wants rotated inputs (the method does that).
Source: trellis-coded quantization, Marcellin and Fischer, IEEE Trans. Commun. 38(1), 1990; for weights with computed values QTIP, arXiv 2406.11235.
"""

from __future__ import annotations

from ._trellis import trellis

FORMAT = trellis(2)
