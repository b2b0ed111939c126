"""Locate, edit and evaluate factual associations on TransformerLens models (ROME, Meng et al. 2022)."""

from rome_lens.data.readers.builtin import load_builtin_records
from rome_lens.data.readers.counterfact import load_counterfact
from rome_lens.data.readers.knowedit import load_knowedit
from rome_lens.data.readers.known_facts import load_known_facts
from rome_lens.data.readers.snippets import AttributeSnippets, load_attribute_snippets
from rome_lens.data.readers.zsre import load_zsre
from rome_lens.data.records import Continuation, EditRecord, EditRequest, Fact, QuestionRecord
from rome_lens.edit.artifact.applied import AppliedEdit, applied_edits, revert_edits
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.edit.artifact.update import Update
from rome_lens.edit.covariance.collect import collect_covariance
from rome_lens.edit.covariance.corpora import Texts, texts_from_dataset, texts_from_file, texts_from_model
from rome_lens.edit.covariance.diagnostics import CovarianceReport
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.methods.alphaedit import AlphaEditConfig, alphaedit
from rome_lens.edit.methods.emmet import EmmetConfig, emmet
from rome_lens.edit.methods.finetune import FinetuneConfig, finetune
from rome_lens.edit.methods.knowledge_neurons import KnowledgeNeurons, KnowledgeNeuronsConfig, kn, knowledge_neurons
from rome_lens.edit.methods.memit import MemitConfig, memit
from rome_lens.edit.methods.mend.config import MendConfig
from rome_lens.edit.methods.mend.editor import MendEditor, mend
from rome_lens.edit.methods.mend.training import train_mend
from rome_lens.edit.methods.rome import RomeConfig, rome
from rome_lens.edit.presets.layers import suggested_layer
from rome_lens.edit.search.contexts import sample_contexts
from rome_lens.edit.search.targets import MemitTargets, memit_targets
from rome_lens.errors import (
    CovarianceError,
    DataWarning,
    EditError,
    EditWarning,
    FormatError,
    NotFiniteError,
    UnavailableError,
    VersionWarning,
)
from rome_lens.evaluate.harness.tasks import run_harness
from rome_lens.evaluate.likelihood import Prediction, locality_predictions
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.evaluate.scorers.generation import ReferenceTexts, generate_texts, score_generation
from rome_lens.evaluate.scorers.knowedit import score_knowedit
from rome_lens.evaluate.scorers.specificity import neighborhood_log_probabilities, score_specificity
from rome_lens.evaluate.scorers.zsre import score_zsre
from rome_lens.evaluate.scoring import load_scores, score_edits
from rome_lens.evaluate.sequence import EditSequence, StopRule, edit_sequence, load_sequence
from rome_lens.evaluate.side_effects.compare import ModelComparison, compare_models
from rome_lens.evaluate.side_effects.forecast import forecast_bleed_over, strongest_bleed_over
from rome_lens.evaluate.side_effects.forensics import recover_updates, weight_changes
from rome_lens.evaluate.side_effects.perplexity import perplexity
from rome_lens.evaluate.summary import summarize
from rome_lens.explorer import Explorer
from rome_lens.locate.config import TraceConfig
from rome_lens.locate.corruption import (
    GaussianNoise,
    MultivariateGaussianNoise,
    StudentNoise,
    TokenReplacement,
    UniformNoise,
    same_length_subject,
)
from rome_lens.locate.effects import average_effects, average_total_effect
from rome_lens.locate.many_facts import TracedFacts, load_traces, trace_facts
from rome_lens.locate.restoring import State, predict_restored, restore_states
from rome_lens.locate.robustness import robustness_report
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import causal_trace
from rome_lens.models import optimize_layout
from rome_lens.models.loading.load import load_model
from rome_lens.plots import (
    plot_average_effects,
    plot_comparison,
    plot_effect_maps,
    plot_noise_levels,
    plot_robustness,
    plot_scores,
    plot_sequence,
    plot_severed,
    plot_trace,
    plot_traces,
)
from rome_lens.version import __version__

__all__ = [
    "AlphaEditConfig",
    "AppliedEdit",
    "AttributeSnippets",
    "CausalTrace",
    "Continuation",
    "CovarianceError",
    "CovarianceReport",
    "DataWarning",
    "Edit",
    "EditError",
    "EditHealth",
    "EditRecord",
    "EditRequest",
    "EditSequence",
    "EditWarning",
    "EmmetConfig",
    "Explorer",
    "Fact",
    "FinetuneConfig",
    "FormatError",
    "GaussianNoise",
    "KeyCovariance",
    "KnowledgeNeurons",
    "KnowledgeNeuronsConfig",
    "MemitConfig",
    "MemitTargets",
    "MendConfig",
    "MendEditor",
    "ModelComparison",
    "MultivariateGaussianNoise",
    "NotFiniteError",
    "Prediction",
    "QuestionRecord",
    "ReferenceTexts",
    "RomeConfig",
    "State",
    "StopRule",
    "StudentNoise",
    "Texts",
    "TokenReplacement",
    "TraceConfig",
    "TracedFacts",
    "UnavailableError",
    "UniformNoise",
    "Update",
    "VersionWarning",
    "__version__",
    "alphaedit",
    "applied_edits",
    "average_effects",
    "average_total_effect",
    "causal_trace",
    "collect_covariance",
    "compare_models",
    "edit_sequence",
    "emmet",
    "finetune",
    "forecast_bleed_over",
    "generate_texts",
    "kn",
    "knowledge_neurons",
    "load_attribute_snippets",
    "load_builtin_records",
    "load_counterfact",
    "load_knowedit",
    "load_known_facts",
    "load_model",
    "load_scores",
    "load_sequence",
    "load_traces",
    "load_zsre",
    "locality_predictions",
    "memit",
    "memit_targets",
    "mend",
    "neighborhood_log_probabilities",
    "optimize_layout",
    "perplexity",
    "plot_average_effects",
    "plot_comparison",
    "plot_effect_maps",
    "plot_noise_levels",
    "plot_robustness",
    "plot_scores",
    "plot_sequence",
    "plot_severed",
    "plot_trace",
    "plot_traces",
    "predict_restored",
    "recover_updates",
    "restore_states",
    "revert_edits",
    "robustness_report",
    "rome",
    "run_harness",
    "same_length_subject",
    "sample_contexts",
    "score_edits",
    "score_generation",
    "score_knowedit",
    "score_record",
    "score_specificity",
    "score_zsre",
    "strongest_bleed_over",
    "suggested_layer",
    "summarize",
    "texts_from_dataset",
    "texts_from_file",
    "texts_from_model",
    "trace_facts",
    "train_mend",
    "weight_changes",
]
