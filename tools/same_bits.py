"""Choose kernels that give the same bits in each run, where an operator has several."""

from __future__ import annotations


def choose() -> None:
    """Leave out cuDNN's attention, and sums of bfloat16 products in reduced precision.

    With them, two runs of one engine differ. On a CPU this changes nothing.
    """
    import torch

    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
