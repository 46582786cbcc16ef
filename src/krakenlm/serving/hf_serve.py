"""``krakenlm hf-serve``: the server of Transformers, on one device.

vLLM serves faster and over several devices; this one runs wherever Transformers does.
"""

from collections.abc import Sequence
from pathlib import Path

from krakenlm.config import ARCHITECTURE
from krakenlm.console import notes, results
from krakenlm.errors import KrakenError
from krakenlm.eval.model import check_directory
from krakenlm.model.checkpoint import read_config
from krakenlm.serving.requests import has_chat_template, streaming_request, values_of


def serve(model: Path, flags: Sequence[str]) -> None:
    """Run ``transformers serve`` until it is told to end.

    Args:
        model: a checkpoint folder with a tokenizer.
        flags: passed on.

    Raises:
        KrakenError: a folder that holds no model of krakenlm, or no server here.
    """
    check_directory(model)
    read_config(model)
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_compat import server

    run = server(ARCHITECTURE, KrakenForCausalLM)
    if run is None:
        raise KrakenError(
            "the server of Transformers is not installed: pip install 'transformers[serving]'"
        )
    if not has_chat_template(model):
        notes.print(
            f"chats will be refused: {model} has no chat_template.jinja; completions will work",
            markup=False,
        )
    values = {"--host": "localhost", "--port": "8000", **values_of(flags)}
    url = f"http://{values['--host']}:{values['--port']}"
    results.print(f"serving {model} on {url} with Transformers; once it is up:", markup=False)
    results.print(streaming_request(url, str(model)), markup=False)
    run([str(model), *flags])
