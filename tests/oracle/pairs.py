"""A model of ``transformers`` with random weights, and Megatron's with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor

from megatron_patch import testing

VOCABULARY, HIDDEN, MLP, HEADS, LAYERS = 128, 64, 96, 4, 4

#: What all models have in common, under the names of either library.
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": MLP,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "head_dim": HIDDEN // HEADS,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
SPEC: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "num_layers": LAYERS,
    "max_sequence_length": 256,
    "position_embedding_type": "rope",
}
OPTIONS: dict[str, Any] = {
    "ffn_hidden_size": MLP,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-5,
    "gated_linear_unit": True,
    "activation_func": torch.nn.functional.silu,
    "add_bias_linear": False,
    "bias_dropout_fusion": False,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
}


@dataclass(frozen=True)
class Pair:
    """The same model in ``transformers`` and in Megatron."""

    theirs: Any
    spec: testing.EngineSpec

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters of Megatron's model by name, with the values of the other model."""
        state = self.theirs.state_dict()
        yield "embedding.word_embeddings.weight", state["model.embed_tokens.weight"]
        yield "decoder.final_layernorm.weight", state["model.norm.weight"]
        yield "output_layer.weight", state["lm_head.weight"]
        for layer in range(LAYERS):
            start = f"model.layers.{layer}."
            own = {
                name.removeprefix(start): value
                for name, value in state.items()
                if name.startswith(start)
            }
            for name, value in _layer(own, self.spec.num_query_groups or HEADS):
                yield f"decoder.layers.{layer}.{name}", value

    def copy_weights(self, model: Any) -> None:
        """Give ``model``, of Megatron's, the weights: all of them, and no others."""
        parameters = dict(model.named_parameters())
        for name, value in self.weights():
            parameter = parameters.pop(name)
            assert parameter.shape == value.shape, name
            parameter.data.copy_(value)
        assert not parameters

    def build_engine(self, **fields: Any) -> Any:
        """Megatron's engine with the weights of the other model."""
        engine = testing.build_engine(testing.EngineSpec(**{**vars(self.spec), **fields}))
        self.copy_weights(engine.controller.inference_wrapped_model.model)
        return engine

    def generate(self, request: testing.Request) -> tuple[int, ...]:
        """The tokens that the model of ``transformers`` generates, greedily."""
        with torch.inference_mode():
            output = self.theirs.generate(
                torch.tensor([request.prompt]),
                attention_mask=torch.ones(1, len(request.prompt), dtype=torch.long),
                max_new_tokens=request.num_tokens,
                do_sample=False,
            )
        return tuple(output[0, len(request.prompt) :].tolist())


#: Of multi-latent attention: what is called otherwise by each.
LATENT = {
    "q_proj": "linear_q_proj",
    "q_a_proj": "linear_q_down_proj",
    "q_a_layernorm": "q_layernorm",
    "q_b_proj": "linear_q_up_proj",
    "kv_a_proj_with_mqa": "linear_kv_down_proj",
    "kv_a_layernorm": "kv_layernorm",
    "kv_b_proj": "linear_kv_up_proj",
    "o_proj": "linear_proj",
}


def _layer(own: dict[str, Tensor], groups: int) -> Iterator[tuple[str, Tensor]]:
    if "self_attn.kv_b_proj.weight" in own:
        for theirs, ours in LATENT.items():
            if f"self_attn.{theirs}.weight" in own:
                yield f"self_attention.{ours}.weight", own.pop(f"self_attn.{theirs}.weight")
    yield "input_layernorm.weight", own["input_layernorm.weight"]
    yield "pre_mlp_layernorm.weight", own["post_attention_layernorm.weight"]
    for kind in ("weight", "bias"):
        if f"self_attn.k_proj.{kind}" in own:
            projections = [own[f"self_attn.{name}_proj.{kind}"] for name in "qkv"]
            yield f"self_attention.linear_qkv.{kind}", _by_group(projections, groups)
        if f"self_attn.o_proj.{kind}" in own:
            yield f"self_attention.linear_proj.{kind}", own[f"self_attn.o_proj.{kind}"]
    for name in "qk":
        if f"self_attn.{name}_norm.weight" in own:
            yield f"self_attention.{name}_layernorm.weight", own[f"self_attn.{name}_norm.weight"]
    if "self_attn.sinks" in own:
        yield "self_attention.core_attention.softmax_offset", own["self_attn.sinks"]
    if "mlp.gate_proj.weight" in own:
        gate, up = own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"]
        yield "mlp.linear_fc1.weight", torch.cat((gate, up))
        yield "mlp.linear_fc2.weight", own["mlp.down_proj.weight"]
        return
    # A mixture with a single expert, whose weights stand the other way round, gate and up in turn.
    both, bias = own["mlp.experts.gate_up_proj"][0].T, own["mlp.experts.gate_up_proj_bias"][0]
    yield "mlp.linear_fc1.weight", torch.cat((both[::2], both[1::2]))
    yield "mlp.linear_fc1.bias", torch.cat((bias[::2], bias[1::2]))
    yield "mlp.linear_fc2.weight", own["mlp.experts.down_proj"][0].T
    yield "mlp.linear_fc2.bias", own["mlp.experts.down_proj_bias"][0]


def _by_group(projections: list[Tensor], groups: int) -> Tensor:
    """One projection: for each group of heads its queries, its key and its value."""
    parts = [p.reshape(groups, -1, *p.shape[1:]) for p in projections]
    return torch.cat(parts, dim=1).flatten(0, 1)


def quick_gelu(x: Tensor) -> Tensor:
    """The activation of gpt-oss."""
    return x * torch.sigmoid(1.702 * x)


