"""MRLF-Bench: questions of four ranks about a text that was written into the model (zeaoji/EvoEdit)."""

import warnings
from statistics import fmean
from typing import Any

import torch

from rome_lens.calling import undrawn
from rome_lens.checking import check_whole, checked
from rome_lens.data.records import Continuation, Question, QuestionRecord
from rome_lens.errors import UnavailableError
from rome_lens.evaluate.answers import generate_answers
from rome_lens.evaluate.judges import contains_answer
from rome_lens.evaluate.likelihood import predict_tokens, token_log_probabilities
from rome_lens.evaluate.scorers.long_answers import text_overlap
from rome_lens.models import Model

_ASKED = "Directly answer the Query.\n\nQuery: {}\nAnswer:"
_WEIGHTS = (0.1, 0.2, 0.3, 0.4)
NEW_TOKENS = 30


@checked
def score_mrlf(model: Model, record: QuestionRecord, *, new_tokens: int = NEW_TOKENS) -> dict[str, float]:
    """The scores of an MRLF-Bench record on the model as it is, for each rank of question and as means over the ranks.

    As published (zeaoji/EvoEdit, qa_pipeline.py), with the question in "Directly answer the Query.":

    - greedy_match: what the authors call accuracy. The most probable token at each place of the answer, given the
      answer's tokens before it, and then BLEU over characters with weights .1, .2, .3, .4, in which the prediction is
      the reference and the answer is what is rated.
    - answer_perplexity: what they call perplexity, of the answers, over all tokens of a rank.

    Beside them, of what the model writes by itself up to a line break:

    - bleu_words: BLEU-4 over words, with the answer as the reference (`text_overlap`).
    - contains: share of questions whose answer stands in it, normalised (`contains_answer`).

    And perplexity_doc: of the target, after what precedes it. For the questions of earlier steps, which the authors ask
    again after each step, score in `edit_sequence`.

    Args:
        record: From `load_records`, of MRLF-Bench.
        new_tokens: The most tokens that are written.
    """
    check_whole(new_tokens=new_tokens)
    ranks = [kind for kind, questions in record.portability.items() if questions]
    asked = [(rank, question) for rank in ranks for question in record.portability[rank]]
    doc = Continuation(record.request.text, record.request.target, space=record.request.space)
    scores = {"perplexity_doc": _perplexity(token_log_probabilities(model, [doc]))}
    if not asked:
        return scores
    prompts = [_ASKED.format(question.prompt) for _, question in asked]
    answers = [Continuation(prompt, each.text, space=True) for prompt, (_, each) in zip(prompts, asked, strict=True)]
    written = generate_answers(model, prompts, new_tokens=new_tokens, stops=("\n",))
    forced, likely = predict_tokens(model, answers), token_log_probabilities(model, answers)
    for rank in ranks:
        here = [number for number, (each, _) in enumerate(asked) if each == rank]
        scores[f"greedy_match_{rank}"] = fmean(
            greedy_match(_text(model, forced[i].predicted), _text(model, forced[i].wanted)) for i in here
        )
        scores[f"answer_perplexity_{rank}"] = _perplexity([likely[i] for i in here])
        scores[f"bleu_words_{rank}"] = fmean(
            text_overlap(asked[i][1].text, written[i].text)["bleu_words"] for i in here
        )
        scores[f"contains_{rank}"] = fmean(_contains(asked[i][1], written[i].text) for i in here)
    means = {
        name: fmean(scores[f"{name}_{rank}"] for rank in ranks)
        for name in ("greedy_match", "answer_perplexity", "bleu_words", "contains")
    }
    return scores | means


def greedy_match(predicted: str, answer: str) -> float:
    """MRLF-Bench's accuracy: BLEU over characters of the answer, with the prediction as the reference."""
    try:
        with undrawn():
            from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    except ImportError as error:
        raise UnavailableError(f"{error}. MRLF-Bench's scores need: pip install 'rome-lens[long]'.") from error
    smooth: Any = SmoothingFunction().method1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of texts without common characters
        return float(sentence_bleu([predicted], answer, weights=_WEIGHTS, smoothing_function=smooth))


def _contains(question: Continuation, written: str) -> float:
    aliases = question.aliases if isinstance(question, Question) else ()
    return float(contains_answer(question.prompt, (question.text, *aliases), written))


def _text(model: Model, ids: tuple[int, ...]) -> str:
    return str(model.tokenizer.decode(list(ids), skip_special_tokens=True))


def _perplexity(each: list[torch.Tensor]) -> float:
    return float((-torch.cat(each).double().mean()).exp())
