"""Changes to a good adapter_config.json after which it must be refused: (name, change, the word the refusal holds)."""

from __future__ import annotations

REFUSED: list[tuple[str, dict[str, object], str]] = [
    ("rank_zero", {"r": 0}, "r is 0"),
    ("rank_negative", {"r": -8}, "-8"),
    ("rank_float", {"r": 4.5}, "4.5"),
    ("rank_true", {"r": True}, "True"),
    ("rank_text", {"r": "4"}, "'4'"),
    ("rank_over_the_limit", {"r": 100000}, "100000"),
    ("rank_unlike_the_tensors", {"r": 5}, "shape"),
    ("rank_pattern_zero", {"rank_pattern": {".*": 0}}, "rank_pattern"),
    ("rank_pattern_list", {"rank_pattern": [4]}, "rank_pattern"),
    ("rank_pattern_endless", {"rank_pattern": {f"module{number}": 4 for number in range(1025)}}, "1024"),
    ("rank_pattern_broken", {"rank_pattern": {"(": 4}}, "rank_pattern"),
    ("alpha_text", {"lora_alpha": "8"}, "lora_alpha"),
    ("alpha_missing_value", {"lora_alpha": None}, "lora_alpha"),
    ("alpha_nan", {"lora_alpha": float("nan")}, "lora_alpha"),
    ("alpha_infinite", {"lora_alpha": float("inf")}, "lora_alpha"),
    ("alpha_beyond_float", {"lora_alpha": 10**400}, "lora_alpha"),
    ("alpha_overflows_b", {"lora_alpha": 1e300}, "overflows"),
    ("alpha_pattern_true", {"alpha_pattern": {".*": True}}, "alpha_pattern"),
    ("rslora_text", {"use_rslora": "no"}, "use_rslora"),
    ("targets_null", {"target_modules": None}, "target_modules"),
    ("targets_number", {"target_modules": 3}, "target_modules"),
    ("targets_of_numbers", {"target_modules": [3]}, "target_modules"),
    ("targets_broken_expression", {"target_modules": "*"}, "target_modules"),
    ("targets_explosive_expression", {"target_modules": "((.*)*)*x"}, "select"),
    ("targets_select_nothing", {"target_modules": ["nowhere"]}, "select"),
    ("targets_select_more", {"target_modules": "all-linear"}, "no factors"),
    ("excludes_select_away", {"exclude_modules": ".*"}, "select"),
    ("excludes_number", {"exclude_modules": 3}, "exclude_modules"),
    ("layers_with_expression", {"target_modules": ".*", "layers_to_transform": [0]}, "layers_to_transform"),
    ("layers_text", {"layers_to_transform": ["0"]}, "layers_to_transform"),
    ("layers_pattern_alone", {"layers_pattern": "layer"}, "layers_pattern"),
    ("layers_pattern_expression", {"layers_to_transform": [0], "layers_pattern": "(.*)*"}, "layers_pattern"),
    ("bias_all", {"bias": "all"}, "bias"),
    ("bias_lora_only", {"bias": "lora_only"}, "bias"),
    ("peft_type_ia3", {"peft_type": "IA3"}, "IA3"),
    ("peft_type_missing", {"peft_type": None}, "peft_type"),
    ("dora", {"use_dora": True}, "use_dora"),
    ("activated", {"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
    ("lora_bias", {"lora_bias": True}, "lora_bias"),
    ("modules_to_save", {"modules_to_save": ["pooler"]}, "modules_to_save"),
    ("trainable_tokens", {"trainable_token_indices": [5]}, "trainable_token_indices"),
    ("layer_replication", {"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
    ("megatron", {"megatron_config": {"hidden_size": 32}}, "megatron_config"),
    ("target_parameters", {"target_parameters": ["experts.down"]}, "target_parameters"),
    ("qalora", {"use_qalora": True}, "use_qalora"),
    ("kasa_with_defaults", {"kasa_config": {}}, "kasa_config"),
    ("activated_by_nothing", {"alora_invocation_tokens": []}, "alora_invocation_tokens"),
    ("block_diagonal", {"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
    ("arrow", {"arrow_config": {"top_k": 3}}, "arrow_config"),
    ("monte_carlo", {"monteclora_config": {}}, "monteclora_config"),
    ("kasa", {"kasa_config": {"beta": 1}}, "kasa_config"),
    ("loftq", {"init_lora_weights": "loftq"}, "loftq"),
    ("loftq_config", {"loftq_config": {"loftq_bits": 4}}, "loftq_config"),
    ("pissa", {"init_lora_weights": "pissa_niter_16"}, "pissa_niter_16"),
    ("olora", {"init_lora_weights": "olora"}, "olora"),
    ("corda", {"init_lora_weights": "corda"}, "corda"),
    ("lora_ga", {"init_lora_weights": "lora_ga"}, "lora_ga"),
    ("unknown_key", {"use_tomorrows_method": True}, "use_tomorrows_method"),
    ("quantised_base", {"quantization_config": {"bits": 4}}, "quantization_config"),
]

# An empty list or object switches the feature on too.
TOKEN_INDICES: tuple[object, ...] = (
    *([], {}, [-1], [1, 1], [True], [1.5], ["1"]),
    *({"": [1]}, {"embed_tokens": []}, {"embed_tokens": [2, 5]}),
)

# The config changes vLLM's own tests expect to be refused (tests/lora/test_peft_helper.py), as (change, guilty key).
VLLM_REFUSED: list[tuple[dict[str, object], str]] = [
    ({"r": 1024}, "1024"),
    ({"use_dora": True}, "use_dora"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ({"r": 0}, "r is 0"),
    ({"r": -8}, "r is -8"),
    ({"r": -1}, "r is -1"),
    ({"bias": "all"}, "bias"),
    *(({"trainable_token_indices": indices}, "trainable_token_indices") for indices in TOKEN_INDICES),
]

# Keys whose values the reader interprets, for tests that feed it arbitrary ones.
FUZZED_KEYS = (
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules", "bias"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "init_lora_weights", "use_dora", "peft_type"),
)
