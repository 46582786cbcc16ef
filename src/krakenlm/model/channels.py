"""Which channels of the residual stream a layer's sum carries: all, or one group of several.

Shape letters: see ``krakenlm.model``; M is the channels of a group.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from krakenlm.config import ModelConfig


@dataclass(frozen=True)
class Channels:
    """A run of the channels of a stream.

    Where it is all of them nothing is cut or copied.

    Attributes:
        start: index of the first.
        end: index behind the last.
        width: of the stream.
    """

    start: int
    end: int
    width: int

    @classmethod
    def of_layer(cls, config: ModelConfig, index: int) -> "Channels":
        """What the sum that layer ``index`` begins carries: the groups take turns."""
        width, part = config.hidden_size, config.hidden_size // config.message_parts
        start = index % config.message_parts * part
        return cls(start, start + part, width)

    def of(self, x_KBTD: Tensor) -> Tensor:
        """These channels, as a view x_KBTM."""
        return x_KBTD if self._are_all else x_KBTD[..., self.start : self.end]

    def add(self, x_1BTD: Tensor, total_1BTM: Tensor) -> Tensor:
        """The stream with a sum added to these channels."""
        if self._are_all:
            return x_1BTD + total_1BTM
        return self._replaced(x_1BTD, self.of(x_1BTD) + total_1BTM)

    def renew(self, carried_KBTD: Tensor, new_KBTD: Tensor) -> Tensor:
        """What no sum has carried yet: the new alone in these channels, both added up elsewhere."""
        if self._are_all:
            return new_KBTD
        return self._replaced(carried_KBTD + new_KBTD, self.of(new_KBTD))

    def _replaced(self, x_KBTD: Tensor, by_KBTM: Tensor) -> Tensor:
        return torch.slice_scatter(x_KBTD, by_KBTM, -1, self.start, self.end)

    @property
    def _are_all(self) -> bool:
        return self.end - self.start == self.width
