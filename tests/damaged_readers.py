"""Every public reader with a small whole file of its own, and a process that tries damaged ones."""

import json
import linecache
import random
import resource
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from zlib import crc32

import platformdirs
import torch

import rome_lens as rl
from rome_lens import errors
from rome_lens.edit.methods.memory import _Gate as Gate
from rome_lens.edit.methods.near import kept_bank_keys
from rome_lens.edit.search.value import Value
from rome_lens.models import Model
from tests.damage import damage
from tests.public import PUBLIC
from tests.tiny import CORPUS, save_model

_MISPLACED = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)
_OURS = tuple(kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception))
_MEMORY = 1 << 30


@dataclass(frozen=True)
class Reader:
    """A public reader: `make` writes something whole into an empty folder, `read` reads it.

    Attributes:
        name: in the counts.
        make: its argument is the folder.
        read: its argument is the file in the folder, or the folder where `whole_folder`.
        whole_folder: whether it reads a folder, of which any file is damaged.
        share: how often it is tried: of all, so many parts.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    whole_folder: bool = False
    share: int = 2


@cache
def _tiny() -> Model:
    with tempfile.TemporaryDirectory() as folder:
        return rl.load_model(save_model(Path(folder), "gpt2"), device="cpu")


EDIT = rl.Edit(
    (
        rl.edit.Update(1, torch.ones(6, 2), torch.ones(2, 4), "a" * 64),
        rl.edit.Update(3, torch.ones(6, 1), torch.ones(1, 4)),
    ),
    (rl.EditRequest("{} is located in the city of", "The Eiffel Tower", target="Rome"),),
    "rome",
    "gpt2",
    config={"layer": 1, "contexts": ["{}", "One. {}"], "kl_factor": 0.0625},
    health=rl.edit.EditHealth(update_norm=1.0, relative_update_norm=0.1, steps=3, clamped=True),
)
REWRITE = {
    "prompt": "{} is in",
    "relation_id": "P1",
    "subject": "Rome",
    "target_new": {"str": "Paris", "id": "Q1"},
    "target_true": {"str": "Italy", "id": "Q2"},
}
PROMPTS = ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts")
QUESTION = {"prompt": "Its river is", "ground_truth": [["Tiber", "the Tiber"], ["Aniene"]]}
RECORDS = {
    "load_counterfact": {"case_id": 1, "requested_rewrite": REWRITE, **{name: ["Rome is in"] for name in PROMPTS}},
    "load_known_facts": {"known_id": 3, "subject": "Rome", "attribute": "Italy", "prompt": "Rome is in"},
    "load_zsre": {
        **{"subject": "Rome", "src": "Where is Rome?", "rephrase": "Rome is where?", "alt": "Spain"},
        **{"answers": ["Italy", "IT"], "loc": "nq question: who plays gram", "loc_ans": "Max Shippee"},
    },
    "load_knowedit": {
        **{"subject": "Rome", "prompt": "Rome is in", "target_new": "Spain"},
        **{"portability": {"Reasoning": [QUESTION]}, "locality": {"Forgetfulness": [QUESTION]}},
    },
    "load_records": {
        **{"subject": "Rome", "prompt": "Rome is in", "rephrase": "Where is Rome?", "target": "Spain"},
        "locality": [{"loc": "who plays gram", "loc_ans": "Max Shippee"}],
    },
    "load_attribute_snippets": {
        **{"relation_id": "P1", "target_id": "Q1"},
        "samples": [{"name": "Rome", "target": "Italy", "text": "Rome is in Italy."}],
    },
}
MEND = rl.edit.MendConfig(layers=(1, 2), rank=4, batch_size=1, validation_interval=1)
TRAINED = [
    rl.data.QuestionRecord(
        rl.EditRequest("{} is in", "The Eiffel Tower", "Rome"),
        ("The city is",),
        locality={"nq": (rl.data.Continuation("Dante is", "Italian"),)},
    )
]
SCORED = [rl.EditRecord(rl.EditRequest("{} is in", f"City {i}", "Rome"), "Paris", case_id=i) for i in range(2)]


def _noise(model: Model, request: rl.EditRequest) -> rl.Edit:
    factors = {1: (torch.ones(model.cfg.d_mlp, 1), torch.full((1, model.cfg.d_model), 0.01))}
    return rl.Edit.of(model, [request], factors, method="noise", config={}, on_unhealthy="ignore")


def _targets(file: Path) -> None:
    from rome_lens.edit.search.targets import search_numbers

    value = Value(torch.ones(4), torch.ones(4), 3, 0.5, 0.1, 0.01, False)
    numbers = search_numbers(rl.RomeConfig(layer=1))
    rl.edit.MemitTargets(2, ("{}",), numbers, EDIT.requests, (value,)).save(file)


def _memory(file: Path) -> None:
    from rome_lens.edit.search.targets import search_numbers

    value = Value(torch.ones(4), torch.zeros(4), 3, 0.5, 0.1, 0.01, False)
    targets = rl.edit.MemitTargets(2, ("{}",), search_numbers(rl.RomeConfig(layer=1)), EDIT.requests, (value,))
    gate = Gate("The Eiffel Tower", None, 0.9, 0.1, torch.ones(3), torch.ones(3) / 3**0.5, torch.ones(4))
    covariance = rl.KeyCovariance.from_matrix(torch.eye(3), layer=2, tokens=9)
    memory = rl.FactMemory.__new__(rl.FactMemory)
    memory._set(covariance, targets, ((gate,),), "a" * 64, "gpt2", None)
    memory.save(file)


def _read_memory(path: Path) -> None:
    rl.FactMemory.load(path).to_frame()


def _traces(folder: Path) -> None:
    facts = [rl.Fact("The capital of {} is", "Italy"), rl.Fact("{} is owned by", "Beats Music")]
    options = {"corruption": rl.GaussianNoise(std=0.5), "samples": 2, "window": 2}
    rl.trace_facts(_tiny(), facts, kinds=["resid"], out=folder, progress=False, **options)


def _collect(folder: Path) -> Any:
    options = {"tokens": 64, "sequence_length": 32, "tokens_per_batch": 32}
    return rl.collect_covariance(_tiny(), [1], texts=CORPUS, out=folder, progress=False, **options)


def _train(folder: Path) -> Any:
    return rl.edit.train_mend(_tiny(), TRAINED, steps=2, config=MEND, out=folder, progress=False)


def _sequence(folder: Path) -> None:
    rl.edit_sequence(_tiny(), SCORED, out=folder, method=_noise, checkpoints=[1], progress=False)


def _evaluation(folder: Path) -> None:
    rl.score_edits(_tiny(), SCORED, {"noise": _noise}, out=folder, progress=False)


def _ledger(folder: Path) -> Any:
    identity = rl.KeyCovariance.from_matrix(torch.eye(_tiny().cfg.d_mlp), layer=1, tokens=100)
    config = rl.RomeConfig(contexts=["{}"], steps=2)
    ledger = rl.EditLedger(_tiny(), covariances={1: identity}, config=config, out=folder)
    if not ledger.facts:
        ledger.add([record.request for record in SCORED], preserve=["The sea is"], progress=False)
    return ledger.to_frame()


def _ultraedit(memory: rl.edit.EditMemory) -> rl.edit.EditMemory:
    config = rl.edit.UltraEditConfig(layers={"out": [1]}, learning_rate=1e-6)
    requests = [record.request for record in SCORED]
    rl.edit.ultraedit(_tiny(), requests, config=config, memory=memory, on_unhealthy="ignore", progress=False)
    return memory


def _go_on(file: Path) -> Any:
    return _ultraedit(rl.edit.EditMemory.load(file))


def _find_targets(folder: Path) -> Any:
    requests, config = [record.request for record in SCORED], rl.MemitConfig(layers=[1], contexts=["{}"], steps=2)
    return rl.edit.memit_targets(_tiny(), requests, layer=1, config=config, out=folder, progress=False)


@contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """The user's cache is there meanwhile."""
    before = platformdirs.user_cache_path
    platformdirs.user_cache_path = lambda *args, **options: folder
    try:
        yield
    finally:
        platformdirs.user_cache_path = before


