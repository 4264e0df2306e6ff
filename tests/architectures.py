"""Tiny real models of many architectures, with random weights large enough for differences to show."""

from __future__ import annotations

from typing import Any

import torch
import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
OLD: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
HEAD: dict[str, Any] = {"head_dim": 8}
LOCAL: dict[str, Any] = {"sliding_window": 8}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", LOCAL),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", HEAD),
    "gemma": ("GemmaConfig", HEAD),
    "gemma2": ("Gemma2Config", HEAD | LOCAL | {"query_pre_attn_scalar": 8}),
    "gemma3_text": ("Gemma3TextConfig", HEAD | LOCAL | {"query_pre_attn_scalar": 8}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
    "phimoe": ("PhimoeConfig", EXPERTS),
    "starcoder2": ("Starcoder2Config", {}),
    "stablelm": ("StableLmConfig", {}),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", LOCAL),
    "olmoe": ("OlmoeConfig", EXPERTS),
    "cohere": ("CohereConfig", {}),
    "cohere2": ("Cohere2Config", LOCAL),
    "granite": ("GraniteConfig", {"logits_scaling": 2.0}),
    "granitemoe": ("GraniteMoeConfig", EXPERTS),
    "mixtral": ("MixtralConfig", EXPERTS),
    "qwen2_moe": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | HEAD),
    "deepseek_v2": ("DeepseekV2Config", ROUTED | LATENT),
    "deepseek_v3": ("DeepseekV3Config", ROUTED | LATENT),
    "gpt2": ("GPT2Config", OLD),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "gptj": ("GPTJConfig", OLD | {"rotary_dim": 8}),
    "opt": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "falcon": ("FalconConfig", {}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "codegen": ("CodeGenConfig", OLD | {"rotary_dim": 8}),
    "smollm3": ("SmolLM3Config", {}),
    "glm": ("GlmConfig", HEAD),
    "glm4": ("Glm4Config", HEAD),
    "helium": ("HeliumConfig", HEAD),
    "nemotron": ("NemotronConfig", HEAD),
    "ernie4_5": ("Ernie4_5Config", HEAD),
    "exaone4": ("Exaone4Config", HEAD | LOCAL),
    "seed_oss": ("SeedOssConfig", HEAD),
    "gpt_oss": ("GptOssConfig", HEAD | LOCAL | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "arcee": ("ArceeConfig", {}),
    "apertus": ("ApertusConfig", {}),
    "hunyuan": ("HunYuanDenseV1Config", HEAD),
    "dots1": ("Dots1Config", ROUTED | HEAD | {"n_shared_experts": 1}),
    "glm4_moe": ("Glm4MoeConfig", ROUTED | HEAD | {"n_shared_experts": 1}),
    "diffllama": ("DiffLlamaConfig", HEAD),
    "doge": ("DogeConfig", {}),
    "jetmoe": ("JetMoeConfig", {"kv_channels": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "persimmon": ("PersimmonConfig", {}),
    "biogpt": ("BioGptConfig", {}),
    "xglm": ("XGLMConfig", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "bitnet": ("BitNetConfig", {}),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3}),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "mamba2": ("Mamba2Config", HEAD | {"state_size": 8, "num_heads": 8, "n_groups": 1, "chunk_size": 16}),
    "falcon_mamba": ("FalconMambaConfig", {"state_size": 8}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        HEAD | {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    ),
    "jamba": (
        "JambaConfig",
        EXPERTS
        | {
            "mamba_d_state": 8,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
    "bamba": ("BambaConfig", MAMBA | {"attn_layer_indices": [1]}),
    "qwen3_next": (
        "Qwen3NextConfig",
        EXPERTS
        | HEAD
        | {
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 32,
        },
    ),
    "minimax": (
        "MiniMaxConfig",
        EXPERTS | HEAD | {"layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    ),
    "llama4_text": (
        "Llama4TextConfig",
        HEAD | {"num_local_experts": 4, "intermediate_size_mlp": 64, "interleave_moe_layer_step": 2},
    ),
    "ministral": ("MinistralConfig", HEAD | LOCAL),
    "vaultgemma": ("VaultGemmaConfig", HEAD | LOCAL | {"query_pre_attn_scalar": 8}),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        EXPERTS | MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
    ),
    "nanochat": ("NanoChatConfig", {}),
    "cwm": ("CwmConfig", HEAD | LOCAL),
    "flex_olmo": ("FlexOlmoConfig", EXPERTS),
    "ernie4_5_moe": ("Ernie4_5_MoeConfig", {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32}),
    "t5": ("T5Config", {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8}),
    "bart": (
        "BartConfig",
        {
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
        },
    ),
    "bert": ("BertConfig", {}),
}


def build(name: str, **settings: Any) -> Any:
    """A model of this architecture, in float32 and evaluation mode."""
    kind, own = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**{**SIZES, **own, **settings})
    kinds = {"t5": transformers.T5ForConditionalGeneration, "bart": transformers.BartForConditionalGeneration}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name in kinds:
            return kinds[name](config).eval()
        model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    return model
