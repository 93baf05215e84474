"""Tiny configs for the architectures of mlx-lm, by field name."""

from typing import Any

#: Values that many architectures share; each takes the fields that it knows.
TINY: dict[str, Any] = {
    # sizes
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "model_dim", "dim"], 64),
    **dict.fromkeys(["intermediate_size", "n_inner", "ffn_hidden_size"], 96),
    **dict.fromkeys(["intermediate_size_mlp", "ff_intermediate_size"], 96),
    **dict.fromkeys(["moe_intermediate_size", "expert_ffn_hidden_size"], 64),
    **dict.fromkeys(["shared_expert_intermediate_size"], 64),
    **dict.fromkeys(["moe_shared_expert_intermediate_size"], 64),
    **dict.fromkeys(["shared_intermediate_size", "share_expert_dim"], 64),
    **dict.fromkeys(["num_hidden_layers", "num_layers", "n_layer", "n_layers"], 2),
    "num_transformer_layers": 2,
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "n_kv_heads", "num_kv_heads"], 2),
    "num_attention_groups": 2,
    **dict.fromkeys(["head_dim", "kv_channels", "swa_head_dim", "v_head_dim"], 16),
    **dict.fromkeys(["swa_v_head_dim", "global_head_dim"], 16),
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    # positions
    **dict.fromkeys(["max_position_embeddings", "n_positions", "n_ctx"], 256),
    **dict.fromkeys(["original_max_position_embeddings", "model_max_length"], 256),
    **dict.fromkeys(["rope_theta", "swa_rope_theta"], 10000.0),
    "rotary_emb_base": 10000,
    **dict.fromkeys(["partial_rotary_factor", "rotary_pct"], 0.5),
    "rotary_dim": 8,
    **dict.fromkeys(["sliding_window", "sliding_window_size"], 32),
    **dict.fromkeys(["attention_window_size", "window_size"], 32),
    "sliding_window_pattern": 2,
    # norms and scales
    **dict.fromkeys(["rms_norm_eps", "layer_norm_eps", "norm_eps"], 1e-5),
    **dict.fromkeys(["layer_norm_epsilon", "layernorm_epsilon"], 1e-5),
    **dict.fromkeys(["attention_multiplier", "embedding_multiplier"], 1.0),
    **dict.fromkeys(["logits_scaling", "residual_multiplier", "scale_emb"], 1.0),
    **dict.fromkeys(["scale_depth", "routed_scaling_factor"], 1.0),
    "dim_model_base": 64,
    "query_pre_attn_scalar": 16.0,
    "logits_soft_cap": 30.0,
    # experts
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    "moe_num_experts": 4,
    **dict.fromkeys(["num_experts_per_tok", "moe_topk", "moe_top_k"], 2),
    **dict.fromkeys(["num_experts_per_token", "moe_k", "top_k_experts"], 2),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts"], 1),
    **dict.fromkeys(["num_shared_expert", "moe_num_shared_experts"], 1),
    **dict.fromkeys(["n_group", "topk_group", "num_expert_group"], 1),
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], 1),
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "zero_expert_num": 1,
    "zero_expert_type": "identity",
    # low-rank attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 64,
    # recurrences
    **dict.fromkeys(["mamba_d_conv", "conv_kernel", "conv_L_cache"], 4),
    **dict.fromkeys(["linear_conv_kernel_dim", "conv1d_width"], 4),
    **dict.fromkeys(["mamba_d_state", "state_size", "ssm_state_size"], 16),
    **dict.fromkeys(["mamba_num_heads", "mamba_n_heads", "time_step_rank"], 4),
    **dict.fromkeys(["mamba_head_dim", "mamba_d_head", "group_norm_size"], 16),
    **dict.fromkeys(["mamba_n_groups", "n_groups", "mamba_expand"], 2),
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    **dict.fromkeys(["linear_num_value_heads", "linear_num_key_heads"], 2),
    **dict.fromkeys(["linear_key_head_dim", "linear_value_head_dim"], 32),
    "time_step_limit": (0.0, 1e9),
    # switches
    "model_type": "",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
}

FULL = ["full_attention", "full_attention"]
SLIDING = ["sliding_attention", "full_attention"]
ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
YARN: dict[str, Any] = {
    "type": "yarn",
    "factor": 2.0,
    "original_max_position_embeddings": 128,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}

LONG: dict[str, Any] = {
    **ROPE,
    "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 128,
}
KDA: dict[str, Any] = {
    "kda_layers": [1],
    "full_attn_layers": [2],
    "num_heads": 4,
    "head_dim": 16,
    "short_conv_kernel_size": 4,
}