def _cached_gguf(folder: Path) -> Any:
    if not (folder / "cache").exists():
        _gguf(folder / "tiny.gguf")
    with cache_in(folder / "cache"):
        return _load_model(folder / "tiny.gguf")


def _cached_keys(folder: Path) -> Any:
    with cache_in(folder):
        return kept_bank_keys(_tiny(), 1, rl.data.load_subjects()[:4])


def _text(file: Path) -> None:
    file.write_text(CORPUS, encoding="utf-8")


def _gguf(file: Path) -> None:
    from tests.tiny_gguf import save_gguf

    save_gguf(file)


def _into_gguf(base: Path) -> None:
    update = rl.edit.Update(1, torch.ones(64, 1), torch.full((1, 32), 0.01))
    rl.Edit((update,), EDIT.requests).to_gguf(base.with_name("edited.gguf"), base)


def _load_model(path: Path) -> Any:
    return rl.load_model(path, device="cpu")


def _read_text(path: Path) -> int:
    """Not all of it: a file that grew to 4 GB is no damage to a reader of blocks."""
    return sum(len(block) for block, _ in zip(rl.edit.texts_from_file(path), range(20), strict=False))


def _covariance(file: Path) -> None:
    rl.KeyCovariance.from_matrix(torch.eye(8), layer=1, tokens=100, model="m").save(file)


