"""Paper figure 3: what restoring the state at the subject's last token brings back, layer by layer, as it is and with
the MLPs or the attentions above it severed (held at their corrupted values). Averages over facts.

Traces are kept as they are made, so a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

import rome_lens as rl
from analyses.common.figures import write_figure
from analyses.common.manifest import write_manifest
from analyses.common.options import add_fact_arguments, chosen_facts, parsed, parser, write_csv
from rome_lens.data.records import subject_range

SEVERED = ((), ("mlp",), ("attn",))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    add_fact_arguments(arguments, count=20)
    arguments.add_argument("--out", type=Path, default=Path("results/figure3"), help="a folder")
    options = parsed(arguments, argv, full={"count": 1000, "samples": 10})

    model = rl.load_model(options.model)
    traces: list[rl.CausalTrace] = []
    for fact in tqdm(chosen_facts(model, options), desc="severed traces", unit="fact"):
        last = subject_range(model, fact)[1][-1]
        for severed in SEVERED:
            traces += rl.trace_facts(
                model,
                [fact],
                kinds=["resid"],
                out=options.out / "traces",
                positions=[last],
                severed=severed,
                samples=options.samples,
                progress=False,
            ).traces
    effects = rl.average_effects(traces)
    write_csv(effects, options.out / "severed.csv")
    write_figure(rl.plot_severed(effects), options.out / "figure3.html")
    write_manifest(options, model, corruption=repr(traces[0].config.corruption))
    print(effects.loc[effects.groupby("kind", sort=False)["mean"].idxmax()].to_string(index=False))


if __name__ == "__main__":
    main()
