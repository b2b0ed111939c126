"""What MEND learns from one record, and the losses of its edit (paper section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.records import Continuation, QuestionRecord
from rome_lens.edit.methods.mend.factors import Factors, edited_factors, edits_in_place, gradient_factors
from rome_lens.edit.methods.mend.network import EditorNetwork
from rome_lens.edit.search.teacher_forcing import ForcedBatch, joined, run_until
from rome_lens.models import Model, logits


@dataclass(frozen=True, eq=False)
class Example:
    """All of a record that does not depend on the editor, computed once.

    Attributes:
        factors: of the gradient that would write the record's target after its prompt, by layer.
        edit: the target after the paraphrases (after the prompt itself if there is none), up to the first edited block.
        locality: the locality questions with their answers, up to that block.
        before: the model's states after its last block for those.
    """

    factors: dict[int, Factors]
    edit: ForcedBatch
    locality: ForcedBatch
    before: Float[Tensor, "row pos d_model"]

    @classmethod
    def of(cls, model: Model, record: QuestionRecord, layers: Sequence[int]) -> "Example":
        """Runs the model once on all of the record's texts.

        Raises:
            ValueError: a text does not fit the model's context.
        """
        request = record.request
        prompts = (request.text, *(record.paraphrase_prompts or (request.text,)))
        asked = [Continuation(prompt, request.target, space=request.space) for prompt in prompts]
        unrelated = [question for questions in record.locality.values() for question in questions]
        rows = run_until(model, [*asked, *unrelated], min(layers))
        edit, locality = rows.part(1, len(asked)), rows.part(len(asked), len(rows.lengths))
        with torch.no_grad():
            before = locality.run(model)
        return cls(gradient_factors(model, rows.part(0, 1), layers), edit, locality, before)


def example_losses(
    model: Model, network: EditorNetwork, examples: Sequence[Example]
) -> tuple[Float[Tensor, " example"], Float[Tensor, " example"]]:
    """The edit loss and the locality loss of each example's own edit. Differentiable.

    The first is the mean negative log-probability of a target's token after the paraphrases; the second is the
    divergence KL(before || after), in nats, of the next token, averaged over the tokens of the locality questions and
    their answers, as the authors' code does for models like GPT.
    """
    edited = edited_factors(network, [example.factors for example in examples])
    edit = joined([example.edit for example in examples])
    hooks = edits_in_place(model, edited, _owners([example.edit for example in examples]))
    edit_losses = edit.losses(model, edit.run(model, hooks=hooks))

    locality = joined([example.locality for example in examples])
    hooks = edits_in_place(model, edited, _owners([example.locality for example in examples]))
    after = locality.run(model, hooks=hooks)[locality.mask.bool()]
    with torch.no_grad():
        before = torch.cat([example.before[example.locality.mask.bool()] for example in examples])
        expected = logits(model, before).log_softmax(-1)
    moved = (expected.exp() * (expected - logits(model, after).log_softmax(-1))).sum(-1)
    moved_rows = torch.stack([row.mean() for row in moved.split(locality.mask.sum(1).tolist())])
    return _means(edit_losses, [e.edit for e in examples]), _means(moved_rows, [e.locality for e in examples])


def _owners(batches: Sequence[ForcedBatch]) -> Tensor:
    counts = torch.tensor([len(batch.lengths) for batch in batches], device=batches[0].mask.device)
    return torch.arange(len(batches), device=counts.device).repeat_interleave(counts)


def _means(rows: Float[Tensor, " row"], batches: Sequence[ForcedBatch]) -> Float[Tensor, " example"]:
    return torch.stack([part.mean() for part in rows.split([len(batch.lengths) for batch in batches])])
