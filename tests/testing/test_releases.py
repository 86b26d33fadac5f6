from __future__ import annotations

from typing import Any

import pytest

from megatron_patch import testing
from megatron_patch.testing import graph_scopes, releases
from megatron_patch.testing.models import transformer_config

pytestmark = pytest.mark.usefixtures("device")

# A value other than the default for each field that not every release has.
OPTIONAL: dict[str, Any] = {
    "kv_cache_management_mode": "recompute",
    "enable_chunked_prefill": True,
    "enable_prefix_caching": True,
    "num_speculative_tokens": 1,
}


def test_context_class_is_megatrons_own() -> None:
    from megatron.core.inference.contexts.dynamic_context import DynamicInferenceContext

    assert testing.context_class() is DynamicInferenceContext


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_field_is_either_supported_or_named_in_the_error(name: str) -> None:
    spec = testing.EngineSpec(**{name: OPTIONAL[name]})
    context = releases.inference_config_class() or releases.context_class()
    known = {*releases.parameters_of(context), *releases.parameters_of(releases.engine_class())}
    if name in known:
        releases.check(spec)
        return
    with pytest.raises(testing.UnsupportedError) as error:
        testing.build_context(spec)
    assert name in str(error.value)
    assert releases.release() in str(error.value)
    assert isinstance(error.value, ValueError)


def test_unknown_option() -> None:
    spec = testing.EngineSpec(options={"no_such_option": 1})
    with pytest.raises(testing.UnsupportedError, match="no inference option 'no_such_option'"):
        testing.build_context(spec)


def test_unknown_mode() -> None:
    spec = testing.EngineSpec(kv_cache_management_mode="forget")
    with pytest.raises(ValueError, match=r"must be one of .*, not 'forget'"):
        testing.build_context(spec)


def test_the_scopes_of_the_release_are_those_of_its_configuration() -> None:
    scopes = graph_scopes.known_scopes()
    assert scopes["layer"] == "layer"
    assert set(scopes.values()) <= set(graph_scopes.CUDA_GRAPH_SCOPES)
    for name, value in scopes.items():
        config = transformer_config(testing.EngineSpec(cuda_graph_scope=value))
        # From 0.18 on a field of its own; before, a list for training and inference.
        own = getattr(config, "inference_cuda_graph_scope", None)
        chosen = [own] if own is not None else getattr(config, "cuda_graph_scope", None)
        names = [getattr(scope, "name", scope) for scope in chosen or ()]
        assert (name in names) or (name == "layer" and "block" not in map(scopes.get, names))
    if "block" not in scopes.values():
        with pytest.raises(testing.UnsupportedError, match="no CUDA graph of all layers"):
            transformer_config(testing.EngineSpec(cuda_graph_scope="block"))


def test_unified_memory_needs_a_cuda_device(device: Any) -> None:
    if device.type != "cpu":
        pytest.skip("there is a CUDA device")
    with pytest.raises(testing.UnsupportedError, match="unified_memory_level"):
        testing.build_context(testing.EngineSpec(unified_memory_level=1))


def test_inference_mode_is_set_and_put_back() -> None:
    before = releases.set_inference_mode(False)
    assert not releases.set_inference_mode(True)
    releases.set_inference_mode(before)
    assert releases.set_inference_mode(before) == before
