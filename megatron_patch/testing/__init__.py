"""Run Megatron's own dynamic inference engine in tests, also without a GPU.

    from megatron_patch import testing

    testing.start()  # before anything imports Megatron
    engine = testing.build_engine(testing.EngineSpec())
    decoded = testing.decode(engine, [testing.Request(prompt=(1, 2, 3), num_tokens=8)])

Context, engine and model are Megatron's. On a machine without a GPU only CUDA and flash-attn are
stood in for; on one with a GPU it runs there, and flash-attn is stood in for if it is missing.
Importing this package imports neither PyTorch nor Megatron.
"""

from __future__ import annotations

from .decoding import Decoded, Request, decode
from .engines import build_context, build_engine, is_suspended, resume, suspend
from .models import build_model
from .reference import reference_decode
from .releases import context_class, drop_cuda_graphs
from .runtime import start, stop
from .spec import EngineSpec, UnsupportedError
from .training import Trained, forward, train_step

__all__ = [
    "Decoded",
    "EngineSpec",
    "Request",
    "Trained",
    "UnsupportedError",
    "build_context",
    "build_engine",
    "build_model",
    "context_class",
    "decode",
    "drop_cuda_graphs",
    "forward",
    "is_suspended",
    "reference_decode",
    "resume",
    "start",
    "stop",
    "suspend",
    "train_step",
]
