"""What did an edit change? Scores before and after (paper sections 3.3 and 3.4), side effects, sequences."""

from rome_lens.evaluate.answers import Answer, generate_answers
from rome_lens.evaluate.judges import Judge, ModelJudge, Preference, contains_answer, exact_match, judge_name
from rome_lens.evaluate.layers.recommending import LayerRecommendation, recommend_layers
from rome_lens.evaluate.likelihood import Prediction, locality_predictions
from rome_lens.evaluate.measuring import Method, Record, Scorer
from rome_lens.evaluate.protocols import PROTOCOLS, Protocol
from rome_lens.evaluate.scorers.counterfact import score_record
from rome_lens.evaluate.scorers.evoke import score_evoke
from rome_lens.evaluate.scorers.generation import ReferenceTexts, generate_texts, score_generation
from rome_lens.evaluate.scorers.knowedit import score_knowedit
from rome_lens.evaluate.scorers.long_answers import score_long_answers, text_overlap
from rome_lens.evaluate.scorers.mquake import score_mquake
from rome_lens.evaluate.scorers.mrlf import score_mrlf
from rome_lens.evaluate.scorers.ripple import ripple_conditions, score_ripple
from rome_lens.evaluate.scorers.robustness import score_robustness
from rome_lens.evaluate.scorers.sentiment import score_sentiment, sentiment_log_likelihood
from rome_lens.evaluate.scorers.specificity import neighborhood_log_probabilities, score_specificity
from rome_lens.evaluate.scorers.zsre import score_zsre
from rome_lens.evaluate.scoring import load_scores, score_edits
from rome_lens.evaluate.sequence import EditSequence, StopRule, edit_sequence, load_sequence
from rome_lens.evaluate.side_effects.compare import ModelComparison, compare_models
from rome_lens.evaluate.side_effects.forecast import forecast_bleed_over, strongest_bleed_over
from rome_lens.evaluate.side_effects.forensics import recover_updates, weight_changes
from rome_lens.evaluate.side_effects.perplexity import perplexity
from rome_lens.evaluate.summary import by_protocol, summarize
from rome_lens.models.loading.sentences import sentence_encoder

__all__ = [
    "PROTOCOLS",
    "Answer",
    "EditSequence",
    "Judge",
    "LayerRecommendation",
    "Method",
    "ModelComparison",
    "ModelJudge",
    "Prediction",
    "Preference",
    "Protocol",
    "Record",
    "ReferenceTexts",
    "Scorer",
    "StopRule",
    "by_protocol",
    "compare_models",
    "contains_answer",
    "edit_sequence",
    "exact_match",
    "forecast_bleed_over",
    "generate_answers",
    "generate_texts",
    "judge_name",
    "load_scores",
    "load_sequence",
    "locality_predictions",
    "neighborhood_log_probabilities",
    "perplexity",
    "recommend_layers",
    "recover_updates",
    "ripple_conditions",
    "score_edits",
    "score_evoke",
    "score_generation",
    "score_knowedit",
    "score_long_answers",
    "score_mquake",
    "score_mrlf",
    "score_record",
    "score_ripple",
    "score_robustness",
    "score_sentiment",
    "score_specificity",
    "score_zsre",
    "sentence_encoder",
    "sentiment_log_likelihood",
    "strongest_bleed_over",
    "summarize",
    "text_overlap",
    "weight_changes",
]