def _records(name: str) -> Reader:
    def make(file: Path) -> None:
        file.write_text(json.dumps([RECORDS[name], RECORDS[name] | {"case_id": 2}]), encoding="utf-8")

    return Reader(name, make, PUBLIC[name])


READERS = [
    Reader("Edit.load", EDIT.save, rl.Edit.load),
    Reader("Edit.to_gguf(base)", _gguf, _into_gguf),
    Reader("KeyCovariance.load", _covariance, rl.KeyCovariance.load),
    Reader("covariance checkpoint", _collect, _collect, whole_folder=True),
    Reader(
        "MendEditor.load",
        lambda file: rl.edit.MendEditor.untrained(_tiny(), config=MEND).save(file),
        rl.edit.MendEditor.load,
    ),
    Reader("MEND checkpoint", _train, _train, whole_folder=True, share=1),
    Reader("MemitTargets.load", _targets, rl.edit.MemitTargets.load),
    Reader("FactMemory.load", _memory, _read_memory),
    Reader("load_traces", _traces, rl.locate.load_traces, whole_folder=True),
    Reader("load_scores", _evaluation, rl.evaluate.load_scores, whole_folder=True),
    Reader("load_sequence", _sequence, rl.evaluate.load_sequence, whole_folder=True),
    Reader("EditLedger", _ledger, _ledger, whole_folder=True),
    Reader("EditMemory.load", lambda file: _ultraedit(rl.edit.EditMemory()).save(file), _go_on),
    Reader("memit_targets", _find_targets, _find_targets, whole_folder=True, share=1),
    Reader("trace_facts", _traces, _traces, whole_folder=True, share=1),
    Reader("score_edits", _evaluation, _evaluation, whole_folder=True, share=1),
    Reader("edit_sequence", _sequence, _sequence, whole_folder=True, share=1),
    Reader("cached keys", _cached_keys, _cached_keys, whole_folder=True, share=1),
    Reader("cached GGUF", _cached_gguf, _cached_gguf, whole_folder=True, share=1),
    *(_records(name) for name in RECORDS),
    Reader("texts_from_file", _text, _read_text, share=1),
    Reader("load_model(folder)", lambda folder: save_model(folder, "gpt2"), _load_model, whole_folder=True, share=3),
    Reader("load_model(gguf)", _gguf, _load_model, share=2),
]


def serve(connection: Connection) -> None:
    """Tries the numbered attempts that come in, until None does; sends what came of each."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trying = Trying(Path(folder))
        while (asked := connection.recv()) is not None:
            connection.send(trying.outcome(*asked))


class Trying:
    """Reads damaged copies of each reader's whole file."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._readers = {reader.name: reader for reader in READERS}
        self._cached = folder / "cache"
        platformdirs.user_cache_path = lambda *args, **options: self._cached

    def outcome(self, name: str, number: int) -> tuple[str, str]:
        """ "read", "refused", "FOREIGN" or "MEMORY", and the details of what is no good."""
        reader = self._readers[name]
        copy = self._folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.rmtree(self._cached, ignore_errors=True)
        shutil.copytree(self._whole(reader), copy)
        draw = random.Random(crc32(f"{name} {number}".encode()))
        file = draw.choice(sorted(path for path in copy.rglob("*") if path.is_file()))
        way = f"{damage(file, draw)} of {file.name}"
        try:
            with _bounded_memory():
                reader.read(copy if reader.whole_folder else copy / "file.gguf")
        except BaseException as error:
            if _wants_memory(error):
                return "MEMORY", f"{name} {number}, {way}: {error!r}"
            return ("refused", "") if _is_ours(error) else ("FOREIGN", f"{name} {number}, {way}: {_told(error)}")
        return "read", ""

    def _whole(self, reader: Reader) -> Path:
        folder = self._folder / "whole" / reader.name
        if not folder.exists():
            folder.mkdir(parents=True)
            reader.make(folder if reader.whole_folder else folder / "file.gguf")
        return folder


@contextmanager
def _bounded_memory() -> Iterator[None]:
    """What asks for 1 GB more than there is now fails; mapping a long file is no use of memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[5])
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + _MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _wants_memory(error: BaseException | None) -> bool:
    """Whether more memory than the bound is behind an error."""
    while error is not None:
        if isinstance(error, MemoryError) or ("allocate memory" in str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_ours(error: BaseException) -> bool:
    """An error that the docstrings promise: one of ours, or a plain one that a `raise` of this package made."""
    if isinstance(error, _OURS):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = "rome_lens" in last.filename and linecache.getline(last.filename, last.lineno or 0).strip()[:6] == "raise "
    return raised and (type(error) is ValueError or isinstance(error, _MISPLACED))


def _told(error: BaseException) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
