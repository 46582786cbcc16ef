"""SQuAD's two measures of an answer, where Transformers no longer brings them.

The harness's definition of ReCoRD imports them from ``transformers.data.metrics.squad_metrics``,
which newer releases of Transformers are without. The measures are those of SQuAD's official script
(Rajpurkar et al. 2016, arXiv 1606.05250).
"""

import re
import string
import sys
from collections import Counter
from importlib.util import find_spec
from types import ModuleType

_PACKAGE = "transformers.data.metrics"
_MODULE = f"{_PACKAGE}.squad_metrics"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def provide_squad_metrics() -> None:
    """Let this module be found under its old name, unless Transformers has its own."""
    if _MODULE in sys.modules or find_spec(_PACKAGE) is not None:
        return
    package = ModuleType(_PACKAGE)
    package.squad_metrics = sys.modules[__name__]  # type: ignore[attr-defined]
    sys.modules[_PACKAGE], sys.modules[_MODULE] = package, sys.modules[__name__]


def compute_exact(gold: str, answer: str) -> int:
    """1 where both say the same, whatever their case, articles and punctuation, else 0."""
    return int(_words(gold) == _words(answer))


def compute_f1(gold: str, answer: str) -> float:
    """The harmonic mean of the shares that the common words have in each."""
    wanted, given = _words(gold), _words(answer)
    if not wanted or not given:
        return float(wanted == given)
    common = (Counter(wanted) & Counter(given)).total()
    return 2 * common / (len(wanted) + len(given))


def _words(text: str) -> list[str]:
    bare = text.lower().translate(_NO_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()
