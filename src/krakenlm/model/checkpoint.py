"""The canonical checkpoint, read in slices: a rank reads only the rows and columns it holds.

A checkpoint is a folder with ``config.json`` and ``model.safetensors`` (or its numbered parts with
an index), as ``KrakenForCausalLM.save_pretrained`` and ``krakenlm convert`` write it. Nothing is
ever unpickled.
"""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from krakenlm.config import MODEL_TYPE, ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.model.shard import Shard
from krakenlm.model.tensor_files import Tensors, read_object

_BLOCKS, _BLOCK_BYTES = 64, 4096
"""That a fingerprint looks at, of each file."""


class _Piece(NamedTuple):
    """A run of rows or columns within one branch of the file."""

    branch: int
    start: int
    end: int

    def scaled(self, size: int, offset: int) -> "_Piece":
        """The run after ``offset`` where each of these rows or columns is ``size`` of them."""
        return _Piece(self.branch, offset + self.start * size, offset + self.end * size)


def read_config(directory: Path) -> ModelConfig:
    """The model configuration of a checkpoint folder.

    Raises:
        KrakenError: no such folder or file, not a krakenlm model, misspelt keys, impossible
            values.
    """
    values = read_object(Path(directory) / "config.json")
    if values.get("model_type") != MODEL_TYPE:
        raise KrakenError(
            f"{directory}/config.json: model_type={values.get('model_type')!r} is not "
            f"{MODEL_TYPE!r}: give a model that krakenlm trained or converted"
        )
    try:
        return ModelConfig.from_config_json(values)
    except KrakenError as error:
        raise KrakenError(f"{directory}/config.json: {error}") from error


