"""Which requests a model can answer, refused before any work is done."""

from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError, RequestError


def room_for_answer(config: ModelConfig, prompt_tokens: int) -> int:
    """How many tokens may follow a prompt; the last one is never fed, so it needs no position."""
    return config.max_position_embeddings - prompt_tokens + 1


def check_request(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    names: Sequence[str] = (),
) -> None:
    """Refuse prompts that cannot be answered.

    Args:
        config: of the model.
        prompts: token ids.
        max_new_tokens: that each is to be answered with at most.
        names: what to call each of several prompts.

    Raises:
        RequestError: an empty or over-long prompt, or what is no token of the vocabulary.
    """
    limit = config.max_position_embeddings
    if max_new_tokens < 1:
        raise RequestError(f"--max-new-tokens {max_new_tokens}: needs 1 or more")
    if not prompts:
        raise RequestError("there is no prompt: give at least one")
    for index, prompt in enumerate(prompts):
        name = names[index] if names else "the prompt"
        if not prompt:
            raise RequestError(f"{name} is empty: give at least one token")
        if max_new_tokens > room_for_answer(config, len(prompt)):
            raise RequestError(
                f"{name} has {len(prompt)} tokens and {max_new_tokens} new ones are asked for, "
                f"but the model's context holds {limit}: shorten the prompt or --max-new-tokens"
            )
        for token in prompt:
            if not _is_whole(token):
                raise RequestError(f"{name} holds {token!r}: a token is a whole number")
            if not 0 <= token < config.vocab_size:
                raise RequestError(
                    f"token {token} is outside the model's vocabulary of {config.vocab_size}: "
                    "use the tokenizer that the model was trained with"
                )


def _is_whole(token: object) -> bool:
    return isinstance(token, Integral) and not isinstance(token, bool)


def refuse_not_finite(logits_BV: Tensor) -> None:
    """Refuse a model whose first logits are no numbers.

    Raises:
        KrakenError: infinite or undefined logits.
    """
    if not bool(logits_BV.isfinite().all()):
        raise KrakenError(
            "the model's logits are not finite: its weights are damaged, or overflow in this "
            "--dtype; try --dtype float32"
        )
