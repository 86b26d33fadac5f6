"""What Megatron captures in one CUDA graph, and how the installed release names that."""

from __future__ import annotations

from typing import Any

from .runtime import running
from .spec import EngineSpec, UnsupportedError
from .version import core_version

CUDA_GRAPH_SCOPES = ("layer", "block")

# Names for the graph of all layers: that of 0.17, and that of 0.16, where training has the same.
_OF_ALL_LAYERS = ("full_iteration_inference", "full_iteration")


def captures_cuda_graphs(spec: EngineSpec) -> bool:
    """Whether Megatron captures a model of ``spec`` in CUDA graphs."""
    if spec.cuda_graph_scope is not None:
        return True
    return spec.num_cuda_graphs is not None and not running().on_cpu


def known_scopes() -> dict[str, str]:
    """The release's own name of each scope of inference -> :attr:`EngineSpec.cuda_graph_scope`.

    Releases differ in the name
    for all layers at once, or have no such graph.
    """
    if "inference_cuda_graph_scope" in _model_options():
        return {"layer": "layer", "block": "block"}
    name = _name_of_all_layers()
    return {"layer": "layer"} if name is None else {"layer": "layer", name: "block"}


def cuda_graph_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Arguments of the ``TransformerConfig``, under the release's names.

    Raises:
        UnsupportedError: the release has no CUDA graph of all layers.
        ValueError: ``spec`` names a scope that does not exist.
    """
    from megatron.core.transformer import enums

    if spec.cuda_graph_scope not in (None, *CUDA_GRAPH_SCOPES):
        raise ValueError(
            f"cuda_graph_scope must be one of {CUDA_GRAPH_SCOPES}, not {spec.cuda_graph_scope!r}"
        )
    if not captures_cuda_graphs(spec):
        return {}
    known = _model_options()
    if "cuda_graph_impl" not in known:
        arguments: dict[str, Any] = {"enable_cuda_graph": True}
    else:
        arguments = {"cuda_graph_impl": "local"}
    if spec.cuda_graph_scope != "block":
        return arguments
    if "inference_cuda_graph_scope" in known:
        return {**arguments, "inference_cuda_graph_scope": "block"}
    name = _name_of_all_layers()
    if name is None:
        raise UnsupportedError(
            f"Megatron-Core {core_version()} has no CUDA graph of all layers; leave it at 'layer'"
        )
    scopes: Any = enums.CudaGraphScope
    return {**arguments, "cuda_graph_scope": [scopes[name]]}


def _model_options() -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    from .releases import parameters_of

    return parameters_of(TransformerConfig)


def _name_of_all_layers() -> str | None:
    from megatron.core.transformer import enums

    scopes: Any = getattr(enums, "CudaGraphScope", None)
    return next((name for name in _OF_ALL_LAYERS if hasattr(scopes, name)), None)
