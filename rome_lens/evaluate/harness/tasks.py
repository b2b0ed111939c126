"""General ability: tasks of EleutherAI's lm-evaluation-harness, on an edited or unedited model."""

import importlib.util
import os
from collections.abc import Sequence

import pandas as pd

from rome_lens.checking import check_whole, checked
from rome_lens.errors import UnavailableError
from rome_lens.models import Model


@checked
def run_harness(
    model: Model,
    tasks: Sequence[str],
    *,
    tasks_in: str | os.PathLike[str] | None = None,
    shots: int | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Runs tasks of lm-evaluation-harness. To evaluate an edit, call it inside `with edit.applied(model)`.

    Args:
        model: Model to run; it and torch's random state are left unchanged.
        tasks: Names of tasks ("hellaswag", "winogrande"). Most download their data from the Hugging Face hub.
        tasks_in: Folder with your own tasks as YAML files of the harness; the harness's own are then not available.
        shots: Number of few-shot examples; None: the task's default.
        limit: Number of documents of each task; None: all.
        progress: Show bars.

    Returns:
        A row for each task, metric and filter: task, metric, filter, value, stderr (NaN if the harness gives none), and
        n, the number of documents.

    Raises:
        UnavailableError: the harness is not installed.
        ValueError: no tasks, or one that samples its texts (here they are decoded greedily).
    """
    if isinstance(tasks, str) or not tasks:
        raise ValueError(f"tasks is {tasks!r}, expected a list of one task's name or more.")
    check_whole(least=0, shots=shots)
    check_whole(limit=limit)
    if importlib.util.find_spec("lm_eval") is None:
        raise UnavailableError("These tasks need lm-evaluation-harness: pip install 'rome-lens[harness]'.")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from rome_lens.evaluate.harness.model import HarnessModel

    found = simple_evaluate(
        HarnessModel(model, progress=progress),
        tasks=list(tasks),
        task_manager=TaskManager(
            include_path=None if tasks_in is None else os.fspath(tasks_in), include_defaults=tasks_in is None
        ),
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=0,
        log_samples=False,
        random_seed=None,
        numpy_random_seed=None,
        torch_random_seed=None,
    )
    rows = []
    for task, results in found["results"].items():
        for name, value in results.items():
            metric, _, kept = name.partition(",")
            if kept and not metric.endswith("_stderr"):
                stderr = pd.to_numeric(results.get(f"{metric}_stderr,{kept}"), errors="coerce")
                rows.append((task, metric, kept, value, stderr, found["n-samples"][task]["effective"]))
    return pd.DataFrame(rows, columns=["task", "metric", "filter", "value", "stderr", "n"])
