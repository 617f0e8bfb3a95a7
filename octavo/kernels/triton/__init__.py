"""The GPU backend: Triton kernels on torch tensors, recorded once and replayed, decode steps as CUDA graphs.

Nothing here imports torch or triton before the backend is made (`KERNELS`). A value is a torch tensor [rows, width]; the residual stream and logits are
float32, what lies between is bfloat16, as the products of matrix units read it (float32 in a plan with 32-bit activations).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import MissingExtraError

if TYPE_CHECKING:
    from .ops import TritonOps


def KERNELS(device: str | None = None) -> TritonOps:
    """The backend on `device` ("cuda", "cuda:1"; None: the first GPU, or Triton's interpreter where it is switched on).

    Raises MissingExtraError without torch and triton, KernelError where no GPU can run the kernels.
    """
    try:
        import torch  # noqa: F401
        import triton  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"the GPU backend needs {error.name or 'torch and triton'}, which is not installed", where="backend triton",
                                remedy="pip install 'octavo[gpu]', or use --device cpu") from None
    from .ops import TritonOps

    return TritonOps(device)
