"""The facts of the paper's causal traces (section 2)."""

import os
from collections.abc import Mapping
from typing import Any

from rome_lens.checking import checked
from rome_lens.data.readers.reading import file, parse_records, text_field
from rome_lens.data.records import Fact


@checked
def load_known_facts(
    path: str | os.PathLike[str] | None = None, *, strict: bool = True, refresh: bool = False
) -> list[Fact]:
    """Reads the facts of the causal traces (paper section 2; `known_1000.json` of kmeng01/rome).

    The prompt is the record's `prompt` (its `template` is shorter in some records), the answer its `attribute`. The
    arguments and errors are those of `load_counterfact`.
    """
    return parse_records(file(path, "known_1000", refresh), _known_fact, strict)


def _known_fact(record: Mapping[str, Any], index: int) -> Fact:
    prompt, subject, answer = (text_field(record[name], name) for name in ("prompt", "subject", "attribute"))
    return Fact.from_text(prompt, subject, answer)
