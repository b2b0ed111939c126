"""Simple facts in many relations, from which those that a model knows are taken."""

import json
from importlib import resources

from rome_lens.checking import checked
from rome_lens.data.records import EditRecord, EditRequest

_NEIGHBOURS = 4


@checked
def load_question_bank() -> list[EditRecord]:
    """The package's question bank: 338 simple facts in 17 relations, of which a model is to know some.

    Each asks to write another object of its relation. It has two paraphrases, up to four neighbours (other subjects
    with the same object) and as many attribute prompts (subjects of the new object). The relation is in words.
    """
    text = (resources.files("rome_lens") / "data" / "builtin" / "question_bank.json").read_text(encoding="utf-8")
    records: list[EditRecord] = []
    for relation in json.loads(text):
        asked, *others = relation["prompts"]
        facts: dict[str, list[str]] = relation["facts"]
        objects = list(facts)
        for place, (answer, subjects) in enumerate(facts.items()):
            for number, subject in enumerate(subjects):
                target = objects[(place + 1 + number % (len(objects) - 1)) % len(objects)]
                records.append(
                    EditRecord(
                        EditRequest(asked, subject, target, true_answer=answer),
                        answer,
                        paraphrase_prompts=tuple(prompt.format(subject) for prompt in others),
                        neighborhood_prompts=_prompts(asked, [each for each in subjects if each != subject]),
                        attribute_prompts=_prompts(asked, facts[target]),
                        case_id=len(records),
                        relation=relation["relation"],
                    )
                )
    return records


def _prompts(prompt: str, subjects: list[str]) -> tuple[str, ...]:
    return tuple(prompt.format(subject) for subject in subjects[:_NEIGHBOURS])
