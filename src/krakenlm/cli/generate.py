"""``krakenlm generate``: text from a model on one device or several."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.cli.options import (
    CheckOption,
    DeviceOption,
    LinkOption,
    SublayersOption,
    TensorParallelOption,
    ThreadsOption,
    TimeoutOption,
    TransportOption,
    check_if,
)
from krakenlm.errors import KrakenError
from krakenlm.ranks.failures import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from krakenlm.data.prompts import Prompt

_Model = Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a saved model.")]
_Prompt = Annotated[
    str | None, typer.Option(help="The text to continue; with --chat, the message to answer.")
]
_PromptFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Texts to continue: one a line, or the prompt or text of each object of a .jsonl "
        "file; - is standard input.",
    ),
]
_Chat = Annotated[
    bool,
    typer.Option(
        "--chat",
        help="Prompts are a user's messages: the model's chat template makes prompts of them.",
    ),
]
_System = Annotated[
    str | None, typer.Option(metavar="TEXT", help="With --chat: what the model is told first.")
]
_BatchSize = Annotated[
    int,
    typer.Option(
        help="Prompts of a file that are answered at once; the memory for keys and values grows "
        "with it."
    ),
]
_Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End an answer before this text; may be given several times.",
    ),
]
_Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Also write prompts and answers, a JSON object a line; - is standard output, in "
        "place of the text.",
    ),
]
_Devices = Annotated[
    int | None,
    typer.Option(help="Processes to share the model out to; under torchrun, its own number."),
]
_MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        help="Tokens to generate at most; by default 64, with --chat 512, or what the context "
        "leaves."
    ),
]
_Temperature = Annotated[float, typer.Option(help="0 is greedy; above, tokens are drawn.")]
_TopK = Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 is all.")]
_TopP = Annotated[
    float, typer.Option(help="Draw from the likeliest tokens that reach this probability.")
]
_Seed = Annotated[int, typer.Option(help="Seed of the draws.")]
_DType = Annotated[
    str, typer.Option(help="auto (float32 on CPUs, else bfloat16), float32, bfloat16, float16.")
]
_Placement = Annotated[
    str | None,
    typer.Option(
        help="Sub-layers (or KV heads) on each device, as in 3,1, or auto to measure and "
        "balance them; by default as even as possible."
    ),
]
_PrefillChunks = Annotated[
    int, typer.Option(help="Parts of the prompt whose AllReduces hide behind one another.")
]
_ShowStats = Annotated[
    bool, typer.Option("--stats", help="Print time to first token and per token as well.")
]


def generate(
    model: _Model,
    prompt: _Prompt = None,
    prompt_file: _PromptFile = None,
    chat: _Chat = False,
    system: _System = None,
    batch_size: _BatchSize = 16,
    devices: _Devices = None,
    max_new_tokens: _MaxNewTokens = None,
    stop: _Stop = None,
    temperature: _Temperature = 0.0,
    top_k: _TopK = 0,
    top_p: _TopP = 1.0,
    seed: _Seed = 0,
    dtype: _DType = "auto",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    sublayers: SublayersOption = None,
    placement: _Placement = None,
    tensor_parallel: TensorParallelOption = 1,
    prefill_chunks: _PrefillChunks = 1,
    transport: TransportOption = "auto",
    link: LinkOption = "real",
    timeout: TimeoutOption = TIMEOUT_SECONDS,
    json_file: _Json = None,
    show_stats: _ShowStats = False,
    check: CheckOption = False,
) -> None:
    """Continue prompts or answer messages, on one device or on several that share the model."""
    from krakenlm.data.chat import chat_if
    from krakenlm.engine.generation import Ranks
    from krakenlm.engine.options import EngineOptions
    from krakenlm.engine.printing import print_answers
    from krakenlm.engine.sampling import Sampling
    from krakenlm.ranks.placement import parse_placement
    from krakenlm.transport.links import Link

    check_if(check, model)
    options = EngineOptions(
        sublayers=sublayers,
        placement=None if placement is None else parse_placement(placement),
        tensor_parallel=tensor_parallel,
        transport=transport,  # type: ignore[arg-type]
        link=Link.parse(link),
        prefill_chunks=prefill_chunks,
    )
    print_answers(
        model,
        _prompts(prompt, prompt_file),
        ranks=Ranks(devices, device, threads, timeout),
        chat=chat_if(chat, system),
        json_file=json_file,
        max_new_tokens=max_new_tokens,
        stop=stop or (),
        batch_size=batch_size,
        sampling=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
        dtype=dtype,
        options=options,
        show_stats=show_stats,
    )


def _prompts(prompt: str | None, file: str | None) -> "list[Prompt]":
    """What is to be continued; one of the two has to be given."""
    from krakenlm.data.prompts import STANDARD_INPUT, Prompt, read_prompts
    from krakenlm.ranks.launch import under_torchrun

    if (prompt is None) == (file is None):
        raise typer.BadParameter("give one of the two", param_hint="--prompt / --prompt-file")
    if prompt is not None:
        return [Prompt(prompt)]
    assert file is not None
    if file == STANDARD_INPUT and under_torchrun():
        raise KrakenError(
            "--prompt-file -: the processes of torchrun cannot all read standard input: name a file"
        )
    return read_prompts(file)
