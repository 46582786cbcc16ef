"""What one rank does in a pass, in order: operators, sums begun, sums awaited."""

from typing import Literal, NamedTuple

Kind = Literal["gemm", "attention", "norm", "rms_norm", "gelu", "softmax", "copy", "move"]
"""How an operator's time is estimated: products, fused attention, LayerNorms and RMSNorms, GELU and
softmax; copies of what does not lie densely; all else that moves bytes."""

PartName = Literal["norm", "gemm", "attention", "lm_head", "message", "other"]
"""What an operator is for, as in ``krakenlm.bench.results.PART_NAMES``; ``message`` is what puts
a sum's message together."""

GroupName = Literal["streams", "parts", "everyone"]
"""Who sums or gathers: ranks with other units, with parts of the same sub-layers, or all."""


class Operator(NamedTuple):
    """One kernel.

    Attributes:
        part: what it is for.
        kind: how its time is estimated.
        shape: of a gemm its groups, M, K and N; of attention batch, query heads, key heads,
            queries, keys and head width; of a norm its rows and width; of a move nothing.
        flops: multiplications and additions; of causal attention those of scores that count.
        nbytes: read and written, each tensor once.
    """

    part: PartName
    kind: Kind
    shape: tuple[int, ...]
    flops: int
    nbytes: int


class Work(NamedTuple):
    """Operators in a row with nothing begun or awaited between them.

    Attributes:
        operators: in order.
        name: of the part of the block, as ``krakenlm.model.wiring.Part``; empty between blocks.
        layer: index of the block's layer; None between blocks.
        overlapped: a sum is under way meanwhile.
    """

    operators: tuple[Operator, ...]
    name: str = ""
    layer: int | None = None
    overlapped: bool = False


class Begin(NamedTuple):
    """A collective is begun.

    Attributes:
        number: counts the collectives of a pass.
        group: who takes part.
        nbytes: what each rank contributes.
        gathers: it gathers what ranks contribute; otherwise it sums.
    """

    number: int
    group: GroupName
    nbytes: int
    gathers: bool = False


class Wait(NamedTuple):
    """Here its result is needed."""

    number: int


Item = Work | Begin | Wait


class Program(NamedTuple):
    """One rank's pass.

    Attributes:
        items: in order.
        peak_bytes: most memory that tensors made on the way hold at once; weights, cache and
            messages under way elsewhere do not count.
    """

    items: tuple[Item, ...]
    peak_bytes: int

    @property
    def sums(self) -> list[Begin]:
        """The AllReduces, in order."""
        return [item for item in self.items if isinstance(item, Begin) and not item.gathers]

    @property
    def read_bytes(self) -> int:
        """What its products with weights read and write, nearly all of it weights."""
        return sum(
            operator.nbytes
            for item in self.items
            if isinstance(item, Work)
            for operator in item.operators
            if operator.kind == "gemm" and operator.part != "attention"
        )
