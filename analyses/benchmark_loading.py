"""How much memory and time `load_model` takes beside loading in the plain way, on a made-up model.

The plain way is Hugging Face's `from_pretrained` and TransformerLens' own conversion (a Bridge where it has none).
Each runs in a process of its own. `peak` is the most memory that the process held beyond what it held before loading,
as a share of the weights; files that are mapped into memory count. `seconds_to_plain` is the time as a share of what
the plain way takes.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

from .common.made_up import save_made_up
from .common.manifest import write_manifest
from .common.options import parser, write_csv

_CHILD = """
import json, pathlib, resource, sys, time, torch, transformers
import rome_lens as rl
from rome_lens.models.kinds import HookedTransformer

folder, dtype, way = sys.argv[1], getattr(torch, sys.argv[2]), sys.argv[3]

def plain():
    hf_model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    try:
        from transformer_lens import loading_from_pretrained as names
        cfg = names.get_pretrained_model_config(folder, device="cpu", dtype=dtype)
        weights = names.get_pretrained_state_dict(folder, cfg, hf_model, dtype=dtype)
        model = HookedTransformer(cfg, tokenizer)
        model.load_and_process_state_dict(
            weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
        return model
    except (ImportError, NotImplementedError):
        from transformer_lens.model_bridge import TransformerBridge
        return TransformerBridge.boot_transformers(folder, hf_model=hf_model, tokenizer=tokenizer, device="cpu")

held = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
start = time.perf_counter()
model = plain() if way == "plain" else rl.load_model(folder, dtype=dtype, device="cpu")
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
weights = sum({p.data_ptr(): p.nbytes for p in model.parameters()}.values())
print(json.dumps({"seconds": seconds, "weights_mb": weights / 1e6, "peak": (peak - held) / weights}))
"""


def llama(**sizes: Any) -> transformers.LlamaConfig:
    shared = {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_attention_heads": 16,
        "max_position_embeddings": 1024,
    }
    return transformers.LlamaConfig(**shared, **sizes)


FAMILIES = {
    "gpt2": lambda: transformers.GPT2Config(vocab_size=8000, n_embd=1024, n_layer=9, n_head=16, n_positions=512),
    "llama": lambda: llama(vocab_size=8000, num_hidden_layers=9),
    "gemma2": lambda: transformers.Gemma2Config(
        vocab_size=8000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=10,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=64,
    ),
    "vocabulary": lambda: llama(vocab_size=256_000, num_hidden_layers=4, tie_word_embeddings=True),
}
"""Models of more than 400 MB in float32; the last has most of its weights in the vocabulary; TransformerLens has no
HookedTransformer for gemma2, out of a folder."""


def save(folder: Path, family: str, stored: torch.dtype) -> None:
    """Saves a random model and a tokenizer."""
    config = FAMILIES[family]()
    config.n_ctx = config.max_position_embeddings  # TransformerLens asks for GPT-2's old name
    save_made_up(folder, config, stored)


def measure(folder: Path, dtype: str, way: str) -> dict[str, float]:
    """Seconds and peak of loading a folder in one way, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(folder), dtype, way],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise RuntimeError(f"Loading {folder} in the way {way!r} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    arguments.add_argument("--stored", nargs="+", default=["float32", "bfloat16"], help="dtypes of the files")
    arguments.add_argument("--dtype", default="float32", help="dtype to load in")
    arguments.add_argument("--out", type=Path, default=Path("results/benchmark_loading"), help="a folder")
    options = arguments.parse_args(argv)

    rows = []
    for family in options.families:
        for stored in options.stored:
            with tempfile.TemporaryDirectory() as folder:
                save(Path(folder), family, getattr(torch, stored))
                for way in ("plain", "load_model"):
                    found = measure(Path(folder), options.dtype, way)
                    rows.append({"family": family, "stored": stored, "way": way, **found})
    frame = pd.DataFrame(rows)
    plain = frame.groupby(["family", "stored"])["seconds"].transform("first")
    frame["seconds_to_plain"] = frame["seconds"] / plain
    write_csv(frame, options.out / "loading.csv")
    write_manifest(options, None)
    print(frame.to_string(index=False))


if __name__ == "__main__":
    main()
