"""Runs llama.cpp (the package xllamacpp) in a process of its own, so that a crash of it fails one test with its log.

`python -m tests.llama_cpp FILE` reads the job (JSON) from stdin and writes the answers to the file.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

_SECONDS = 300


def answers(
    model: Path, prompts: list[str] | list[list[int]], *, lora: Path | None = None, top: int = 20, tokens: int = 1
) -> list[dict[str, Any]]:
    """For each prompt (a text, or its tokens) the greedy continuation, and log-probabilities of its first token.

    Returns:
        For each prompt `text`, and `top`: {token id: log-probability} of the most likely ones.
    """
    pytest.importorskip("xllamacpp")
    job = {"model": str(model), "prompts": prompts, "lora": lora and str(lora), "top": top, "tokens": tokens}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "answers.json"
        run = subprocess.run(
            [sys.executable, "-X", "faulthandler", "-m", "tests.llama_cpp", str(out)],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            cwd=Path(__file__).parent.parent,
        )
        assert run.returncode == 0, f"llama.cpp ended with {run.returncode}:\n{run.stderr[-3000:]}"
        found = json.loads(out.read_text())
    return [{"text": one["text"], "top": {int(token): value for token, value in one["top"]}} for one in found]


def _run(job: dict[str, Any]) -> list[dict[str, Any]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["model"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 256, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    if job["lora"]:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(job["lora"], 1.0)]
    server = xllamacpp.Server(params)
    found = []
    for prompt in job["prompts"]:
        asked = {"prompt": prompt, "max_tokens": job["tokens"], "temperature": 0, "logprobs": job["top"]}
        asked["ignore_eos"] = True  # an end of the text at once would come without log-probabilities
        (choice,) = server.handle_completions(asked)["choices"]
        first = choice["logprobs"]["content"][0]["top_logprobs"]
        found.append({"text": choice["text"], "top": [(token["id"], token["logprob"]) for token in first]})
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(_run(json.load(sys.stdin))))