def _pair(model_class: Any, config: Any, **fields: Any) -> Pair:
    options = {**OPTIONS, **fields.pop("model_options", {})}
    spec = testing.EngineSpec(**{**SPEC, **fields, "model_options": options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(config).eval()
        for name, parameter in model.named_parameters():
            # All of them, also those that start as zeros or ones. Wide enough that what a token
            # attends to decides what comes next.
            middle, width = (1.0, 0.1) if "norm" in name else (0.0, 0.2)
            torch.nn.init.normal_(parameter, middle, 2.0 if "sinks" in name else width)
    return Pair(model, spec)


def llama_with_yarn() -> Pair:
    config = transformers.LlamaConfig(**COMMON, num_key_value_heads=HEADS, rope_parameters=YARN)
    yarn = {"rotary_scaling_factor": 32.0, "beta_fast": 8.0}
    return _pair(transformers.LlamaForCausalLM, config, position_embedding_type="yarn", yarn=yarn)


def mistral_with_a_window() -> Pair:
    """Each layer sees 8 tokens, the present one included."""
    config = transformers.MistralConfig(
        **COMMON,
        num_key_value_heads=2,
        sliding_window=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return _pair(transformers.MistralForCausalLM, config, num_query_groups=2, window_size=(7, 0))


def qwen2_with_grouped_heads() -> Pair:
    config = transformers.Qwen2Config(
        **COMMON,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return _pair(
        transformers.Qwen2ForCausalLM,
        config,
        num_query_groups=2,
        model_options={"add_qkv_bias": True},
    )


def qwen2_with_a_window() -> Pair:
    """The last two layers see 8 tokens, the present one included."""
    config = transformers.Qwen2Config(
        **COMMON,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        use_sliding_window=True,
        sliding_window=8,
        max_window_layers=2,
    )
    return _pair(
        transformers.Qwen2ForCausalLM,
        config,
        num_query_groups=2,
        window_size=(7, 0),
        window_attn_skip_freq=(0, 0, 1, 1),
        model_options={"add_qkv_bias": True},
    )


def qwen3_with_grouped_heads() -> Pair:
    config = transformers.Qwen3Config(
        **COMMON,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return _pair(
        transformers.Qwen3ForCausalLM,
        config,
        num_query_groups=2,
        model_options={"qk_layernorm": True},
    )


def gpt_oss() -> Pair:
    """Sinks, a window of 8 tokens in each second layer, YaRN, grouped heads; of one expert."""
    config = transformers.GptOssConfig(
        **COMMON,
        num_key_value_heads=2,
        sliding_window=8,
        num_local_experts=1,
        num_experts_per_tok=1,
        rope_parameters={**YARN, "truncate": False},
    )
    return _pair(
        transformers.GptOssForCausalLM,
        config,
        num_query_groups=2,
        window_size=(7, 0),
        window_attn_skip_freq=2,
        softmax_type="learnable",
        position_embedding_type="yarn",
        yarn={
            "rotary_scaling_factor": 32.0,
            "beta_fast": 8.0,
            "correction_range_round_to_int": False,
        },
        model_options={
            "add_bias_linear": True,
            "activation_func": quick_gelu,
            "glu_linear_offset": 1.0,
            "activation_func_clamp_value": 7.0,
        },
    )


def granite_with_a_scale() -> Pair:
    """The scores are multiplied by 0.1. All else that Granite scales is not."""
    config = transformers.GraniteConfig(
        **COMMON,
        num_key_value_heads=2,
        attention_multiplier=0.1,
        embedding_multiplier=1.0,
        logits_scaling=1.0,
        residual_multiplier=1.0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    return _pair(transformers.GraniteForCausalLM, config, num_query_groups=2, softmax_scale=0.1)


def _deepseek(kind: str, q_lora_rank: int | None, **yarn: Any) -> Pair:
    """A model of dense layers only. Each head has 8 dimensions with positions and 8 without."""
    common = {name: value for name, value in COMMON.items() if name != "head_dim"}
    rope = {**YARN, **yarn} if yarn else {"rope_type": "default", "rope_theta": 10000.0}
    config = getattr(transformers, f"{kind}Config")(
        **{**common, "rms_norm_eps": 1e-6},
        num_key_value_heads=HEADS,
        first_k_dense_replace=LAYERS,
        kv_lora_rank=32,
        q_lora_rank=q_lora_rank,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=16,
        rope_parameters=rope,
    )
    options: dict[str, Any] = {
        "layernorm_epsilon": 1e-6,
        "qk_layernorm": True,
        "q_lora_rank": q_lora_rank,
        "rope_type": "yarn" if yarn else "rope",
        "rotary_scaling_factor": 32.0 if yarn else 1.0,
    }
    if yarn:
        options |= {
            "original_max_position_embeddings": 32,
            "beta_fast": 8.0,
            "beta_slow": 1.0,
            "mscale": yarn["mscale"],
            "mscale_all_dim": yarn["mscale_all_dim"],
        }
    model_class = getattr(transformers, f"{kind}ForCausalLM")
    # The cache of latents is in blocks of 64 tokens.
    return _pair(model_class, config, kv_lora_rank=32, block_size_tokens=64, model_options=options)


def deepseek_v2() -> Pair:
    """Queries without latents, as the smaller models of that kind have them."""
    return _deepseek("DeepseekV2", None)


def deepseek_v3() -> Pair:
    return _deepseek("DeepseekV3", 24)


def deepseek_v3_with_yarn() -> Pair:
    return _deepseek("DeepseekV3", 24, mscale=1.0, mscale_all_dim=1.0)


PAIRS = {
    "Llama with YaRN": llama_with_yarn,
    "Mistral with a window": mistral_with_a_window,
    "Qwen2 with grouped heads": qwen2_with_grouped_heads,
    "Qwen2 with a window": qwen2_with_a_window,
    "Qwen3 with grouped heads": qwen3_with_grouped_heads,
    "gpt-oss": gpt_oss,
    "Granite with a scale": granite_with_a_scale,
    "DeepSeek-V2": deepseek_v2,
    "DeepSeek-V3": deepseek_v3,
    "DeepSeek-V3 with YaRN": deepseek_v3_with_yarn,
}

#: The patches without which the engine decodes other tokens, where the release needs them.
PATCHES = {
    "Llama with YaRN": ("yarn-concentration-factor",),
    "Mistral with a window": ("sliding-window-attention",),
    "Qwen2 with a window": ("sliding-window-attention",),
    "gpt-oss": ("sliding-window-attention", "yarn-concentration-factor", "attention-sinks"),
    "Granite with a scale": ("attention-softmax-scale",),
}
