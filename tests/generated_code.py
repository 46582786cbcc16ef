"""The order of operators in code that a compiler made."""

import re


def calls(code: str, attention: str) -> list[str]:
    """The operators that matter, in the order in which generated code calls them.

    Args:
        code: Python, of Inductor.
        attention: pattern of attention's operator under ``torch.ops``.
    """
    pattern = rf"torch\.ops\.(?:krakenlm\.((?:begin|await)_sum)|{attention})[.\w]*\("
    return [found[1] or "attention" for found in re.finditer(pattern, code)]


def overlapped(layers: int) -> list[str]:
    """Where each layer's sum but the last runs beside the next layer's attention."""
    layer = ["begin_sum", "attention", "await_sum"]
    return ["attention", *layer * (layers - 1), "begin_sum", "await_sum"]
