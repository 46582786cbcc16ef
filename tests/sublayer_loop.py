"""A Kraken whose sub-layers are modules of their own, computed one after the other.

How one writes the architecture down first, with PyTorch's fused kernels but a loop over sub-layers
in each layer. It says what the axis over sub-layers gains in training: the bar of
``scripts/training_speed.py``. Embeddings, head and loss are the model's own, operator by operator,
so that whatever differs lies in the layers. Published shapes only: learned positions, GELU, as many
key and value heads as query heads, no biases, head tied to the embedding; LayerNorm, or RMSNorm.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm.config import ModelConfig


class _SubLayer(nn.Module):
    """One small Transformer layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.heads_per_sublayer * config.head_dim
        self.heads = config.heads_per_sublayer
        self.norm_1, self.norm_2 = _norm(config), _norm(config)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.output = nn.Linear(inner, width, bias=False)
        self.up = nn.Linear(width, config.ffn_dim, bias=False)
        self.down = nn.Linear(config.ffn_dim, width, bias=False)

    def attend(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        q, k, v = (
            part.view(batch, tokens, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.norm_1(x_BTD)).chunk(3, dim=-1)
        )
        o_BHTE = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(o_BHTE.transpose(1, 2).reshape(batch, tokens, -1))

    def feed(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm_2(x_BTD)), approximate="tanh"))


class SubLayerLoop(nn.Module):
    """The whole model; ``forward`` returns the mean cross-entropy of the next tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, n = config.hidden_size, config.num_sublayers
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(_SubLayer(config) for _ in range(n))
            for _ in range(config.num_hidden_layers)
        )
        self.conjunction = nn.Linear(n * width, width, bias=False)
        self.norm = _norm(config)

    def forward(self, ids_BT: Tensor) -> Tensor:
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x = self.embed_tokens(ids_BT) + self.embed_positions(positions_T)
        ys = [x] * len(self.layers[0])
        for index, layer in enumerate(self.layers):
            total = sum(ys[1:], ys[0]) if index else None
            following = []
            for sublayer, y in zip(layer, ys, strict=True):
                a = sublayer.attend(y)
                z = y + a if total is None else a + total
                following.append(y + a + sublayer.feed(z))
            ys = following
        h_BTD = self.norm(self.conjunction(torch.cat(ys, dim=-1)))
        logits = F.linear(h_BTD, self.embed_tokens.weight).float()
        labels_BT = F.pad(ids_BT, (0, 1), value=-100)[:, 1:]  # the last position has no next token
        return F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten())

    @torch.no_grad()
    def take(self, state: dict[str, Tensor]) -> "SubLayerLoop":
        """The weights of ``KrakenForCausalLM.state_dict()``."""
        for name in ("embed_tokens", "embed_positions"):
            self.get_submodule(name).weight.copy_(state[f"model.{name}.weight"])
        self.norm.weight.copy_(state["model.norm.weight"][0])
        self.conjunction.weight.copy_(torch.cat(list(state["model.conjunction.weight"]), dim=1))
        names = {
            **{name: name for name in ("norm_1", "norm_2")},
            **{name: f"attention.{name}" for name in ("qkv", "output")},
            **{name: f"feed_forward.{name}" for name in ("up", "down")},
        }
        for layer, sublayers in enumerate(self.layers):
            for i, sublayer in enumerate(sublayers):
                for own, theirs in names.items():
                    weight = state[f"model.layers.{layer}.{theirs}.weight"][i]
                    sublayer.get_submodule(own).weight.copy_(weight)
        return self


def _norm(config: ModelConfig) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(config.hidden_size, config.norm_eps)
    return nn.LayerNorm(config.hidden_size, config.norm_eps, bias=False)


def kept_bytes(model: nn.Module, ids_BT: Tensor, loss_of) -> int:
    """Bytes that a forward pass keeps for the backward pass, the weights themselves left out."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, ids_BT)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    total = sum(size for pointer, size in kept.items() if pointer not in weights)
    loss.backward()  # until here the graph has kept every storage alive, so no address came twice
    return total
