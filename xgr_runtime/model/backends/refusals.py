"""Which configs are refused, and in which words.

Stages do plain causal softmax attention with rotary positions and nothing else. A checkpoint that needs
more would load and answer, only wrongly, so each known extra is refused by its config field before any weight
is read. What this list misses, the backend's self-check catches.
"""

from collections.abc import Callable, Iterator
from typing import Any

from xgr_runtime.errors import ModelError

Config = dict[str, Any]


def refuse_unsupported(config: Config, where: str) -> None:
    """Raises ModelError, naming the field, if `config` (a dict, defaults filled in) needs more than we do."""
    for reason in _reasons(config):
        raise ModelError(f"{where}: {config.get('model_type')} is not supported: {reason}")


def describe(error: Exception) -> str:
    """An error of somebody else's library as a part of our one-line message."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    return f"{kind}: {text[:300]}" if text else kind


def _reasons(config: Config) -> Iterator[str]:
    for check in _CHECKS:
        reason = check(config)
        if reason:
            yield reason


def _custom_code(config: Config) -> str | None:
    return (
        "auto_map asks for code from the checkpoint, which is never run" if config.get("auto_map") else None
    )


def _encoder_decoder(config: Config) -> str | None:
    return "is_encoder_decoder, only decoders are" if config.get("is_encoder_decoder") else None


def _composite(config: Config) -> str | None:
    part = _first_set(config, ("vision_config", "audio_config", "text_config"))
    return f"{part} makes it a multimodal model, only plain text decoders are" if part else None


def _quantised(config: Config) -> str | None:
    return "quantization_config, only float32 and bfloat16 are" if config.get("quantization_config") else None


def _layer_types(config: Config) -> str | None:
    others = sorted(set(config.get("layer_types") or ()) - {"full_attention"})
    return f"layer_types has {', '.join(others)}, only full_attention is" if others else None


def _sliding_window(config: Config) -> str | None:
    # Qwen2's and Qwen3's config classes clear sliding_window themselves when use_sliding_window is false.
    field = _first_set(config, ("sliding_window", "attention_chunk_size"))
    return f"{field}={config[field]} limits attention, only full attention is" if field else None


def _soft_caps(config: Config) -> str | None:
    field = _first_set(
        config, ("attn_logit_softcapping", "final_logit_softcapping", "logits_soft_cap", "logit_softcapping")
    )
    return f"{field}={config[field]} caps logits" if field else None


def _sinks(config: Config) -> str | None:
    if config.get("model_type") == "gpt_oss":
        return "it has attention sinks"  # as weights, without a field
    field = _first_set(config, ("attention_sinks", "use_attention_sinks", "num_sink_tokens", "sink_tokens"))
    return f"{field} adds attention sinks" if field else None


def _latent_attention(config: Config) -> str | None:
    field = _first_set(config, ("kv_lora_rank", "qk_rope_head_dim", "v_head_dim"))
    return f"{field} means latent attention, whose keys and values differ in size" if field else None


def _position_biases(config: Config) -> str | None:
    field = _first_set(config, ("alibi", "use_alibi", "relative_attention_num_buckets"))
    if not field and config.get("position_embedding_type") not in (None, "rope", "rotary"):
        field = "position_embedding_type"
    return f"{field} biases attention by distance, only rotary positions are" if field else None


def _no_rotary(config: Config) -> str | None:
    if config.get("rope_parameters"):
        return None
    return "no rope_parameters, only rotary positions are"


def _batch_dependent_rotary(config: Config) -> str | None:
    rope = config.get("rope_parameters") or {}
    kinds = [rope.get("rope_type")] + [
        part.get("rope_type") for part in rope.values() if isinstance(part, dict)
    ]
    chosen = [kind for kind in kinds if kind in ("dynamic", "longrope")]
    # Its frequencies follow the longest prompt of the batch: batch mates would change each other's answers.
    return f"rope_type {chosen[0]!r} depends on the batch" if chosen else None


def _scaled_head(config: Config) -> str | None:
    for field in ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier_scale"):
        if config.get(field) not in (None, 1, 1.0):
            return f"{field}={config[field]} scales the logits"
    return None


def _not_causal(config: Config) -> str | None:
    return "is_causal=false, only causal attention is" if config.get("is_causal") is False else None


def _first_set(config: Config, fields: tuple[str, ...]) -> str | None:
    return next((field for field in fields if config.get(field)), None)


_CHECKS: tuple[Callable[[Config], str | None], ...] = (
    _custom_code,
    _encoder_decoder,
    _composite,
    _quantised,
    _layer_types,
    _sliding_window,
    _soft_caps,
    _sinks,
    _latent_attention,
    _position_biases,
    _no_rotary,
    _batch_dependent_rotary,
    _scaled_head,
    _not_causal,
)
