"""GGUF files as llama.cpp's converter makes them of Transformers' models, for tests."""

import json
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

import foreign

# Rows of 32 numbers are what GGUF's plainest quantisation takes.
WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_attention_heads": 4,
        "num_key_value_heads": 2}  # fmt: skip
_OF_LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_OUTSIDE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
}  # fmt: skip


def write(
    model: Any,
    path: Path,
    *,
    kind: str = "F32",
    words: str | None = None,
    extra: dict[str, Any] | None = None,
    tensors: dict[str, Tensor] | None = None,
) -> Path:
    """The file that llama.cpp's converter makes of a model.

    Args:
        model: Transformers'.
        path: gets the file.
        kind: of number for matrices.
        words: a folder with a byte-level tokenizer.
        extra: other keys of the metadata.
        tensors: others beside the weights.
    """
    config = model.config
    family = config.model_type
    writer = gguf.GGUFWriter(path, family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(
        getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    )
    writer.add_head_count(config.num_attention_heads)
    if family == "gpt2":
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        if hasattr(config, "head_dim"):
            writer.add_key_length(config.head_dim)
            writer.add_rope_dimension_count(config.head_dim)
    for key, value in (extra or {}).items():
        add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        add[type(value)](key, value)
    if words is not None:
        _add_words(writer, words)
    state = dict(model.state_dict())
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    named = {_name(name): _turned(name, tensor, config) for name, tensor in state.items()}
    for name, tensor in {**named, **(tensors or {})}.items():
        numbers = tensor.float().contiguous().numpy()
        if tensor.dim() > 1 and kind != "F32":
            quantised = getattr(gguf.GGMLQuantizationType, kind)
            numbers = gguf.quantize(numbers, quantised)
            writer.add_tensor(name, numbers, raw_dtype=quantised)
        else:
            writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_words(writer: Any, folder: str) -> None:
    model = json.loads((Path(folder) / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    end = tokens.index("<|endoftext|>")
    padded = [*tokens, *(f"[PAD{i}]" for i in range(len(tokens), foreign.VOCABULARY))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(padded)
    writer.add_token_types([3 if i == end else 1 if i < len(tokens) else 5 for i in range(310)])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_eos_token_id(end)
    writer.add_bos_token_id(end)
    writer.add_chat_template("{% for message in messages %}<{{ message.content }}>{% endfor %}")


def _name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    for before in ("model.layers.", "transformer.h."):
        if stem.startswith(before):
            number, _, rest = stem.removeprefix(before).partition(".")
            return f"blk.{number}.{_OF_LAYER[rest]}.{kind}"
    return f"{_OUTSIDE[stem]}.{kind}"


def _turned(name: str, tensor: Tensor, config: Any) -> Tensor:
    """Matrices as maps from input to output; Llama's rotary pairs beside one another."""
    if config.model_type == "gpt2":
        is_map = tensor.dim() == 2 and ".h." in name
        return tensor.t() if is_map else tensor
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if config.model_type == "llama" and part in name:
            halves = tensor.view(count, 2, -1, *tensor.shape[1:])
            return halves.transpose(1, 2).reshape(tensor.shape)
    return tensor
