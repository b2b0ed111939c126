"""What a model writes, and expects to read, about a subject (paper section 3.4): fluency, consistency, essence."""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from rome_lens.calling import undrawn
from rome_lens.checking import check_seed, check_whole, checked
from rome_lens.data.readers.snippets import AttributeSnippets
from rome_lens.data.records import EditRecord, check_prompts
from rome_lens.errors import UnavailableError
from rome_lens.evaluate.side_effects.perplexity import perplexity
from rome_lens.models import Model, check_top_k, pad, write_on
from rome_lens.models.tokens import tokenize

_ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
_ESSENCE_TOKENS = 100


@checked
@dataclass(frozen=True, eq=False)
class ReferenceTexts:
    """Texts to compare a model's own texts with, and the tf-idf weights of their words.

    Attributes:
        snippets: the texts, by relation and object.
        vectorizer: a fitted scikit-learn TfidfVectorizer.
    """

    snippets: AttributeSnippets
    vectorizer: Any

    @classmethod
    def fit(cls, snippets: AttributeSnippets) -> "ReferenceTexts":
        """Learns words and their document frequencies from all the snippets, each a document of its own.

        So does the released code (dsets/tfidf_stats.py of kmeng01/rome: TfidfVectorizer with its defaults, that is
        lower-cased single words of two characters or more), on all of attribute_snippets.json; it also publishes the
        result, idf.npy and tfidf_vocab.json. The paper says only "unigram TF-IDF vectors".

        Raises:
            UnavailableError: scikit-learn is not installed.
        """
        try:
            with undrawn():
                from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise UnavailableError(
                "The consistency score needs scikit-learn: pip install 'rome-lens[evaluation]'."
            ) from error
        return cls(snippets, TfidfVectorizer().fit(snippets.texts()))


