"""Paper figure 2: average indirect effects by token role and layer, for residual states, MLPs and attention.

`--facts` reads known_1000.json of the authors' data set; the first `--count` facts that the model predicts are traced.
Traces are kept as they are made, so a run that was stopped goes on where it was.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pandas as pd

import rome_lens as rl
from analyses.files import parser, write_csv
from rome_lens.files import new_file
from rome_lens.locate.question import tokenize_question
from rome_lens.models import Model


def predicted_facts(model: Model, facts: Sequence[rl.Fact], count: int) -> list[rl.Fact]:
    """The first facts whose answer begins with the model's own top token."""
    questions = ((fact, tokenize_question(model, fact)) for fact in facts)
    return list(islice((fact for fact, asked in questions if int(asked.answer[0]) == asked.predicted), count))


def peaks(effects: pd.DataFrame) -> pd.DataFrame:
    """The layer of the largest average effect, for each kind and role."""
    return effects.loc[effects.groupby(["kind", "role"], sort=False)["mean"].idxmax()]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default="smollm2-135m")
    arguments.add_argument("--facts", type=Path, help="known_1000.json; the package's facts if absent")
    arguments.add_argument("--count", type=int, default=60)
    arguments.add_argument("--samples", type=int, default=10)
    arguments.add_argument("--out", type=Path, default=Path("results/figure2"), help="a folder")
    options = arguments.parse_args()

    model = rl.load_model(options.model)
    records = [record.fact for record in rl.load_builtin_records()]
    facts = predicted_facts(model, rl.load_known_facts(options.facts) if options.facts else records, options.count)
    options.out.mkdir(parents=True, exist_ok=True)
    made = rl.trace_facts(model, facts, store=options.out / "traces.jsonl", samples=options.samples)
    effects = rl.average_effects(made.traces)
    write_csv(effects, options.out / "average_effects.csv")
    write_csv(rl.average_total_effect(made.traces), options.out / "average_total_effect.csv")
    with new_file(options.out / "average_effects.html", overwrite=True) as temporary:
        rl.plot_average_effects(effects).write_html(temporary)
    print(rl.average_total_effect(made.traces).to_string(index=False), end="\n\n")
    print(peaks(effects).to_string(index=False))


if __name__ == "__main__":
    main()
