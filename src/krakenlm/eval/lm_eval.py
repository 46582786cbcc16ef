"""lm-evaluation-harness's own command, told about our models.

    python -m krakenlm.eval.lm_eval run --model krakenlm --model_args pretrained=DIR --tasks boolq

Everything behind the module's name is the harness's. ``--model krakenlm`` is there, and
``--model hf`` loads our models, because this package is imported before the harness looks for them.
"""

import sys

from krakenlm.errors import KrakenError
from krakenlm.eval.harness import require_harness
from krakenlm.eval.squad_metrics import provide_squad_metrics


def main() -> None:
    """Run the harness's command line; what the user can mend is one line, with exit code 2."""
    try:
        require_harness()
        provide_squad_metrics()
        from lm_eval.__main__ import cli_evaluate

        import krakenlm.eval.harness_model  # noqa: F401  registers --model krakenlm

        cli_evaluate()
    except KrakenError as error:
        sys.exit(_refused(error))


def _refused(error: KrakenError) -> int:
    print(f"krakenlm: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    main()