@checked
def score_generation(
    model: Model,
    record: EditRecord,
    *,
    references: ReferenceTexts | None = None,
    length: int = 100,
    top_k: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """The scores of what the model writes and expects to read about a record's subject (paper section 3.4, Table 4).

    - GE, fluency: the mean of `ngram_entropy` over the texts, in bits. The paper's tables show 100 times this.
    - RS, consistency: `consistency` of the texts with the references about the new object, those of the record's
      relation and target_id. The paper's tables show 100 times this.
    - essence: `perplexity` on the first 100 tokens of the references about the subject, joined by spaces. How far it
      rises from "base" is the essence drift: what else the model forgot about the subject. The released code takes only
      those about the subject that are also about the new object; for counterfactual records there are hardly any, so we
      take all.

    Texts for GE and RS are those of `generate_texts`, one for each generation prompt, prompts that occur twice
    included. A metric is left out where the record has no generation prompts, or there are no references for it (the
    released code stops there). Source: experiments/py/eval_utils_counterfact.py in kmeng01/rome.

    Args:
        model: is run, not changed; torch's random state is left as it is.
        record: gives the prompts, the subject, the relation and the target.
        references: for RS and essence; None leaves them out.
        length: tokens of each text, its prompt included.
        top_k: how many tokens are drawn from.
        seed: of the sampling; the same before and after an edit, so that both draw alike.
    """
    check_seed(seed)
    check_whole(length=length)
    check_top_k(model, top_k)
    scores: dict[str, float] = {}
    if record.generation_prompts:
        texts = generate_texts(model, record.generation_prompts, length=length, top_k=top_k, seed=seed)
        scores["GE"] = float(np.mean([ngram_entropy(text) for text in texts]))
        if references and (about := references.snippets.about_target(record.relation, record.target_id)):
            scores["RS"] = consistency(texts, about, references.vectorizer)
    if references and (known := references.snippets.about_subject(record.request.subject)):
        window = _ESSENCE_TOKENS + 1  # with a BOS, if there is one
        text = " ".join(known)
        scores["essence"] = perplexity(model, text, tokens=_ESSENCE_TOKENS, window=window, progress=False)
    return scores


@checked
def generate_texts(
    model: Model,
    prompts: Sequence[str],
    *,
    length: int = 100,
    top_k: int = 5,
    seed: int = 0,
    tokens_per_batch: int = 4096,
) -> list[str]:
    """Prompts with the model's sampled continuations.

    As the authors' code has it (util/generate.py of kmeng01/rome): a text is `length` tokens with its prompt, drawn
    from the `top_k` most probable ones at temperature 1, going on over end-of-text tokens, which are then taken out;
    the text is brought into Unicode's form NFKD, and empty lines become spaces. Each prompt draws with random numbers
    of its own, so its text depends on the seed and not on the other prompts; a prompt that occurs again is drawn again.

    Args:
        model: is run, not changed; torch's random state is left as it is.
        prompts: texts.
        length: tokens of each text, its prompt (and BOS) included; at most the model's context.
        top_k: how many tokens are drawn from.
        seed: of the sampling.

    Raises:
        ValueError: no prompts, a blank one, one that leaves nothing to generate, or `length` is over the model's
            context.
    """
    check_prompts(prompts)
    check_seed(seed)
    check_whole(length=length, tokens_per_batch=tokens_per_batch)
    check_top_k(model, top_k)
    if length > model.cfg.n_ctx:
        raise ValueError(
            f"length is {length}, but {model.cfg.model_name} reads at most {model.cfg.n_ctx} tokens. Lower it."
        )
    rows = [tokenize(model, prompt).ids for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) >= length:
            raise ValueError(
                f"The prompt {prompt[:60]!r}... has {len(row)} tokens, expected fewer than length ({length}), or there "
                "is nothing to generate. Raise length or leave the prompt out."
            )
    texts = [""] * len(rows)
    for batch in _batches(rows, max(1, tokens_per_batch // length)):
        tokens, given = (
            nn.functional.pad(each, (0, length - each.shape[1])).to(model.cfg.device)
            for each in pad([rows[number] for number in batch])
        )
        chances = torch.stack(
            [_chances(seed, rows[number], rows[:number].count(rows[number]), length) for number in batch]
        )
        written = write_on(model, tokens, given, chances=chances.to(model.cfg.device), top_k=top_k)
        for number, text in zip(batch, model.tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[number] = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return texts


def _batches(rows: Sequence[tuple[int, ...]], size: int) -> list[list[int]]:
    """The numbers of the rows, `size` together, those of like lengths."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _chances(seed: int, row: tuple[int, ...], before: int, length: int) -> Float[Tensor, " length"]:
    """A row's own random numbers; `before` tells how many rows like it come before it."""
    digest = hashlib.sha256(json.dumps([seed, row, before]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
    return torch.rand(length, generator=generator)


def ngram_entropy(text: str) -> float:
    """How varied a text's pairs and triples of words are, in bits: repetition lowers it.

    (2/3 H2 + 4/3 H3) / 2, with Hn = - sum f(k) log2 f(k) over the text's distinct n-grams k and f(k) their share of
    all n-grams; 0 for a text too short to have any. The paper (section 3.4) gives the sum and speaks of a weighted
    average of both; the weights, and the division by two, are those of the released code
    (experiments/py/eval_utils_counterfact.py of kmeng01/rome). Words are those of `split_words`, where the released
    code uses nltk's word_tokenize, which needs a download; on 300 texts from Wikipedia the entropies by nltk's word
    rules and by ours differed by 0.01 bits on average, of 6.55.
    """
    words = split_words(text)
    entropies = []
    for n, weight in _ENTROPY_WEIGHTS.items():
        counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        shares = np.array(list(counts.values())) / max(1, counts.total())
        entropies.append(weight * -(shares * np.log2(shares)).sum())
    return float(np.mean(entropies))


def split_words(text: str) -> list[str]:
    """Words and punctuation marks: "Rome's well-known 1,000 cats." is Rome, 's, well-known, 1,000, cats and a stop."""
    return re.findall(r"'?\w+(?:[-.,]\w+)*|[^\w\s]", text)


def consistency(texts: Sequence[str], references: Sequence[str], vectorizer: Any) -> float:
    """RS: the cosine of two tf-idf vectors, of all `texts` in one and all `references` in one, joined by spaces.

    0 if one of them holds no word that the vectoriser knows (the released code gives NaN there). Source: paper section
    3.4; tfidf_similarity of experiments/py/eval_utils_counterfact.py in kmeng01/rome.

    Args:
        texts: what the model wrote.
        references: what to compare it with.
        vectorizer: a fitted TfidfVectorizer; its vectors have length 1.
    """
    generated, expected = vectorizer.transform([" ".join(texts), " ".join(references)]).toarray()
    return float(generated @ expected)
