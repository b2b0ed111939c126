"""A training example of MEND, and the losses of its edit (paper section 3.3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from rome_lens.data.records import Continuation, QuestionRecord, target_rows
from rome_lens.edit.methods.mend.factors import Factors, edited_factors, edits_in_place, gradient_factors
from rome_lens.edit.methods.mend.network import EditorNetwork
from rome_lens.models import Model, logits
from rome_lens.models.prediction import divergence
from rome_lens.models.teacher_forcing import ForcedBatch, joined, run_until


@dataclass(frozen=True, eq=False)
class Example:
    """What a record contributes independently of the editor, computed once.

    Attributes:
        factors: factors of the fine-tuning gradient of the target after the prompt, by layer.
        edit: the target after the paraphrases (or the prompt, if there are none), run up to the first edited block.
        locality: the locality questions with their answers, run up to that block.
        before: the unedited model's states after the last block for those.
    """

    factors: dict[int, Factors]
    edit: ForcedBatch
    locality: ForcedBatch
    before: Float[Tensor, "row pos d_model"]

    @classmethod
    def of(cls, model: Model, record: QuestionRecord, layers: Sequence[int]) -> "Example":
        """Runs the unedited model on the record's texts."""
        request = record.request
        prompts = (request.text, *(record.paraphrase_prompts or (request.text,)))
        edits = [Continuation(prompt, request.target, space=request.space) for prompt in prompts]
        unrelated = [question for questions in record.locality.values() for question in questions]
        batch = run_until(model, target_rows(model, [*edits, *unrelated]), min(layers))
        edit, locality = batch.part(1, len(edits)), batch.part(len(edits), len(batch.lengths))
        with torch.no_grad():
            before = locality.run(model)
        return cls(gradient_factors(model, batch.part(0, 1), layers), edit, locality, before)


def example_losses(
    model: Model, network: EditorNetwork, examples: Sequence[Example]
) -> tuple[Float[Tensor, " example"], Float[Tensor, " example"]]:
    """The edit loss and the locality loss of each example's own edit. Differentiable.

    The edit loss is the mean negative log-probability of a target token after the paraphrases. The locality loss is
    KL(before || after) of the next token, in nats, averaged over the tokens of the locality questions and their
    answers, as in the authors' code for models like GPT.
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
    kl = divergence(expected, logits(model, after).log_softmax(-1))
    kl_rows = torch.stack([row.mean() for row in kl.split(locality.mask.sum(1).tolist())])
    return _means(edit_losses, [e.edit for e in examples]), _means(kl_rows, [e.locality for e in examples])


def _owners(batches: Sequence[ForcedBatch]) -> Tensor:
    """For each row of the joined batches, the number of its example."""
    counts = torch.tensor([len(batch.lengths) for batch in batches], device=batches[0].mask.device)
    return torch.arange(len(batches), device=counts.device).repeat_interleave(counts)


def _means(rows: Float[Tensor, " row"], batches: Sequence[ForcedBatch]) -> Float[Tensor, " example"]:
    """Each example's mean over its rows."""
    return torch.stack([part.mean() for part in rows.split([len(batch.lengths) for batch in batches])])
