"""What the authors' training script saves, with random weights."""

from typing import Any

import torch

Checkpoint = dict[str, Any]


def make_checkpoint(
    *, n: int = 2, bias: bool = False, prefix: str = "", vocabulary: int = 13
) -> Checkpoint:
    """What the authors' training script saves: 2 heads a sub-layer, width 8, 3 layers."""
    torch.manual_seed(0)
    d, f, layers, context = 8, 24, 3, 16
    shapes = {
        "transformer.wte.weight": (vocabulary, d),
        "transformer.wpe.weight": (context, d),
        "transformer.conjunction.weight": (d, n * d),
        "transformer.ln_f.weight": (d,),
    }
    for i in range(n):
        for layer in range(layers):
            block = f"transformer.h.{i}.{layer}"
            shapes[f"{block}.ln_1.weight"] = (d,)
            shapes[f"{block}.attn.c_attn.weight"] = (3 * d, d)
            shapes[f"{block}.attn.c_proj.weight"] = (d, d)
            shapes[f"{block}.ln_2.weight"] = (d,)
            shapes[f"{block}.mlp.c_fc.weight"] = (f, d)
            shapes[f"{block}.mlp.c_proj.weight"] = (d, f)
    if bias:
        for name, shape in list(shapes.items()):
            if name.split(".")[1] not in ("wte", "wpe"):
                shapes[name.replace(".weight", ".bias")] = shape[:1]
    state = {
        prefix + name: torch.randn(shape, dtype=torch.float64) * 0.5
        for name, shape in shapes.items()
    }
    state[f"{prefix}lm_head.weight"] = state[f"{prefix}transformer.wte.weight"]
    return {
        "model": state,
        "optimizer": {"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1e-3}]},
        "model_args": {
            "n_layer": layers,
            "n_head": 2 * n,
            "n_embd": d,
            "block_size": context,
            "bias": bias,
            "vocab_size": vocabulary,
            "dropout": 0.0,
            "n_heads_in_split": 2,
            "is_split": True,
            "ffn_expansion": 3,
        },
        "iter_num": 300,
        "best_val_loss": torch.tensor(3.5),
        "config": {"batch_size": 20, "compile": True},
    }
