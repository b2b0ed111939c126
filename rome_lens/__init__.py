"""Locate, edit and evaluate factual associations on TransformerLens models (ROME, Meng et al. 2022)."""

from rome_lens.datasets import load_builtin_records, load_counterfact, load_known_facts
from rome_lens.edit.contexts import sample_contexts
from rome_lens.edit.covariance import KeyCovariance, collect_covariance
from rome_lens.edit.finetune import FinetuneConfig, finetune
from rome_lens.edit.health import EditHealth
from rome_lens.edit.rome import RomeConfig, rome
from rome_lens.edit.weights import AppliedEdit, Edit, Update
from rome_lens.errors import CovarianceError, EditError, EditWarning, FormatError, UnavailableError
from rome_lens.evaluate.counterfact import evaluate, score_record
from rome_lens.evaluate.perplexity import perplexity
from rome_lens.evaluate.sequence import EditSequence, StopRule, load_sequence, rome_sequence
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
from rome_lens.plots import plot_average_effects, plot_robustness, plot_scores, plot_sequence, plot_trace
from rome_lens.version import __version__

__all__ = [
    "AppliedEdit",
    "CausalTrace",
    "CovarianceError",
    "Edit",
    "EditError",
    "EditHealth",
    "EditRecord",
    "EditRequest",
    "EditSequence",
    "EditWarning",
    "Fact",
    "FinetuneConfig",
    "FormatError",
    "GaussianNoise",
    "KeyCovariance",
    "MultivariateGaussianNoise",
    "RomeConfig",
    "State",
    "StopRule",
    "StudentNoise",
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
    "finetune",
    "load_builtin_records",
    "load_counterfact",
    "load_known_facts",
    "load_model",
    "load_sequence",
    "load_traces",
    "optimize_layout",
    "perplexity",
    "plot_average_effects",
    "plot_robustness",
    "plot_scores",
    "plot_sequence",
    "plot_trace",
    "restore_states",
    "robustness_report",
    "rome",
    "rome_sequence",
    "same_length_subject",
    "sample_contexts",
    "score_record",
    "summarize",
    "trace_facts",
]