def fingerprint(directory: Path) -> str:
    """The same for equal checkpoints, and another one for any two that were trained apart.

    It is of the configuration, of sizes, and of blocks spread over the weights, so that it takes
    milliseconds for any number of them.
    """
    digest = hashlib.sha256((Path(directory) / "config.json").read_bytes())
    for file in sorted(Path(directory).glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            for block in range(_BLOCKS):
                stream.seek(block * size // _BLOCKS)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()[:12]


def read_eos_token_ids(directory: Path) -> frozenset[int]:
    """Tokens that end an answer, from ``generation_config.json`` or ``config.json``."""
    for name in ("generation_config.json", "config.json"):
        path = Path(directory) / name
        eos = read_object(path).get("eos_token_id") if path.is_file() else None
        if eos is not None:
            return frozenset([eos] if isinstance(eos, int) else eos)
    return frozenset()


def stored_dtype(directory: Path) -> torch.dtype:
    """The type of a checkpoint's weights, by its embedding.

    Raises:
        KrakenError: that is missing, or not of floating-point numbers.
    """
    config = read_config(directory)
    with Tensors(Path(directory)) as tensors:
        shape = (config.vocab_size, config.hidden_size)
        row: Tensor = tensors.slice_of("model.embed_tokens.weight", shape)[:1]
        return row.dtype


def read_shard(directory: Path, shard: Shard, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The state of one rank's ``Decoder``, plus its rows of ``lm_head.weight`` where not tied.

    Beside what it returns, it needs the memory of one tensor's part at a time.

    Args:
        directory: the checkpoint folder.
        shard: which part. Its configuration may lay the weights out for another number of branches
            than the file does, unless each branch has norms of its own.
        dtype: what the weights are turned into; None leaves each as the file has it.

    Raises:
        KrakenError: missing, truncated or misshapen tensors, by name.
    """
    return dict(stream_shard(directory, shard, dtype))


def stream_shard(
    directory: Path, shard: Shard, dtype: torch.dtype | None, *, vocabulary: range | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of ``read_shard`` one after the other, by name.

    Args:
        directory: as there, like the arguments not named here.
        shard: as there.
        dtype: as there.
        vocabulary: rows to read of the embedding and of a head that is not tied to it; by default
            all of the embedding, and of the head those that the shard holds.
    """
    with Tensors(Path(directory)) as tensors:
        stored = read_config(directory)
        yield from _ShardReader(tensors, stored, shard, dtype, vocabulary).read()


class _ShardReader:
    """Walks over a decoder's tensors and cuts each one to what the shard holds."""

    def __init__(
        self,
        tensors: Tensors,
        stored: ModelConfig,
        shard: Shard,
        dtype: torch.dtype | None,
        vocabulary: range | None,
    ) -> None:
        assert stored.norm_sets == shard.config.norm_sets, "norms cannot be laid out anew"
        self._tensors = tensors
        self._shard = shard
        self._config = stored
        self._dtype = dtype
        everything = range(shard.config.vocab_size)
        self._embedding_rows = everything if vocabulary is None else vocabulary
        self._head_rows = shard.head_rows if vocabulary is None else vocabulary

    def read(self) -> Iterator[tuple[str, Tensor]]:
        config = self._config
        d = config.hidden_size
        yield (
            "embed_tokens.weight",
            self._rows("model.embed_tokens.weight", self._embedding_rows),
        )
        if config.position == "learned":
            yield self._whole("embed_positions.weight", config.max_position_embeddings, d)
        for index in range(config.num_hidden_layers):
            yield from self._layer(f"layers.{index}.")
        if config.traits.conjunction:
            yield self._branches("conjunction.weight", config.num_sublayers, d, d)
            if config.bias:
                # Summed over ranks with other sub-layers: the first of them brings it.
                yield self._bias("conjunction.bias", self._shard.first == 0, 1, d)
        yield from self._norm("norm.", streams=1)
        if not config.tie_word_embeddings:
            yield "lm_head.weight", self._rows("lm_head.weight", self._head_rows)

    def _layer(self, prefix: str) -> Iterator[tuple[str, Tensor]]:
        config, shard = self._config, self._shard
        n, d = config.num_sublayers, config.hidden_size
        query = config.heads_per_sublayer * config.head_dim
        key = config.kv_heads_per_sublayer * config.head_dim
        up = config.ffn_dim * (2 if config.activation == "swiglu" else 1)
        for norm in ("norm_1.", "norm_2.")[: config.norms_per_layer]:
            yield from self._norm(prefix + norm, streams=config.norm_sets)
        # A bias that is added to a sum over ranks: the first of these ranks brings it.
        own = shard.config.traits.own_norms
        brings_bias = shard.tensor_index == 0 and (own or shard.first == 0)
        for name, outputs, rows, has_bias in (
            ("attention.qkv", query + 2 * key, self._qkv_rows(), config.has_qkv_bias),
            ("feed_forward.up", up, self._up_rows(), config.bias),
        ):
            yield self._cut(f"{prefix}{name}.weight", (n, outputs, d), rows, axis=1)
            if has_bias:
                yield self._cut(f"{prefix}{name}.bias", (n, outputs), rows, axis=1)
        for name, inputs, columns in (
            ("attention.output", query, self._head_columns()),
            ("feed_forward.down", config.ffn_dim, self._ffn_columns()),
        ):
            yield self._cut(f"{prefix}{name}.weight", (n, d, inputs), columns, axis=2)
            if config.bias:
                yield self._bias(f"{prefix}{name}.bias", brings_bias, config.norm_sets, d)
        for norm in ("q_norm", "k_norm") if config.qk_norm else ():
            yield self._sets(f"{prefix}attention.{norm}.weight", config.norm_sets, config.head_dim)

    def _norm(self, prefix: str, streams: int) -> Iterator[tuple[str, Tensor]]:
        config = self._config
        yield self._sets(prefix + "weight", streams, config.hidden_size)
        if config.bias and config.norm == "layernorm":
            yield self._sets(prefix + "bias", streams, config.hidden_size)

    def _sets(self, name: str, sets: int, width: int) -> tuple[str, Tensor]:
        """A stream's norm goes with its sub-layer; one shared by all branches is everywhere."""
        read = self._branches if sets == self._config.num_sublayers > 1 else self._whole
        return read(name, sets, width)

    def _whole(self, name: str, *shape: int) -> tuple[str, Tensor]:
        return name, self._copy(f"model.{name}", shape, slice(None))

    def _rows(self, name: str, rows: range) -> Tensor:
        """Some tokens' rows of the embedding or the head."""
        shape = (self._config.vocab_size, self._config.hidden_size)
        return self._copy(name, shape, slice(rows.start, rows.stop))

    def _branches(self, name: str, *shape: int) -> tuple[str, Tensor]:
        """The sub-layers held, from the leading axis."""
        return name, self._copy(f"model.{name}", shape, slice(self._shard.first, self._shard.end))

    def _bias(self, name: str, brings: bool, *shape: int) -> tuple[str, Tensor]:
        """A bias added to a sum over ranks: one of them brings it, the others bring zeros."""
        read = self._branches if shape[0] > 1 else self._whole
        if brings:
            return read(name, *shape)
        rows = self._shard.count if shape[0] > 1 else 1
        return name, torch.zeros(rows, *shape[1:], dtype=self._dtype)

    def _cut(
        self, name: str, shape: tuple[int, ...], pieces: Sequence[Sequence[_Piece]], axis: int
    ) -> tuple[str, Tensor]:
        """Rows (axis 1) or columns (axis 2) of each branch held, from wherever the file has them.

        Args:
            name: of the tensor.
            shape: in the file.
            pieces: for each branch held, what lies side by side in it.
            axis: along which.
        """
        between = (slice(None),) * (axis - 1)
        held = list(shape)
        held[0], held[axis] = len(pieces), sum(piece.end - piece.start for piece in pieces[0])
        lazy = self._tensors.slice_of(f"model.{name}", shape)
        tensor = torch.empty(held, dtype=self._dtype or lazy[:0].dtype)
        for branch, parts in enumerate(pieces):
            start = 0
            for piece in parts:
                size = piece.end - piece.start
                index = (slice(piece.branch, piece.branch + 1), *between)
                part = lazy[(*index, slice(piece.start, piece.end))]
                tensor[branch : branch + 1].narrow(axis, start, size).copy_(part)
                start += size
        self._tensors.close()
        return name, tensor

    def _copy(self, name: str, shape: tuple[int, ...], first_axis: slice) -> Tensor:
        """Rows of a tensor, in memory of their own.

        A part that is read is a view of the mapped file. To keep it, even as a whole, would keep
        the mapping, and with it every page that any other tensor was read through.
        """
        lazy = self._tensors.slice_of(name, shape)
        rows = len(range(shape[0])[first_axis])
        tensor = torch.empty((rows, *shape[1:]), dtype=self._dtype or lazy[:0].dtype)
        if rows:
            tensor.copy_(lazy[first_axis])
        self._tensors.close()
        return tensor

    def _qkv_rows(self) -> list[list[_Piece]]:
        """Of each branch held: all queries, then all keys, then all values."""
        config = self._config
        query = config.heads_per_sublayer * config.head_dim
        key = config.kv_heads_per_sublayer * config.head_dim
        rows = (
            (0, query // config.kv_heads_per_sublayer),
            (query, config.head_dim),
            (query + key, config.head_dim),
        )
        return [
            [piece.scaled(size, offset) for offset, size in rows for piece in pieces]
            for pieces in self._held(self._shard.branch_kv_heads, config.kv_heads_per_sublayer)
        ]

    def _head_columns(self) -> list[list[_Piece]]:
        """The queries' rows alone."""
        return [pieces[: len(pieces) // 3] for pieces in self._qkv_rows()]

    def _ffn_columns(self) -> list[list[_Piece]]:
        return self._held(self._shard.branch_ffn_columns, self._config.ffn_dim)

    def _up_rows(self) -> list[list[_Piece]]:
        columns = self._ffn_columns()
        if self._config.activation != "swiglu":
            return columns
        gate = self._config.ffn_dim
        return [pieces + [piece.scaled(1, gate) for piece in pieces] for pieces in columns]

    def _held(self, runs: Sequence[range], size: int) -> list[list[_Piece]]:
        """Where each branch's run over all heads or columns lies in the file's branches."""
        return [_within_branches(run, size, self._config.num_sublayers) for run in runs]


def _within_branches(held: range, size: int, branches: int) -> list[_Piece]:
    """Cut a run over all branches side by side into runs within each branch."""
    pieces = []
    for branch in range(branches):
        start = max(held.start - branch * size, 0)
        end = min(held.stop - branch * size, size)
        if start < end:
            pieces.append(_Piece(branch, start, end))
    return pieces