#: What an architecture needs beyond, or otherwise.
SPECIAL: dict[str, dict[str, Any]] = {
    "afm7": {"hidden_dim": 64, "num_kv_reuse_layers": 1},
    "afmoe": {"layer_types": SLIDING},
    "apertus": {"post_norm": False, "qk_norm": True},
    "baichuan_m1": {
        "sliding_window_layers": [1],
        "conv_window": 2,
        "tie_word_embeddings": False,
    },
    "bailing_hybrid": {"layer_group_size": 2},
    "bailing_moe_linear": {"layer_group_size": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {"rope_scaling": YARN, "topk_method": "greedy"},
    "ernie4_5": {"use_bias": False},
    "ernie4_5_moe": {"use_bias": False},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": SLIDING, "is_moe_layer": [False, True]},
    "gear": {"layer_types": FULL},
    "gemma3n": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "rope_local_base_freq": 10000.0,
        "final_logit_softcapping": 30.0,
        "layer_types": 2 * SLIDING,
        "activation_sparsity_pattern": [0.0] * 4,
        "hidden_size_per_layer_input": 16,
        "altup_num_inputs": 2,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 16,
    },
    "gemma4_text": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 16,
        "num_experts": None,
    },
    "glm4_moe": {"rope_scaling": None, "use_qk_norm": True},
    "glm_moe_dsa": {"rope_parameters": ROPE},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": False,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
    },
    "kimi_k3": {
        "hidden_act": "situ",
        "activation_situ_beta": 1.0,
        "activation_situ_linear_beta": 1.0,
        "linear_attn_config": KDA,
    },
    "kimi_linear": {"linear_attn_config": KDA},
    "lfm2": {
        "conv_bias": False,
        "block_dim": 64,
        "block_ff_dim": 96,
        "block_multiple_of": 32,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "full_attn_idxs": [1],
    },
    "lfm2_moe": {"use_expert_bias": True, "conv_bias": False, "full_attn_idxs": [1]},
    "lille-130m": {"block_size": 256},
    "llama4": {
        "attention_chunk_size": 32,
        "interleave_moe_layer_step": 2,
        "rope_scaling": None,
        "use_qk_norm": True,
        "num_experts_per_tok": 1,
        "num_hidden_layers": 4,
    },
    "llama4_text": {"no_rope_layers": [1, 0], "use_qk_norm": True},
    "longcat_flash": {
        "attention_method": "MLA",
        "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "longcat_flash_ngram": {"mla_scale_q_lora": True, "mla_scale_kv_lora": True},
    "mamba": {"use_bias": False, "use_conv_bias": True, "intermediate_size": 128},
    "mamba2": {"use_bias": False, "use_conv_bias": True, "num_heads": 8},
    "mellum": {
        "layer_types": SLIDING,
        "rope_parameters": {kind: ROPE for kind in SLIDING},
    },
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
    },
    "minicpm3": {"rope_scaling": {"original_max_position_embeddings": 128}},
    "minimax_m3_vl": {"moe_layer_freq": [0, 1], "dense_intermediate_size": 96},
    "ministral3": {"rope_parameters": LONG},
    "mistral4": {"rope_parameters": LONG},
    "muse_spark": {
        "post_norm_eps": 1e-5,
        "rope_parameters": ROPE,
        "layer_rope_theta": [10000.0, 0.0],
        "layer_types": SLIDING,
        "final_logit_softcapping": 30.0,
        "output_multiplier": 1.0,
        "moe_hidden_size": 64,
        "num_shared_experts": 0,
    },
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
        ]
    },
    "nemotron_h": {
        "mamba_proj_bias": False,
        "use_bias": False,
        "use_conv_bias": True,
        "hybrid_override_pattern": ["M", "*"],
    },
    "olmo3": {"layer_types": SLIDING},
    "olmo_hybrid": {
        "linear_allow_neg_eigval": True,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "openelm": {
        "ffn_dim_divisor": 32,
        "num_query_heads": [4, 4],
        "num_kv_heads": [2, 2],
        "ffn_multipliers": [1.5, 1.5],
    },
    "phi3small": {"dense_attention_every_n_layers": 1, "gegelu_limit": 20.0},
    "plamo": {"n_shared_head": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "rwkv7": {
        "a_low_rank_dim": 16,
        "v_low_rank_dim": 16,
        "gate_low_rank_dim": 16,
        "decay_low_rank_dim": 16,
    },
    "spark2_5": {
        "rope_parameters": {kind: ROPE for kind in SLIDING},
        "hidden_act": "gelu",
    },
    "stablelm": {"use_qkv_bias": False},
}
#: Layers that take turns: enough of them for one turn.
for _name in ("gemma4_text", "qwen3_5", "qwen3_next"):
    SPECIAL.setdefault(_name, {})["num_hidden_layers"] = 4

#: Models that wrap the text model of another architecture.
TEXT_OF = {
    "gemma4": "gemma4_text",
    "lfm2-vl": "lfm2",
    "qwen3_5_moe": "qwen3_5",
}
