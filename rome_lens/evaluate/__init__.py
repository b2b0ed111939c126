"""What did an edit change? Scores before and after (paper sections 3.3 and 3.4), side effects, sequences."""

from rome_lens.evaluate.harness.tasks import run_harness
from rome_lens.evaluate.likelihood import Prediction, locality_predictions
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.evaluate.scorers.generation import ReferenceTexts, generate_texts, score_generation
from rome_lens.evaluate.scorers.knowedit import score_knowedit
from rome_lens.evaluate.scorers.specificity import neighborhood_log_probabilities, score_specificity
from rome_lens.evaluate.scorers.zsre import score_zsre
from rome_lens.evaluate.scoring import Method, Record, Scorer, load_scores, score_edits
from rome_lens.evaluate.sequence import EditSequence, StopRule, edit_sequence, load_sequence
from rome_lens.evaluate.side_effects.compare import ModelComparison, compare_models
from rome_lens.evaluate.side_effects.forecast import forecast_bleed_over, strongest_bleed_over
from rome_lens.evaluate.side_effects.forensics import recover_updates, weight_changes
from rome_lens.evaluate.side_effects.perplexity import perplexity
from rome_lens.evaluate.summary import summarize

__all__ = [
    "EditSequence",
    "Method",
    "ModelComparison",
    "Prediction",
    "Record",
    "ReferenceTexts",
    "Scorer",
    "StopRule",
    "compare_models",
    "edit_sequence",
    "forecast_bleed_over",
    "generate_texts",
    "load_scores",
    "load_sequence",
    "locality_predictions",
    "neighborhood_log_probabilities",
    "perplexity",
    "recover_updates",
    "run_harness",
    "score_edits",
    "score_generation",
    "score_knowedit",
    "score_record",
    "score_specificity",
    "score_zsre",
    "strongest_bleed_over",
    "summarize",
    "weight_changes",
]
