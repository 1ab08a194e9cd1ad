"""Which settings of PEFT 0.21 are served. A setting that is not known is refused unless it is off."""

from __future__ import annotations

from embedmux.server.adapters.files import reject, shown

# They describe the training run or the base model and change no vector (ensure_weight_tying acts only on modules that
# are refused below, qalora_group_size only with use_qalora, velora_config only on the backward pass).
# fmt: off
INFORMATION = frozenset((
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "task_type",
    "velora_config",
))
# Read by peft_config.py. PEFT ignores fan_in_fan_out for torch.nn.Linear, and A and B never depend on it.
READ = frozenset((
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "lora_alpha", "peft_type", "r", "rank_pattern", "target_modules", "use_rslora",
))
# fmt: on
# An empty list or object switches these on in PEFT; only null and false are off.
REFUSED_UNLESS_NULL = {
    "alora_invocation_tokens": "activated LoRA applies only after an invocation sequence",
    "arrow_config": "arrow routes between adapters inside the model",
    "kasa_config": "KaSA truncates the base weights",
    "monteclora_config": "MonteCLoRA samples its weights",
    "trainable_token_indices": "it replaces rows of the token embedding",
    "use_bdlora": "block-diagonal LoRA stores its factors differently",
}
REFUSED = {
    "layer_replication": "it builds a model with other layers",
    "loftq_config": "the base model was quantised for it",
    "lora_bias": "B carries a bias, which the low-rank kernel does not add",
    "megatron_config": "megatron layers are not served",
    "modules_to_save": "it replaces whole modules of the base model",
    "target_parameters": "only linear modules can be updated, not bare parameters",
    "use_dora": "DoRA rescales the base weights",
    "use_qalora": "it pools the inputs of a quantised base model",
}
# These start from the base weights as they are; every other kind changes the base weights when PEFT loads it.
SAFE_INITIALISATIONS = ("gaussian", "eva", "orthogonal", "mica")


def refuse_unsupported(config: dict[str, object], owner: str) -> None:
    """Raises AdapterRejected for the first setting that is not served, naming it, its value and the reason."""
    kind = config.get("peft_type")
    if kind != "LORA":
        reject(owner, f"peft_type is {shown(kind)}; only 'LORA' is served")
    for key, value in config.items():
        if key in REFUSED_UNLESS_NULL and value is not None and value is not False:
            reject(owner, f"{key} is {shown(value)}: {REFUSED_UNLESS_NULL[key]}; retrain without it")
        if value and key in REFUSED:
            reject(owner, f"{key} is {shown(value)}: {REFUSED[key]}; merge the adapter or retrain without it")
        if value and key not in INFORMATION | READ | REFUSED.keys() | REFUSED_UNLESS_NULL.keys():
            reject(
                owner,
                f"the config key {shown(key)} with value {shown(value)} is not known, so its effect cannot be kept",
            )
    if config.get("bias", "none") != "none":
        reject(owner, f"bias is {shown(config['bias'])}: it replaces biases of the base model; only 'none' is served")
    for key in ("fan_in_fan_out", "use_rslora"):
        if not isinstance(config.get(key), bool | None):
            reject(owner, f"{key} is {shown(config[key])}, not true or false")
    start = config.get("init_lora_weights", True)
    if not isinstance(start, bool) and not (isinstance(start, str) and start.lower() in SAFE_INITIALISATIONS):
        reject(
            owner,
            f"init_lora_weights is {shown(start)}: loading it changes the base weights; convert it with "
            "save_pretrained(path_initial_model_for_weight_conversion=...)",
        )
