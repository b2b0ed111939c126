"""Locate, edit and evaluate factual associations on TransformerLens models (ROME, Meng et al. 2022)."""

from rome_lens.datasets import load_builtin_records, load_counterfact, load_known_facts
from rome_lens.edit.collecting import collect_covariance
from rome_lens.edit.contexts import sample_contexts
from rome_lens.edit.covariance import KeyCovariance
from rome_lens.edit.determination import CovarianceReport
from rome_lens.edit.rome import RomeConfig, rome
from rome_lens.edit.texts import Texts, texts_from_dataset, texts_from_file, texts_from_model
from rome_lens.edit.weights import AppliedEdit, Edit, Update
from rome_lens.errors import CovarianceError, EditError, FormatError, UnavailableError
from rome_lens.evaluate.counterfact import evaluate, score_record
from rome_lens.evaluate.summary import summarize
from rome_lens.facts import EditRecord, EditRequest, Fact
from rome_lens.loading import load_model
from rome_lens.locate.corruption import (
    GaussianNoise,
    MultivariateGaussianNoise,
    StudentNoise,
    TokenReplacement,
    UniformNoise,
    same_length_subject,
)
from rome_lens.locate.effects import average_effects, average_total_effect
from rome_lens.locate.restoring import State, restore_states
from rome_lens.locate.robustness import robustness_report
from rome_lens.locate.store import TracedFacts, load_traces, trace_facts
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import causal_trace
from rome_lens.models import optimize_layout
from rome_lens.plots import plot_average_effects, plot_convergence, plot_robustness, plot_scores, plot_trace
from rome_lens.version import __version__

__all__ = [
    "AppliedEdit",
    "CausalTrace",
    "CovarianceError",
    "CovarianceReport",
    "Edit",
    "EditError",
    "EditRecord",
    "EditRequest",
    "Fact",
    "FormatError",
    "GaussianNoise",
    "KeyCovariance",
    "MultivariateGaussianNoise",
    "RomeConfig",
    "State",
    "StudentNoise",
    "Texts",
    "TokenReplacement",
    "TracedFacts",
    "UnavailableError",
    "UniformNoise",
    "Update",
    "__version__",
    "average_effects",
    "average_total_effect",
    "causal_trace",
    "collect_covariance",
    "evaluate",
    "load_builtin_records",
    "load_counterfact",
    "load_known_facts",
    "load_model",
    "load_traces",
    "optimize_layout",
    "plot_average_effects",
    "plot_convergence",
    "plot_robustness",
    "plot_scores",
    "plot_trace",
    "restore_states",
    "robustness_report",
    "rome",
    "same_length_subject",
    "sample_contexts",
    "score_record",
    "summarize",
    "texts_from_dataset",
    "texts_from_file",
    "texts_from_model",
    "trace_facts",
]
