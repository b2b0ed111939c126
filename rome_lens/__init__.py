"""Locate, edit and evaluate factual associations on TransformerLens models (ROME, Meng et al. 2022)."""

from rome_lens import data, edit, errors, evaluate, locate, models, plots
from rome_lens.data import EditRecord, EditRequest, Fact, load_builtin_records, load_counterfact, load_records
from rome_lens.edit import (
    Edit,
    EditLedger,
    FactMemory,
    KeyCovariance,
    MemitConfig,
    RomeConfig,
    collect_covariance,
    memit,
    rome,
)
from rome_lens.evaluate import compare_models, edit_sequence, recommend_layers, score_edits, summarize
from rome_lens.explorer import Explorer
from rome_lens.locate import CausalTrace, GaussianNoise, TraceConfig, average_effects, causal_trace, trace_facts
from rome_lens.models import Model, load_model
from rome_lens.version import __version__

__all__ = [
    "CausalTrace",
    "Edit",
    "EditLedger",
    "EditRecord",
    "EditRequest",
    "Explorer",
    "Fact",
    "FactMemory",
    "GaussianNoise",
    "KeyCovariance",
    "MemitConfig",
    "Model",
    "RomeConfig",
    "TraceConfig",
    "__version__",
    "average_effects",
    "causal_trace",
    "collect_covariance",
    "compare_models",
    "data",
    "edit",
    "edit_sequence",
    "errors",
    "evaluate",
    "load_builtin_records",
    "load_counterfact",
    "load_model",
    "load_records",
    "locate",
    "memit",
    "models",
    "plots",
    "recommend_layers",
    "rome",
    "score_edits",
    "summarize",
    "trace_facts",
]
