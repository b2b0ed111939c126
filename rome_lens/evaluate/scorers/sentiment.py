"""ConvSent: does an edited model hold an opinion, and still speak of the topic? (Mitchell et al. 2022, SERAC)."""

import math

import torch

from rome_lens.checking import checked
from rome_lens.data.readers.behaviour import SENTIMENT
from rome_lens.data.records import Continuation, Question, QuestionRecord
from rome_lens.evaluate.likelihood import token_log_probabilities
from rome_lens.models import Model


@checked
def sentiment_log_likelihood(model: Model, record: QuestionRecord) -> float:
    """The mean log-probability of a token of the wanted opinion, in nats: what `score_sentiment` takes as `before`.

    Raises:
        ValueError: The record is of another data set.
    """
    return _mean(model, [Continuation(asked.prompt, asked.text) for asked in _asked(record)])


@checked
def score_sentiment(model: Model, record: QuestionRecord, *, before: float) -> dict[str, float]:
    """The scores of a ConvSent record on the model as it is, from 0 to 1.

    With l the mean log-probability of a token, over all sentences of an opinion after their questions:

    - z_sentiment: 1 / (1 + exp(l(other opinion) - l(wanted one))).
    - z_topic: exp(l(wanted one) - the same before the edit), at most 1: whether the model still speaks as people do.
    - sentiment: their product.

    Definitions: `es_sentiment` of eric-mitchell/serac, metrics.py (arXiv 2206.06520). The sentence that is written is
    not among those scored, and each is asked for in another wording.

    Args:
        before: `sentiment_log_likelihood` of the model before the edit.

    Raises:
        ValueError: The record is of another data set.
    """
    wanted = sentiment_log_likelihood(model, record)
    other = _mean(model, [Continuation(asked.prompt, str(asked.instead)) for asked in _asked(record)])
    z_sentiment = torch.sigmoid(torch.tensor(wanted - other, dtype=torch.float64)).item()
    z_topic = math.exp(min(0.0, wanted - before))
    return {"sentiment": z_sentiment * z_topic, "z_sentiment": z_sentiment, "z_topic": z_topic}


def _asked(record: QuestionRecord) -> list[Question]:
    asked = [each for each in record.portability.get(SENTIMENT, ()) if isinstance(each, Question) and each.instead]
    if not asked:
        raise ValueError(
            f"Record {record.case_id} holds no opinions, expected some in its portability, {SENTIMENT!r}, each with "
            "the other one as `instead`, as load_records gives them of ConvSent."
        )
    return asked


def _mean(model: Model, sentences: list[Continuation]) -> float:
    return float(torch.cat(token_log_probabilities(model, sentences)).double().mean())
