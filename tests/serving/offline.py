"""Generate with vLLM in a process of its own, as a script: SPECIFICATION.json ANSWERS.json."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # lets a test ask each rank what it has read
}


def generate(
    model: Path,
    prompts: list[list[int]],
    folder: Path,
    *,
    new_tokens: int,
    ranks: int = 1,
    options: dict[str, Any] | None = None,
    eager: bool = True,
    environment: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Greedy answers.

    Args:
        model: checkpoint folder.
        prompts: token ids.
        folder: for the files of this call.
        new_tokens: length of each answer.
        ranks: tensor-parallel size.
        options: of krakenlm in ``--additional-config``.
        eager: without torch.compile.
        environment: further variables.

    Returns:
        ``tokens`` and ``logprobs`` of each answer to all prompts together, ``tokens_alone`` of each
        answer to one prompt after the other, ``bytes_read`` of each rank.
    """
    specification = {
        "prompts": prompts,
        "new_tokens": new_tokens,
        "engine": {
            "model": str(model),
            "tensor_parallel_size": ranks,
            "distributed_executor_backend": "mp",
            "dtype": "float32",
            "enforce_eager": eager,
            "skip_tokenizer_init": True,
            "max_num_batched_tokens": 96,  # shorter than some prompts: they go in chunks
            "max_num_seqs": 16,
            "enable_prefix_caching": False,
            "additional_config": {"krakenlm": options or {}},
        },
    }
    asked, answered = folder / "asked.json", folder / "answered.json"
    asked.write_text(json.dumps(specification))
    answered.unlink(missing_ok=True)
    run = subprocess.run(
        [sys.executable, __file__, str(asked), str(answered)],
        env={**os.environ, **SETTINGS, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-20_000:]
    found: dict[str, Any] = json.loads(answered.read_text())
    return {**found, "log": run.stdout + run.stderr}


def main(asked: str, answered: str) -> None:
    from counting import bytes_read  # ranks import it by this name
    from vllm import LLM, SamplingParams

    specification = json.loads(Path(asked).read_text())
    llm = LLM(**specification["engine"])
    sampling = SamplingParams(
        temperature=0,
        max_tokens=specification["new_tokens"],
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
    )
    prompts = [{"prompt_token_ids": ids} for ids in specification["prompts"]]

    def answers_to(asked: list[Any]) -> list[Any]:
        return [answer.outputs[0] for answer in llm.generate(asked, sampling, use_tqdm=False)]

    answers = answers_to(prompts)
    found = {
        "tokens": [list(answer.token_ids) for answer in answers],
        "logprobs": [
            [place[token].logprob for place, token in zip(a.logprobs, a.token_ids, strict=True)]
            for a in answers
        ],
        "tokens_alone": [list(answers_to([prompt])[0].token_ids) for prompt in prompts],
        "bytes_read": llm.apply_model(bytes_read),
    }
    Path(answered).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
