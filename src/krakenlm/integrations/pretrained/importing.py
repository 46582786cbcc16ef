"""A model of another family becomes a model folder, tensor by tensor."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.files import whole_directory, write_json
from krakenlm.integrations.fitting_tokenizer import check_fits, fitting_tokenizer
from krakenlm.integrations.pretrained.configurations import TOKENS, Understood, understand
from krakenlm.integrations.pretrained.layouts import Entry, Layout, entries
from krakenlm.integrations.pretrained.sources import Source, TensorSource
from krakenlm.integrations.rewiring import Rewired, rewired_as, write_as
from krakenlm.model.tensor_files import write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ORIGINAL_CONFIG = "original_config.json"
"""The other family's ``config.json`` in a model folder, from which an export restores it."""

_SHOWN = 3


class Imported(NamedTuple):
    """What came of a model.

    Attributes:
        rewired: its configuration, and what became of the function.
        has_tokenizer: whether the folder got one.
        notes: what people should know of it.
    """

    rewired: Rewired
    has_tokenizer: bool
    notes: list[str]


def import_model(
    source: Source,
    out: Path,
    *,
    tokenizer: str | None = None,
    wiring: str | None = None,
    num_sublayers: int | None = None,
    message_parts: int | None = None,
    late_layers: str | None = None,
) -> Imported:
    """Write a model of another family to the folder ``out``, whole or not at all.

    Its weights keep their number formats. Beside the tensors of one file it needs the memory of
    one tensor at a time.

    Args:
        source: the model.
        out: becomes a model folder, with tokenizer, chat template and generation settings.
        tokenizer: a folder or Hub name whose tokenizer is taken instead of the model's own.
        wiring: of the result, see ``rewire``, like the arguments after it.
        num_sublayers: as there; one by default.
        message_parts: as there.
        late_layers: as there.

    Raises:
        KrakenError: the model cannot be represented or is not whole, by name; the weights do not
            fit the wiring or cannot be divided so; or ``out`` cannot be written.
    """
    try:
        understood = understand(source.config)
    except KrakenError as error:
        raise KrakenError(f"{source.path}: {error}") from error
    tensors = source.tensors
    reader = _Reader(source, tensors, understood)
    try:
        wanted = rewired_as(
            reader.config,
            wiring=wiring,
            num_sublayers=num_sublayers,
            message_parts=message_parts,
            late_layers=late_layers,
        )
    except KrakenError as error:
        raise KrakenError(f"{source.path}: {error}") from error
    words = _tokenizer(source, tokenizer, wanted)
    with whole_directory(out) as folder:
        if wanted == reader.config:
            reader.write(folder, understood, words)
        else:
            whole = folder / "imported"
            whole.mkdir()
            reader.write(whole, understood, words)
            write_as(whole, folder, wanted)
            shutil.rmtree(whole)
    return Imported(Rewired.of(reader.config, wanted), words is not None, understood.notes)


class _Reader:
    """A source's tensors as ours, checked before any of them is read.

    Attributes:
        config: of the result with one branch.
    """

    def __init__(self, source: Source, tensors: TensorSource, understood: Understood) -> None:
        self._source = source
        self._tensors = tensors
        self._layout = source.layout or understood.family.layout
        layout, names = self._layout, tensors.names
        head = next((f"{head}.weight" for head in layout.heads if f"{head}.weight" in names), None)
        self._prefix = "" if f"{layout.embedding}.weight" in names else layout.prefix
        self._head = None if head is None else head.removesuffix(".weight")
        self.config = understood.config
        self._entries = self._all_entries()
        self._check()
        if self.config.tie_word_embeddings and head is not None and not self._is_tied(head):
            # As Transformers: two tensors that differ are two, whatever the configuration says.
            self.config = self.config.replace(tie_word_embeddings=False)
            self._entries = self._all_entries()

    def write(
        self, folder: Path, understood: Understood, words: "PreTrainedTokenizerFast | None"
    ) -> None:
        """Fill an empty folder."""
        source, tokens = self._source, understood.tokens
        dtype = str(self._embedding()[:1].dtype).removeprefix("torch.")
        values = {**self.config.to_hf_dict(), **tokens, "dtype": dtype}
        write_json(folder / "config.json", values)
        write_json(folder / ORIGINAL_CONFIG, source.config)
        generation = {**tokens, **_given(source.generation)}
        if generation:
            write_json(folder / "generation_config.json", generation)
        if words is not None:
            words.save_pretrained(str(folder))
        write_tensors(self._read(), folder)

    def _read(self) -> Iterator[tuple[str, Tensor]]:
        for entry in self._entries:
            yield entry.name, entry.to_ours([self._slice(*named)[:] for named in entry.theirs])
            self._tensors.close()

    def _slice(self, name: str, shape: tuple[int, ...]) -> Any:
        return self._tensors.slice_of(name, shape)

    def _all_entries(self) -> list[Entry]:
        prefix, head = self._prefix, self._head
        return list(entries(self.config, self._layout, prefix=prefix, head=head))

    def _embedding(self) -> Any:
        return self._slice(*self._entries[0].theirs[0])

    def _is_tied(self, head: str) -> bool:
        shape = (self.config.vocab_size, self.config.hidden_size)
        return torch.equal(self._slice(head, shape)[:], self._embedding()[:])

    def _check(self) -> None:
        """That all tensors are there and fit, and no others are."""
        wanted = {name: shape for entry in self._entries for name, shape in entry.theirs}
        for named in wanted.items():
            self._slice(*named)
        left_over = sorted(
            name
            for name in self._tensors.names
            if name not in wanted and not self._means_nothing(name)
        )
        self._tensors.close()
        if left_over:
            more = f" and {len(left_over) - _SHOWN} more" if len(left_over) > _SHOWN else ""
            raise KrakenError(
                f"{self._source.path}: a model of its config.json has no tensors "
                f"{', '.join(left_over[:_SHOWN])}{more}: the two do not belong together, or the "
                "model is one that cannot be represented"
            )

    def _means_nothing(self, name: str) -> bool:
        """Whether this is a head that is the embedding once more, or a buffer of older versions."""
        layout = self._layout
        if name.removesuffix(".weight") in layout.heads:
            return self.config.tie_word_embeddings
        return _is_buffer(name.removeprefix(self._prefix), layout)


def _is_buffer(name: str, layout: Layout) -> bool:
    """Whether a name without its prefix is that of one of a layer's buffers."""
    before, after = layout.layer.split("{}")
    number, dot, rest = name.removeprefix(before).partition(after)
    in_layer = name.startswith(before) and bool(dot) and number.isdigit()
    return in_layer and layout.buffers.fullmatch(rest) is not None


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Without tokens that are named as none, so that those of the configuration count."""
    return {k: v for k, v in values.items() if v is not None or k not in TOKENS}


def _tokenizer(
    source: Source, given: str | None, config: ModelConfig
) -> "PreTrainedTokenizerFast | None":
    if given is not None:
        return fitting_tokenizer(given, config.vocab_size)
    own = source.tokenizer()
    if own is not None:
        check_fits(own, str(source.path), config.vocab_size)
    return own
