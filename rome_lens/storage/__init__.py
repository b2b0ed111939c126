"""What is written to disk: whole files, tensors with facts about them, and runs that can be stopped and resumed.

A run that can be resumed has a folder of its own, with one of two things in it: a journal, whose rows are appended as
they come, or a checkpoint, whose tensors are replaced as they grow. Both record what the work depends on, and refuse
other work, a second run at the same time, and damaged content.
"""

from rome_lens.storage.checkpoint import Checkpoint, open_checkpoint, read_checkpoint
from rome_lens.storage.files import check_new_file, check_room, new_file, writing
from rome_lens.storage.identity import check_same, plain
from rome_lens.storage.journal import Journal, open_journal, read_journal
from rome_lens.storage.reading import (
    MOST_JSON_BYTES,
    check_size,
    existing_file,
    foreign,
    is_out_of_memory,
    load_json,
    parse_json,
)
from rome_lens.storage.tensors import check_facts, check_shapes, digest, kind_of, load_tensors, save_tensors

__all__ = [
    "MOST_JSON_BYTES",
    "Checkpoint",
    "Journal",
    "check_facts",
    "check_new_file",
    "check_room",
    "check_same",
    "check_shapes",
    "check_size",
    "digest",
    "existing_file",
    "foreign",
    "is_out_of_memory",
    "kind_of",
    "load_json",
    "load_tensors",
    "new_file",
    "open_checkpoint",
    "open_journal",
    "parse_json",
    "plain",
    "read_checkpoint",
    "read_journal",
    "save_tensors",
    "writing",
]
