"""Tiny models with the configurations that published checkpoints have, and which earlier loaders have lost.

Each is a Hugging Face model_type and the fields that make it what it is: kinds of RoPE, biases, head sizes, windows,
norms' places, multipliers, parallel blocks. Windows are 8 tokens and the length that RoPE was scaled from is 32, of
128 positions, so that `ROWS` reach beyond both.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from rome_lens.models.loading.checkpoint import auto_class
from tests.tiny import VOCABULARY, save_tokenizer

_OLD = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": 128}
_NEW = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
_GROUPED = {**_NEW, "num_key_value_heads": 2}
_NEO = {"num_layers": 3, "hidden_size": 32, "num_heads": 4, "max_position_embeddings": 128, "window_size": 8}
_BLOOM = {"n_layer": 3, "hidden_size": 32, "n_head": 4}
_PLAIN = {name: value for name, value in _NEW.items() if name != "intermediate_size"}
_OPT = {**_PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32}
_FALCON = {**_PLAIN, "ffn_hidden_size": 64}
_GEMMA = {**_GROUPED, "head_dim": 8}
_GEMMA2 = {**_GEMMA, "query_pre_attn_scalar": 8, "sliding_window": 8}
_QWEN_WINDOW = {**_GROUPED, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MPT = {"n_layers": 3, "d_model": 32, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2}
_DEEPSEEK = {
    **_NEW,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}


def _rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": kind, **more}, "rope_theta": 10000.0}


_LINEAR = _rope("linear", factor=4.0)
_DYNAMIC = {**_rope("dynamic", factor=4.0), "max_position_embeddings": 32}
_YARN = _rope("yarn", factor=4.0, original_max_position_embeddings=32)
_LLAMA3 = _rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
_LONG = _rope("longrope", long_factor=[4.0, 3.0, 2.0, 1.5], short_factor=[1.0, 1.1, 1.2, 1.3])
_LONG["original_max_position_embeddings"] = 32
_LONG_PARTIAL = _rope("longrope", long_factor=[4.0, 2.0], short_factor=[1.0, 1.2])
_LONG_PARTIAL["original_max_position_embeddings"] = 32


def _seeing(text: dict[str, Any], **vision: Any) -> dict[str, Any]:
    """A model that reads images beside text, by the sizes of its two parts; the last tokens stand for images."""
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    size = {"image_size": 28, "patch_size": 14}
    places = {"image_token_id": 383, "image_token_index": 383, "video_token_id": 382}
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    return {"text_config": {**text, **tokens}, "vision_config": {**small, **size, **vision}, **places}


_QWEN_EYES = {"depth": 1, "num_heads": 2, "out_hidden_size": 32}
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}}
_CLIP, _SIGLIP = {"model_type": "clip_vision_model"}, {"model_type": "siglip_vision_model"}
_MLLAMA_EYES = {
    "num_global_layers": 1,
    "attention_heads": 2,
    "vision_output_dim": 32,
    "intermediate_layers_indices": [0],
}

CONFIGURATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _OLD),
    "gpt2 n_inner": ("gpt2", {**_OLD, "n_inner": 48}),
    "gpt2 scaled by layer": (
        "gpt2",
        {**_OLD, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "gpt2 unscaled attention": ("gpt2", {**_OLD, "scale_attn_weights": False}),
    "gpt2 relu, epsilon": ("gpt2", {**_OLD, "activation_function": "relu", "layer_norm_epsilon": 1e-2}),
    "gpt2 gelu": ("gpt2", {**_OLD, "activation_function": "gelu"}),
    "gpt2 silu, untied": ("gpt2", {**_OLD, "activation_function": "silu", "tie_word_embeddings": False}),
    "gptj": ("gptj", {**_OLD, "rotary_dim": 4}),
    "gptj whole rotary, n_inner": ("gptj", {**_OLD, "rotary_dim": 8, "n_inner": 96}),
    "gpt-neo local": ("gpt_neo", {**_NEO, "attention_types": [[["global", "local", "global"], 1]]}),
    "gpt-neo intermediate": (
        "gpt_neo",
        {**_NEO, "attention_types": [[["local"], 3]], "intermediate_size": 48},
    ),
    "neox": ("gpt_neox", _NEW),
    "neox sequential, rotary 1.0": ("gpt_neox", {**_NEW, "use_parallel_residual": False, "rotary_pct": 1.0}),
    "neox without attention bias": ("gpt_neox", {**_NEW, "attention_bias": False, "rotary_pct": 0.5}),
    "neox base, tied": ("gpt_neox", {**_NEW, "rotary_emb_base": 500, "tie_word_embeddings": True}),
    "neox linear rope": ("gpt_neox", {**_NEW, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "opt": ("opt", _OPT),
    "opt post-norm": ("opt", {**_OPT, "do_layer_norm_before": False}),
    "opt post-norm, projected": ("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "opt gelu, without bias": ("opt", {**_OPT, "activation_function": "gelu", "enable_bias": False}),
    "opt plain norms": ("opt", {**_OPT, "layer_norm_elementwise_affine": False}),
    "bloom": ("bloom", _BLOOM),
    "bloom post-norm residual": ("bloom", {**_BLOOM, "apply_residual_connection_post_layernorm": True}),
    "bigcode multi-query": ("gpt_bigcode", {**_OLD, "multi_query": True}),
    "bigcode many heads, n_inner": ("gpt_bigcode", {**_OLD, "multi_query": False, "n_inner": 48}),
    "falcon multi-query": ("falcon", {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "falcon alibi, sequential": (
        "falcon",
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon new decoder": ("falcon", {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "mpt": ("mpt", _MPT),
    "mpt clipped": ("mpt", {**_MPT, "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.2}}),
    "codegen": ("codegen", {**_OLD, "rotary_dim": 4}),
    "xglm": (
        "xglm",
        {"num_layers": 3, "d_model": 32, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 128},
    ),
    "llama": ("llama", _GROUPED),
    "llama tied, base": ("llama", {**_GROUPED, "tie_word_embeddings": True, "rope_theta": 500000.0}),
    "llama attention bias": ("llama", {**_GROUPED, "attention_bias": True}),
    "llama mlp bias": ("llama", {**_GROUPED, "mlp_bias": True}),
    "llama linear rope": ("llama", {**_GROUPED, **_LINEAR}),
    "llama dynamic rope": ("llama", {**_GROUPED, **_DYNAMIC}),
    "llama yarn": ("llama", {**_GROUPED, **_YARN}),
    "llama llama3 rope": ("llama", {**_GROUPED, **_LLAMA3}),
    "llama head_dim": ("llama", {**_GROUPED, "head_dim": 16}),
    "llama multi-query, gelu": ("llama", {**_NEW, "num_key_value_heads": 1, "hidden_act": "gelu_pytorch_tanh"}),
    "llama epsilon": ("llama", {**_GROUPED, "rms_norm_eps": 1e-2}),
    "mistral window": ("mistral", {**_GROUPED, "sliding_window": 8}),
    "mistral head_dim, no window": ("mistral", {**_GROUPED, "head_dim": 16, "sliding_window": None}),
    "ministral": ("ministral", {**_GROUPED, "sliding_window": 8, "head_dim": 8}),
    "mixtral": ("mixtral", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen2 window": ("qwen2", _QWEN_WINDOW),
    "qwen2 yarn, tied": ("qwen2", {**_GROUPED, **_YARN, "tie_word_embeddings": True}),
    "qwen2-moe": (
        "qwen2_moe",
        {**_GROUPED, **_EXPERTS, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1},
    ),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 8}),
    "qwen3 attention bias, head_dim": ("qwen3", {**_GROUPED, "head_dim": 16, "attention_bias": True}),
    "qwen3 window": ("qwen3", {**_QWEN_WINDOW, "head_dim": 8}),
    "qwen3 yarn": ("qwen3", {**_GROUPED, **_YARN, "head_dim": 8}),
    "qwen3-moe": ("qwen3_moe", {**_GROUPED, **_EXPERTS, "head_dim": 8, "norm_topk_prob": True}),
    "qwen3-moe some dense": ("qwen3_moe", {**_GROUPED, **_EXPERTS, "head_dim": 8, "mlp_only_layers": [1]}),
    "gemma": ("gemma", _GEMMA),
    "gemma head_dim, gelu": ("gemma", {**_GEMMA, "head_dim": 16, "hidden_act": "gelu"}),
    "gemma2 softcaps": ("gemma2", {**_GEMMA2, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0}),
    "gemma2 scalar, no softcaps": (
        "gemma2",
        {**_GEMMA2, "query_pre_attn_scalar": 16, "final_logit_softcapping": None, "attn_logit_softcapping": None},
    ),
    "gemma3 pattern": ("gemma3_text", {**_GEMMA2, "sliding_window_pattern": 2, "rope_local_base_freq": 100.0}),
    "gemma3 layer types, linear rope": (
        "gemma3_text",
        {
            **_GEMMA2,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
    "phi": ("phi", {**_NEW, "partial_rotary_factor": 0.5}),
    "phi partial, qk norm": ("phi", {**_NEW, "partial_rotary_factor": 0.25, "qk_layernorm": True}),
    "phi3": ("phi3", _GROUPED),
    "phi3 partial rotary": ("phi3", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "phi3 longrope": ("phi3", {**_GROUPED, **_LONG}),
    "phi3 longrope, window": ("phi3", {**_GROUPED, **_LONG_PARTIAL, "partial_rotary_factor": 0.5, "sliding_window": 8}),
    "phimoe": ("phimoe", {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "attention_bias": True}),
    "olmo clipped": ("olmo", {**_GROUPED, "clip_qkv": 0.5}),
    "olmo2": ("olmo2", _GROUPED),
    "olmo2 attention bias": ("olmo2", {**_GROUPED, "attention_bias": True}),
    "olmo3 window": ("olmo3", {**_GROUPED, "sliding_window": 8}),
    "olmoe": ("olmoe", {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": ("stablelm", _GROUPED),
    "stablelm biases, parallel": (
        "stablelm",
        {**_GROUPED, "use_qkv_bias": True, "use_parallel_residual": True, "partial_rotary_factor": 0.5},
    ),
    "stablelm qk norm": ("stablelm", {**_GROUPED, "qk_layernorm": True}),
    "cohere logit scale": ("cohere", {**_GROUPED, "logit_scale": 0.25}),
    "cohere qk norm": ("cohere", {**_GROUPED, "use_qk_norm": True, "attention_bias": True}),
    "cohere2 window": ("cohere2", {**_GROUPED, "sliding_window": 8, "logit_scale": 0.25}),
    "granite multipliers": (
        "granite",
        {
            **_GROUPED,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
        },
    ),
    "granite biases": ("granite", {**_GROUPED, "attention_bias": True, "mlp_bias": True}),
    "granite-moe": (
        "granitemoe",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "residual_multiplier": 0.5},
    ),
    "apertus": ("apertus", _GROUPED),
    "smollm3": ("smollm3", {**_GROUPED, "no_rope_layers": [1, 0, 1]}),
    "smollm3 window": (
        "smollm3",
        {**_GROUPED, "no_rope_layers": [1, 1, 0], "use_sliding_window": True, "sliding_window": 8},
    ),
    "starcoder2": ("starcoder2", _GROUPED),
    "starcoder2 window, no bias": ("starcoder2", {**_GROUPED, "sliding_window": 8, "use_bias": False}),
    "glm": ("glm", {**_GROUPED, "head_dim": 8, "attention_bias": True}),
    "glm4": ("glm4", {**_GROUPED, "head_dim": 8, "attention_bias": True}),
    "nemotron": ("nemotron", {**_GROUPED, "head_dim": 8}),
    "nemotron biases": ("nemotron", {**_GROUPED, "head_dim": 8, "attention_bias": True, "mlp_bias": True}),
    "exaone4": ("exaone4", {**_GROUPED, "sliding_window": 8, "sliding_window_pattern": 2}),
    "ernie4_5 biases": ("ernie4_5", {**_GROUPED, "use_bias": True}),
    "arcee": ("arcee", _GROUPED),
    "seed-oss": ("seed_oss", {**_GROUPED, "head_dim": 8, "attention_bias": True, "attention_out_bias": False}),
    "gpt-oss": (
        "gpt_oss",
        {**_GROUPED, "head_dim": 8, "sliding_window": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "hunyuan": ("hunyuan_v1_dense", {**_GROUPED, "head_dim": 8}),
    "deepseek-v2": ("deepseek_v2", {**_DEEPSEEK, "head_dim": 4}),
    "deepseek-v3": ("deepseek_v3", _DEEPSEEK),
    "openai-gpt": ("openai-gpt", _OLD),
    "gemma3 that sees": ("gemma3", {**_seeing(_GEMMA2), "mm_tokens_per_image": 4}),
    "llava of llama": ("llava", _seeing({**_GROUPED, "model_type": "llama"}, **_CLIP)),
    "llava of mistral, window": ("llava", _seeing({**_GROUPED, "model_type": "mistral", "sliding_window": 8}, **_CLIP)),
    "llava-next": ("llava_next", _seeing({**_GROUPED, "model_type": "qwen2"}, **_CLIP)),
    "llava-onevision": ("llava_onevision", _seeing({**_GROUPED, "model_type": "qwen2"}, **_SIGLIP)),
    "mistral3": ("mistral3", _seeing({**_GROUPED, "model_type": "mistral", "head_dim": 8}, model_type="pixtral")),
    "idefics3": ("idefics3", _seeing({**_GROUPED, "model_type": "llama"})),
    "smolvlm": ("smolvlm", _seeing({**_GROUPED, "model_type": "llama"})),
    "internvl": (
        "internvl",
        _seeing(
            {**_GROUPED, "model_type": "qwen2"}, model_type="internvl_vision", image_size=[28, 28], patch_size=[14, 14]
        ),
    ),
    "aya-vision": ("aya_vision", _seeing({**_GROUPED, "model_type": "cohere2", "logit_scale": 0.25}, **_SIGLIP)),
    "qwen2-vl": ("qwen2_vl", _seeing({**_GROUPED, **_MROPE}, depth=1, embed_dim=16, num_heads=2, hidden_size=32)),
    "qwen2.5-vl": ("qwen2_5_vl", _seeing({**_GROUPED, **_MROPE}, **_QWEN_EYES)),
    "qwen3-vl": (
        "qwen3_vl",
        _seeing({**_GROUPED, **_MROPE, "head_dim": 8}, **_QWEN_EYES, deepstack_visual_indexes=[0]),
    ),
    "glm4v": ("glm4v", _seeing({**_GROUPED, **_MROPE}, **_QWEN_EYES)),
    "llama4 that sees": (
        "llama4",
        _seeing(
            {**_GROUPED, "intermediate_size_mlp": 64, "num_local_experts": 2, "head_dim": 8},
            vision_output_dim=32,
            intermediate_size=64,
        ),
    ),
    "mllama": ("mllama", _seeing({**_GROUPED, "cross_attention_layers": [1]}, **_MLLAMA_EYES)),
}


def save(folder: Path, name: str) -> Path:
    """Saves the tiny random model of a configuration, with a tokenizer, and gives the folder back."""
    model_type, fields = CONFIGURATIONS[name]
    tokens = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    config = transformers.AutoConfig.for_model(model_type, **fields, **tokens)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto_class(config).from_config(config)
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias") or parameter.ndim == 1:
                mean = 0.0 if parameter_name.endswith("bias") else 1.0
                torch.nn.init.normal_(parameter, mean, 0.1)
            elif parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, 0.0, 0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder
