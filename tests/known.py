"""Facts that a tiny random model knows: what it says anyway."""

import torch

import rome_lens as rl
from rome_lens.models import Model

SUBJECTS = ("Paris", "Rome", "Dante", "Apple", "Honda", "Victor Hugo", "Antarctica", "Porsche", "The Colosseum")
PROMPTS = ("{} is located in the city of", "The mother tongue of {} is", "{} is owned by")


def said_records(model: Model) -> list[rl.EditRecord]:
    """Records whose true object is what the model says next, with a paraphrase and a neighbour each."""
    records = []
    for prompt in PROMPTS:
        for number, subject in enumerate(SUBJECTS):
            text = prompt.format(subject)
            said = model.tokenizer.decode(model(torch.tensor([model.tokenizer(text)["input_ids"]]))[0, -1].argmax())
            if said.strip():
                request = rl.EditRequest(prompt, subject, "French", space=said.startswith(" "))
                others, neighbours = (f"They say that {text}",), (prompt.format(SUBJECTS[number - 1]),)
                records.append(rl.EditRecord(request, said.strip(), others, neighbours, case_id=len(records)))
    return records
