"""CounterFact's attribute snippets: reference texts for generated ones."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rome_lens.checking import checked
from rome_lens.data.readers.reading import file, list_field, object_field, parse_records, text_field


@checked
@dataclass(frozen=True)
class AttributeSnippets:
    """Sentences about subjects with a given object in a relation, which a model's texts are compared with.

    Attributes:
        samples: (subject, sentence) pairs by relation and object (Wikidata's ids, such as P101 and Q11190).
    """

    samples: Mapping[tuple[str, str], tuple[tuple[str, str], ...]]

    def texts(self) -> list[str]:
        """All sentences, in the file's order."""
        return [text for pairs in self.samples.values() for _, text in pairs]

    def about_target(self, relation: str, target_id: str) -> list[str]:
        """The sentences about subjects with this object; empty if there are none."""
        return [text for _, text in self.samples.get((relation, target_id), ())]

    def about_subject(self, subject: str) -> list[str]:
        """The sentences about a subject, in any relation; empty if there are none."""
        return [text for pairs in self.samples.values() for name, text in pairs if name == subject]


@checked
def load_attribute_snippets(
    path: str | os.PathLike[str] | None = None, *, strict: bool = True, refresh: bool = False
) -> AttributeSnippets:
    """Reads texts about objects for the consistency score (paper section 3.4; `attribute_snippets.json`).

    The arguments and errors are those of `load_counterfact`.
    """
    found: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    for key, pairs in parse_records(file(path, "attribute_snippets", refresh), _snippets, strict):
        found[key] = (*found.get(key, ()), *pairs)
    return AttributeSnippets(found)


def _snippets(record: Mapping[str, Any], index: int) -> tuple[tuple[str, str], tuple[tuple[str, str], ...]]:
    samples = [object_field(sample, "sample") for sample in list_field(record["samples"], "samples")]
    pairs = tuple((text_field(sample["name"], "name"), text_field(sample["text"], "text")) for sample in samples)
    return (text_field(record["relation_id"], "relation_id"), text_field(record["target_id"], "target_id")), pairs
