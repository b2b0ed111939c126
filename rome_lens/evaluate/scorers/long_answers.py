"""Scores of answers as long as a passage: words shared with the passage, and nearness of meaning (UnKE, AnyEdit)."""

import warnings
from statistics import fmean

from rome_lens.calling import undrawn
from rome_lens.checking import check_tensor, check_whole, checked
from rome_lens.data.records import QuestionRecord
from rome_lens.errors import UnavailableError
from rome_lens.evaluate.answers import generate_answers
from rome_lens.evaluate.protocols import record_questions
from rome_lens.models import Model
from rome_lens.models.loading.sentences import Encoder

NEW_TOKENS = 512


@checked
def score_long_answers(
    model: Model, record: QuestionRecord, *, encoder: Encoder | None = None, new_tokens: int = NEW_TOKENS
) -> dict[str, float]:
    """What the model writes for a record's questions, compared with the passage, or with the answers to its parts.

    The protocol of UnKE (arXiv 2405.15349) and AnyEdit (arXiv 2502.05628): each answer is written freely, up to 512
    tokens, and compared by `text_overlap`. The names of the figures begin with the kind of question: efficacy,
    paraphrase, portability_KIND (sub_question) and locality_KIND (only those with an answer).

    Args:
        record: A question, other wordings, and further questions, as they are put: see `in_chat`. Special tokens in the
            answers, such as an end token, are not compared.
        encoder: Adds the figure cosine; `sentence_encoder` makes one.
        new_tokens: The most tokens of an answer.
    """
    check_whole(new_tokens=new_tokens)
    asked = [(group, each) for group, questions in record_questions(record).items() for each in questions if each.text]
    answers = generate_answers(model, [each.prompt for _, each in asked], new_tokens=new_tokens, stops=())
    found: dict[str, list[dict[str, float]]] = {}
    for (group, question), answer in zip(asked, answers, strict=True):
        figures = text_overlap(_without_specials(model, question.text), answer.text)
        if encoder is not None:
            vectors = encoder([_without_specials(model, question.text), answer.text])
            one, other = check_tensor("The encoder", vectors, 2, "width")
            figures["cosine"] = float(one @ other)
        found.setdefault(group, []).append(figures)
    return {
        f"{group}_{name}": fmean(each[name] for each in figures)
        for group, figures in found.items()
        for name in figures[0]
    }


@checked
def text_overlap(passage: str, written: str) -> dict[str, float]:
    """How much of a passage stands in what was written, 0 to 1.

    - rouge1, rouge2, rougeL: recall of words, of pairs of words, and of the longest common subsequence (rouge-score,
      without stemming).
    - bleu: what UnKE and AnyEdit publish under this name, BLEU-4 over characters, since they pass whole strings to
      nltk's `sentence_bleu` (code/evaluate.py of TrustedLLM/UnKE).
    - bleu_words: BLEU-4 over words, smoothed (`sentence_bleu` of sacrebleu, divided by 100).

    Raises:
        UnavailableError: rouge-score or sacrebleu are not installed.
    """
    try:
        with undrawn():
            import sacrebleu
            from nltk.translate.bleu_score import sentence_bleu
            from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise UnavailableError(f"{error}. Scores of long answers need: pip install 'rome-lens[long]'.") from error
    kinds = ["rouge1", "rouge2", "rougeL"]
    recalls = RougeScorer(kinds).score(passage, written)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of texts without common characters, whose BLEU is 0
        over_characters = sentence_bleu([passage], written)
    over_words = sacrebleu.sentence_bleu(written, [passage]).score / 100
    return {kind: recalls[kind].recall for kind in kinds} | {"bleu": over_characters, "bleu_words": over_words}


def _without_specials(model: Model, text: str) -> str:
    """A text without special tokens, as answers are read."""
    tokenizer = model.tokenizer
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True))
