"""What a model says, one whole forward pass a token: no cache, no padding, no library's loop."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Choice = Callable[[Tensor], Tensor]


def likeliest(logits_BV: Tensor) -> Tensor:
    """The greedy token of each sequence."""
    return logits_BV.argmax(-1)


@torch.no_grad()
def continued(
    model: nn.Module, ids_BT: Tensor, new_tokens: int, choose: Choice = likeliest
) -> tuple[Tensor, Tensor]:
    """The new tokens [B, new_tokens], and the logits that they were chosen by.

    Args:
        model: a causal language model of Hugging Face's form, in evaluation mode.
        ids_BT: prompts of one length.
        new_tokens: how many.
        choose: given the logits [B, V] of the next token, one of each row.
    """
    found = []
    for _ in range(new_tokens):
        found.append(model(ids_BT, use_cache=False).logits[:, -1])
        ids_BT = torch.cat((ids_BT, choose(found[-1])[:, None]), dim=1)
    return ids_BT[:, -new_tokens:], torch.stack(found, dim=1)


def greedy(model: nn.Module, prompt: list[int], new_tokens: int) -> list[int]:
    """The greedy tokens after one prompt."""
    tokens_BN, _ = continued(model, torch.tensor([prompt]), new_tokens)
    return tokens_BN[0].tolist()


@torch.no_grad()
def best_of_beams(model: nn.Module, prompt: list[int], new_tokens: int, beams: int) -> list[int]:
    """The likeliest sequence that a search keeping ``beams`` at a time ends with."""
    kept = [(0.0, prompt)]
    for _ in range(new_tokens):
        longer = []
        for score, ids in kept:
            logits_V = model(torch.tensor([ids]), use_cache=False).logits[0, -1]
            values, tokens = logits_V.log_softmax(-1).topk(beams)
            pairs = zip(values.tolist(), tokens.tolist(), strict=True)
            longer += [(score + value, [*ids, token]) for value, token in pairs]
        kept = sorted(longer, reverse=True)[:beams]
    return kept[0][1][len(prompt) :]
