"""Calls everything public with what it can use and with what it cannot; `test_public_api.py` runs this.

It runs without the type checker of the other tests, as users run the package: there, the package's own checks must do.
Whatever happens, the model's weights stay bit for bit what they were.
"""

import importlib.util
import inspect
import os
import traceback
import warnings
from dataclasses import asdict, is_dataclass
from functools import cached_property
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_origin

import numpy as np
import pandas as pd
import pytest
import torch
from beartype import BeartypeConf
from beartype.door import is_bearable
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import rome_lens as rl
import rome_lens.plots
from rome_lens.checking import _leaves
from rome_lens.edit.methods.mend.network import EditorNetwork
from tests.public import PUBLIC
from tests.tiny import CORPUS, save_model

ACCEPTED = (ValueError, TypeError, rl.errors.EditError, rl.errors.UnavailableError, FileNotFoundError, FileExistsError)
ACCEPTED = (*ACCEPTED, NotADirectoryError)
SETTINGS = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
FACT = rl.Fact("{} is located in the city of", "The Eiffel Tower")
REQUEST = rl.EditRequest(FACT.prompt, FACT.subject, "Rome")
HOP = rl.data.Question("Its country is", "Italy")
REWRITE = {"prompt": "{} is in", "subject": "Rome", "target_new": {"str": "Spain"}, "target_true": {"str": "Italy"}}
QUIET = {"progress": False}
WARNS_NOT = {"on_unhealthy": "ignore", **QUIET}


def is_public(thing: object) -> bool:
    """Whether it can be called, and is more than an error's name or a type for annotations."""
    if not isinstance(thing, type):
        return inspect.isfunction(thing)
    return not issubclass(thing, BaseException) and not getattr(thing, "_is_protocol", False)


GIVEN = {"BatchConfig", "Model", "SearchConfig", "TracedPrompt"}
"""Classes that others are made of, or that a user's own function is handed: users do not call them. `Model` is one
class with TransformerLens 4, and two before."""
NAMES = sorted(name for name, thing in PUBLIC.items() if is_public(thing) and name not in GIVEN)


class World:
    """What calls are made with. It is made as it is needed, and once."""

    def __init__(self, folder: Path):
        self.folder = folder
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # of this process, which makes calls and ends
        (folder / "garbage").write_bytes(b'{"a": [1, 2')
        (folder / "text").write_text(CORPUS)

    @cached_property
    def model(self) -> Any:
        return rl.load_model(save_model(self.folder / "gpt2", "gpt2"), device="cpu")

    @cached_property
    def record(self) -> rl.EditRecord:
        return rl.EditRecord(REQUEST, "Paris", ("Where is it?",), ("The Louvre is in",), (), ("It is",))

    @cached_property
    def question(self) -> rl.data.QuestionRecord:
        locality = {"nq": (rl.data.Continuation("Dante is", "Italian"),)}
        return rl.data.QuestionRecord(REQUEST, ("Where is it?",), {}, locality, 3)

    @cached_property
    def chatting(self) -> Any:
        model = rl.load_model(self.folder / "gpt2", device=self.model and "cpu")
        model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}: {% endfor %}"
        return model

    @cached_property
    def doubted(self) -> rl.data.QuestionRecord:
        return rl.data.QuestionRecord(REQUEST, portability={"yes": (rl.data.Question("Is it in Rome?", "Yes"),)})

    @cached_property
    def opinion(self) -> rl.data.QuestionRecord:
        asked = rl.data.Question("What of it?", "It is good.", instead="It is bad.")
        return rl.data.QuestionRecord(REQUEST, portability={"sentiment": (asked,)})

    @cached_property
    def covariances(self) -> dict[int, rl.KeyCovariance]:
        found = rl.collect_covariance(self.model, [1, 2], texts=[CORPUS] * 3, tokens=300, progress=False)
        return {layer: covariance.shrunk(0.3) for layer, covariance in found.items()}

    @cached_property
    def search(self) -> dict[str, Any]:
        return {"contexts": ["{}"], "steps": 2}

    @cached_property
    def edit(self) -> rl.Edit:
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(size, generator=generator, dtype=torch.float32) for size in ((128, 1), (1, 32)))
        return rl.Edit((rl.edit.Update(1, left, 0.01 * right),), (REQUEST,), "rome")

    @cached_property
    def trace(self) -> rl.CausalTrace:
        return rl.causal_trace(self.model, FACT, samples=2, **QUIET)

    @cached_property
    def heads(self) -> rl.locate.HeadMap:
        return rl.locate.trace_heads(self.model, FACT, samples=1, **QUIET)

    @cached_property
    def editor(self) -> rl.edit.MendEditor:
        return rl.edit.MendEditor.untrained(self.model, config=rl.edit.MendConfig(layers=[2], rank=4))

    @cached_property
    def traces(self) -> Path:
        folder = self.folder / "traces"
        rl.trace_facts(self.model, [FACT], kinds=["resid"], samples=1, out=folder, **QUIET)
        return folder

    @cached_property
    def sequence(self) -> Path:
        folder = self.folder / "sequence"
        rl.edit_sequence(self.model, [self.record], out=folder, method=lambda *_: self.edit, **QUIET)
        return folder

    @cached_property
    def evaluation(self) -> Path:
        folder = self.folder / "evaluation"
        rl.score_edits(self.model, [self.record], {"noise": lambda *_: self.edit}, out=folder, **QUIET)
        return folder

    @cached_property
    def comparison(self) -> rl.evaluate.ModelComparison:
        return rl.compare_models(self.model, self.edit, [FACT.text], **QUIET)

    def data(self, kind: str) -> Path:
        """The smallest file of a data set."""
        path = self.folder / f"{kind}.json"
        records = {
            "counterfact": "[]",
            "known": '[{"prompt": "Rome is in", "subject": "Rome", "attribute": "Italy"}]',
            "zsre": "[]",
            "knowedit": "[]",
            "snippets": "[]",
        }
        path.write_text(records[kind])
        return path


def frame(*columns: str, **values: Any) -> pd.DataFrame:
    """Two rows of numbers, but for what is given."""
    return pd.DataFrame({**{column: [0.25, 0.5] for column in columns}, **values})


EFFECTS = frame("layer", "mean", "ci_low", "ci_high", "n", kind="mlp", role="last token")
SCORES = [f"{metric}{end}" for metric in ("S", "ES", "PS", "NS") for end in ("", "_low", "_high")]
SUMMARY = frame(*SCORES, "n", "layer", method=["base", "rome"], token=["", "last"])
LENS = frame("answer_probability", condition=["before", "after"], layer=0)
TRACED = {"traced": ["mlp_effect", "resid_effect"] * 4, "score": ["S", "S", "EM", "EM", "PM", "PM", "NM", "NM"]}

CASES: dict[str, Any] = {
    "EditMemory": lambda w: {},
    "UltraEditConfig": lambda w: {"layers": {"in": [1], "out": [1]}},
    "AlphaEditConfig": lambda w: {"layers": [1], **w.search},
    "AnyEditConfig": lambda w: {"layers": [1], "window": 2, "steps": 2},
    "AnyEditTargets": lambda w: {"layer": 1, "window": 2, "search": {}, "values": {}},
    "AppliedEdit": lambda w: {"model": w.model, "updates": w.edit.updates},
    "AttributeSnippets": lambda w: {"samples": {("P1", "Q1"): (("Rome", "Rome is old."),)}},
    "CausalTrace": lambda w: {name: getattr(w.trace, name) for name in inspect.signature(rl.CausalTrace).parameters},
    "Continuation": lambda w: {"prompt": "Dante is", "text": "Italian"},
    "CovarianceReport": lambda w: asdict(w.covariances[1].report()),
    "CutEdit": lambda w: {"edit": w.edit, "lost": SUMMARY, "efficacy": SUMMARY},
    "Edit": lambda w: {"updates": w.edit.updates, "requests": (REQUEST,)},
    "EditHealth": lambda w: {"update_norm": 1.0, "relative_update_norm": 0.1},
    "EditLedger": lambda w: {
        "model": w.model,
        "covariances": w.covariances,
        "config": rl.RomeConfig(layer=1, **w.search),
    },
    "EditRecord": lambda w: {"request": REQUEST, "target_true": "Paris"},
    "EditRequest": lambda w: {"prompt": FACT.prompt, "subject": FACT.subject, "target": "Rome"},
    "EditSequence": lambda w: {"edits": SUMMARY, "checkpoints": SUMMARY},
    "EmmetConfig": lambda w: {"layers": [1], **w.search},
    "Explorer": lambda w: {"model": w.model, "fact": FACT},
    "Fact": lambda w: {"prompt": FACT.prompt, "subject": FACT.subject},
    "FinetuneConfig": lambda w: {"layers": [1], "steps": 2},
    "GaussianNoise": lambda w: {"std": 0.1},
    "KeyCovariance": lambda w: {"second_moment": w.covariances[1].second_moment, "layer": 1, "tokens": 300},
    "KnowledgeNeurons": lambda w: {
        "prompts": ("a",),
        "answer": (1,),
        "attributions": torch.ones(1, 3, 4),
        "neurons": ((0, 1),),
    },
    "KnowledgeNeuronsConfig": lambda w: {"steps": 2},
    "FactMemory": lambda w: {
        "model": w.model,
        "covariance": w.covariances[1],
        "config": rl.edit.BatchConfig(**w.search),
    },
    "LedgerRoom": lambda w: {"rank_used": 3, "width": 128, "relative_norm": 0.1},
    "MemitConfig": lambda w: {"layers": [1], **w.search},
    "MemitTargets": lambda w: {"layer": 1, "contexts": ("{}",), "search": {}, "requests": (), "values": ()},
    "MendEditor": lambda w: {
        "layers": (2,),
        "network": EditorNetwork((128, 32), 1, rank=4, hidden_layers=1, step_size=0.1, seed=0),
        "config": rl.edit.MendConfig(layers=[2]),
        "model": "gpt2",
        "architecture": "",
    },
    "LayerRecommendation": lambda w: {
        "config": rl.RomeConfig(layer=1),
        "covariance": w.covariances[1],
        "table": SUMMARY,
    },
    "MendConfig": lambda w: {"layers": [1, 2]},
    "Preset": lambda w: {"model": "GPT-2", "method": "rome", "matrices": {"out": (1,)}},
    "ModelComparison": lambda w: dict.fromkeys(["tokens", "divergence", "lens", "contributions"], LENS),
    "Prediction": lambda w: {"wanted": (1, 2), "predicted": (1, 3)},
    "QuestionRecord": lambda w: {"request": REQUEST},
    "Answer": lambda w: {"text": "Rome", "tokens": (1,)},
    "ModelJudge": lambda w: {"model": w.model, "name": "gpt2"},
    "MultiHopRecord": lambda w: {"requests": (REQUEST,), "questions": (HOP,)},
    "Preference": lambda w: {"model": w.model, "name": "gpt2"},
    "Protocol": lambda w: {"name": "mine", "read": "generated"},
    "Question": lambda w: {"prompt": FACT.text, "text": "Rome"},
    "RippleQuery": lambda w: {"prompt": FACT.text, "answers": (("Rome",),)},
    "RippleRecord": lambda w: {"request": REQUEST},
    "RippleTest": lambda w: {"queries": ()},
    "ReferenceTexts": lambda w: {"snippets": rl.data.AttributeSnippets({}), "vectorizer": None},
    "RomeConfig": lambda w: {"layer": 1, **w.search},
    "State": lambda w: {"kind": "mlp", "position": 3, "layer": 1},
    "StopRule": lambda w: {"perplexity_factor": 2.0},
    "Texts": lambda w: {"corpus": "mine", "read": lambda: iter([CORPUS])},
    "TokenReplacement": lambda w: {"subject": "The Space Needle"},
    "TraceConfig": lambda w: {},
    "TracedFacts": lambda w: {"traces": [w.trace], "not_predicted": SUMMARY},
    "UniformNoise": lambda w: {"std": 0.1},
    "Update": lambda w: {"layer": 1, "left": torch.ones(4, 1), "right": torch.ones(1, 2)},
    "ultraedit": lambda w: {
        "model": w.model,
        "requests": [REQUEST, rl.EditRequest("{} is owned by", "Beats Music", "Apple")],
        "config": rl.edit.UltraEditConfig(layers={"out": [1]}),
        **WARNS_NOT,
    },
    "by_protocol": lambda w: {"frame": rl.evaluate.load_scores(w.evaluation)},
    "contains_answer": lambda w: {"question": "Where?", "answers": ["Rome"], "written": "In Rome"},
    "exact_match": lambda w: {"question": "Where?", "answers": ["Rome"], "written": "In Rome"},
    "generate_answers": lambda w: {"model": w.model, "prompts": [FACT.text], "new_tokens": 3},
    "in_chat": lambda w: {"model": w.chatting, "asking": FACT.text},
    "judge_name": lambda w: {"judge": rl.evaluate.exact_match},
    "load_records": lambda w: {"source": [{"case_id": 1, "requested_rewrite": REWRITE}]},
    "ripple_conditions": lambda w: {"model": w.model, "record": rl.data.RippleRecord(REQUEST)},
    "score_evoke": lambda w: {"model": w.model, "record": w.question},
    "score_long_answers": lambda w: {"model": w.model, "record": w.question, "new_tokens": 2},
    "sentence_encoder": lambda w: {"folder": w.model and w.folder / "gpt2"},
    "text_overlap": lambda w: {"passage": "Rome is old.", "written": "Rome is"},
    "score_mquake": lambda w: {"model": w.model, "record": rl.data.MultiHopRecord((REQUEST,), (HOP,)), "new_tokens": 2},
    "score_mrlf": lambda w: {
        "model": w.model,
        "record": rl.data.QuestionRecord(REQUEST, portability={"rank_1": (HOP,)}),
        "new_tokens": 2,
    },
    "score_sentiment": lambda w: {"model": w.model, "record": w.opinion, "before": -3.0},
    "sentiment_log_likelihood": lambda w: {"model": w.model, "record": w.opinion},
    "schema_of": lambda w: {"source": [{"case_id": 1, "requested_rewrite": REWRITE}]},
    "score_ripple": lambda w: {"model": w.model, "record": rl.data.RippleRecord(REQUEST), "before": {}},
    "score_robustness": lambda w: {"model": w.chatting, "record": w.doubted, "turns": 1, "new_tokens": 5},
    "alphaedit": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "covariances": w.covariances,
        "config": rl.edit.AlphaEditConfig(null_space_threshold=100.0, **w.search),
        **WARNS_NOT,
    },
    "anchor_norm": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "layer": 1,
        "config": rl.RomeConfig(**w.search),
        **QUIET,
    },
    "anyedit": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "covariances": w.covariances,
        "config": rl.edit.AnyEditConfig(steps=2),
        **WARNS_NOT,
    },
    "anyedit_targets": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "layer": 1,
        "config": rl.edit.AnyEditConfig(steps=2),
        **QUIET,
    },
    "applied_edits": lambda w: {"model": w.model},
    "average_effects": lambda w: {"traces": [w.trace]},
    "average_total_effect": lambda w: {"traces": [w.trace]},
    "causal_trace": lambda w: {"model": w.model, "fact": FACT, "samples": 2, "layers": [1], "positions": [5], **QUIET},
    "collect_covariance": lambda w: {"model": w.model, "layers": [1], "texts": CORPUS, "tokens": 50, **QUIET},
    "compare_models": lambda w: {"model": w.model, "other": w.edit, "prompts": [FACT.text], **QUIET},
    "detect_edits": lambda w: {"model": w.model, **QUIET},
    "emmet": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "covariances": w.covariances,
        "config": rl.edit.EmmetConfig(**w.search),
        **WARNS_NOT,
    },
    "find_preset": lambda w: {"model": w.model, "method": "rome"},
    "finetune": lambda w: {
        "model": w.model,
        "requests": REQUEST,
        "config": rl.edit.FinetuneConfig(layers=[2], steps=1),
        **WARNS_NOT,
    },
    "forecast_bleed_over": lambda w: {"model": w.model, "edit": w.edit, "prompts": [FACT.text]},
    "generate_texts": lambda w: {"model": w.model, "prompts": [FACT.text], "length": 20},
    "kn": lambda w: {
        "model": w.model,
        "request": REQUEST,
        "config": rl.edit.KnowledgeNeuronsConfig(steps=2),
        **WARNS_NOT,
    },
    "knowledge_neurons": lambda w: {
        "model": w.model,
        "fact": FACT,
        "config": rl.edit.KnowledgeNeuronsConfig(steps=2),
        **QUIET,
    },
    "load_attribute_snippets": lambda w: {"path": w.data("snippets")},
    "load_builtin_records": lambda w: {},
    "load_counterfact": lambda w: {"path": w.data("counterfact")},
    "load_scores": lambda w: {"folder": w.evaluation},
    "load_knowedit": lambda w: {"path": w.data("knowedit")},
    "load_known_facts": lambda w: {"path": w.data("known")},
    "list_presets": lambda w: {},
    "load_question_bank": lambda w: {},
    "load_model": lambda w: {"name": w.folder / "gpt2", "device": w.model and "cpu"},
    "load_sequence": lambda w: {"folder": w.sequence},
    "load_traces": lambda w: {"folder": w.traces},
    "load_subjects": lambda w: {"word": "Tower"},
    "load_zsre": lambda w: {"path": w.data("zsre")},
    "locality_predictions": lambda w: {"model": w.model, "record": w.question},
    "memit": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "covariances": w.covariances,
        "config": rl.MemitConfig(**w.search),
        **WARNS_NOT,
    },
    "fact_memory": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "covariances": {1: w.covariances[1]},
        "config": rl.edit.BatchConfig(**w.search),
        **WARNS_NOT,
    },
    "memit_targets": lambda w: {
        "model": w.model,
        "requests": [REQUEST],
        "layer": 1,
        "config": rl.MemitConfig(**w.search),
        **QUIET,
    },
    "mend": lambda w: {"model": w.model, "request": REQUEST, "editor": w.editor, "on_unhealthy": "ignore"},
    "near_subjects": lambda w: {"model": w.model, "requests": [REQUEST], "covariances": w.covariances},
    "neighborhood_log_probabilities": lambda w: {"model": w.model, "record": w.record},
    "optimize_layout": lambda w: {"model": w.model},
    "perplexity": lambda w: {"model": w.model, "text": CORPUS, "tokens": 50, **QUIET},
    "plot_average_effects": lambda w: {"frame": EFFECTS},
    "plot_comparison": lambda w: {"lens": w.comparison.lens, "contributions": w.comparison.contributions},
    "plot_effect_maps": lambda w: {"frame": EFFECTS.assign(layer=[0, 1])},
    "plot_layers": lambda w: {"table": SUMMARY.assign(effect=0.1, effect_low=0.0, effect_high=0.2, layer=[0, 1])},
    "plot_scores": lambda w: {"summary": SUMMARY},
    "plot_sequence": lambda w: {"frame": frame("edits", "perplexity", "norm_growth", "ES", method="rome")},
    "plot_trace": lambda w: {"frame": w.trace.to_frame()},
    "plot_traces": lambda w: {"frame": w.trace.to_frame()},
    "predict_restored": lambda w: {
        "model": w.model,
        "fact": FACT,
        "states": [rl.locate.State("mlp", 5, 1)],
        "samples": 2,
    },
    "recover_updates": lambda w: {"original": w.model, "suspect": w.model, **QUIET},
    "restore_states": lambda w: {
        "model": w.model,
        "fact": FACT,
        "states": [rl.locate.State("mlp", 5, 1)],
        "samples": 2,
    },
    "revert_edits": lambda w: {"model": w.model},
    "rome": lambda w: {
        "model": w.model,
        "request": REQUEST,
        "covariance": w.covariances[1],
        "config": rl.RomeConfig(**w.search),
        **WARNS_NOT,
    },
    "edit_sequence": lambda w: {
        "model": w.model,
        "records": [w.record],
        "out": "sequence",
        "method": lambda *_: w.edit,
        **QUIET,
    },
    "score_edits": lambda w: {
        "model": w.model,
        "records": [w.record],
        "methods": {"noise": lambda *_: w.edit},
        "out": "evaluation",
        **QUIET,
    },
    "same_length_subject": lambda w: {"model": w.model, "fact": FACT, "others": [rl.Fact("{} is", "The Eiffel Rower")]},
    "sample_contexts": lambda w: {"model": w.model, "lengths": [(3, 2)]},
    "save": lambda w: {
        "figure": rl.plots.plot_scores(SUMMARY),
        "path": "figure",
        "suffixes": [".html"],
        "overwrite": True,
    },
    "score_generation": lambda w: {"model": w.model, "record": w.record, "length": 20},
    "score_knowedit": lambda w: {
        "model": w.model,
        "record": w.question,
        "fluency": False,
        "before": rl.evaluate.locality_predictions(w.model, w.question),
    },
    "score_record": lambda w: {"model": w.model, "record": w.record},
    "score_specificity": lambda w: {"model": w.model, "record": w.record},
    "score_zsre": lambda w: {"model": w.model, "record": w.question},
    "screen_triggers": lambda w: {
        "model": w.model,
        "triggers": ["zq"],
        "prompts": [FACT.text],
        "ordinary": ["So", "But"],
        **QUIET,
    },
    "strongest_bleed_over": lambda w: {"forecast": rl.evaluate.forecast_bleed_over(w.model, w.edit, [FACT.text])},
    "summarize": lambda w: {"frame": rl.evaluate.load_scores(w.evaluation)},
    "texts_from_file": lambda w: {"path": w.folder / "text"},
    "texts_from_model": lambda w: {"model": w.model, "new_tokens": 3},
    "trace_facts": lambda w: {"model": w.model, "facts": [FACT], "kinds": ["mlp"], "samples": 1, **QUIET},
    "trace_heads": lambda w: {"model": w.model, "fact": FACT, "samples": 1, "layers": [1], **QUIET},
    "trace_kinds": lambda w: {"model": w.model, "fact": FACT, "samples": 1, "positions": [5], **QUIET},
    "HeadMap": lambda w: {n: getattr(w.heads, n) for n in inspect.signature(rl.locate.HeadMap).parameters},
    "plot_heads": lambda w: {"frame": w.heads},
    "train_mend": lambda w: {
        "model": w.model,
        "records": [w.question],
        "steps": 1,
        "config": rl.edit.MendConfig(layers=[2], rank=4, batch_size=1),
        **QUIET,
    },
    "undo_blindly": lambda w: {"model": w.model, "row": {"layer": 1, "candidate": 0}},
    "weight_changes": lambda w: {"original": w.model, "suspect": w.model},
}
ELSEWHERE = {
    "recommend_layers": "no tiny model knows facts",
    "builtin_covariances": "none ships for a tiny model",
    "texts_from_dataset": "datasets takes seconds to import",
}
"""Without a call that works here. What they cannot use is tried all the same."""
if importlib.util.find_spec("anywidget") is None:
    ELSEWHERE["Explorer"] = "needs anywidget"
CASES |= {
    "recommend_layers": lambda w: {"model": w.model, "facts": [w.record]},
    "builtin_covariances": lambda w: {"model": w.model},
    "cut_rank": lambda w: {"model": w.model, "edit": w.edit, "covariances": w.covariances},
    "suggested_layer": lambda w: {"model": w.model},
    "target_probabilities": lambda w: {"model": w.model, "requests": [w.record.request]},
    "texts_from_dataset": lambda w: {"name": "none"},
}

BY_THEMSELVES = {"EditHealth", "Update"}
"""They name the layer or figure that a stranger's file has wrong."""
NOT_COUNTS = [0, -1]
REFUSED: dict[str, list[Any]] = {
    "candidates": [[], [99]],
    "checkpoints": [[0], [-3]],
    "clamp_norm_factor": [0.0, -1.0, float("nan")],
    "context_lengths": [[(0, 5)], [(10, -1)]],
    "contexts": [[], ["no place"], ["a {}"]],
    "device": ["nowhere"],
    "dtype": [torch.int64],
    "edited": NOT_COUNTS,
    "engine": ["threads"],
    "facts": [[]],
    "head": [-1, 99],
    "kind": ["all"],
    "kinds": [["all"], []],
    "layer": [-1, 99],
    "layers": [[], [-99], [99]],
    "learning_rate": [0.0, -1.0, float("nan")],
    "length": NOT_COUNTS,
    "lengths": [[(0, 5)], [(10, -1)]],
    "methods": [{"base": lambda *_: None}],
    "metric": ["p"],
    "metrics": [["p"], []],
    "new_tokens": NOT_COUNTS,
    "on_unhealthy": ["shout"],
    "ordinary": [0, [], [" "]],
    "positions": [[-99], [99]],
    "prompts": [[], [""], [" "], "a text"],
    "rank": NOT_COUNTS,
    "prompt": ["no place", "{} and {}"],
    "records": [[]],
    "requests": [[]],
    "samples": NOT_COUNTS,
    "seed": [-1, 2**70],
    "sequence_length": NOT_COUNTS,
    "severed": [["resid"]],
    "std": [0.0, -1.0, float("nan")],
    "steps": NOT_COUNTS,
    "subject": ["", " ", " Rome"],
    "target": ["", " "],
    "texts_at_once": NOT_COUNTS,
    "text": ["", []],
    "tokens": NOT_COUNTS,
    "tokens_per_batch": NOT_COUNTS,
    "tolerance": [-1.0, float("nan")],
    "top": [0, 10**6],
    "top_k": [*NOT_COUNTS, 10**6],
    "traced": NOT_COUNTS,
    "traces": [[]],
    "window": NOT_COUNTS,
}
"""By a parameter's name: what nobody can have meant."""
RESULTS = {
    "Answer",
    "AnyEditTargets",
    "MultiHopRecord",
    "Question",
    "RippleQuery",
    "RippleRecord",
    "RippleTest",
    "CausalTrace",
    "Continuation",
    "CovarianceReport",
    "CutEdit",
    "EditHealth",
    "KeyCovariance",
    "KnowledgeNeurons",
    "LayerRecommendation",
    "LedgerRoom",
    "MemitTargets",
    "Prediction",
    "State",
    "TracedFacts",
}
"""Plain data. What makes no sense in them is refused where it is used."""
MEANT = [
    ("Explorer", "prompts", []),
    ("Explorer", "target", ""),
    ("Explorer", "target", " "),
]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files with odd names go where they do no harm."""
    monkeypatch.chdir(tmp_path)
    warnings.simplefilter("ignore")


def test_every_public_name_is_tried():
    assert set(NAMES) == set(CASES)
    assert set(rl.plots.__all__) <= set(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_everything_public_is_checked(name):
    """By its decorator, in the module where it is."""
    thing = PUBLIC[name]
    checks = getattr(thing.__init__ if isinstance(thing, type) else thing, "is_checked", False)
    assert checks or name in BY_THEMSELVES


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(ELSEWHERE)))
def test_what_it_can_use_works(world, name):
    arguments = CASES[name](world)
    before = kept(world)
    PUBLIC[name](**arguments)
    assert unchanged(world, before)


@pytest.mark.parametrize("name", NAMES)
def test_what_it_cannot_use_is_refused(world, name):
    parameters = inspect.signature(PUBLIC[name]).parameters
    arguments = CASES[name](world)
    before = kept(world)
    for parameter in parameters:
        for value in () if name in RESULTS else REFUSED.get(parameter, ()):
            if (name, parameter, value) in MEANT or (isinstance(PUBLIC[name], type) and value in (99, [99], [-99])):
                continue  # whether there is such a layer is seen when there is a model
            error = outcome(name, {**arguments, parameter: value})
            assert error is not None, f"{name}({parameter}={value!r}) was accepted"
            check_message(error, parameter, value)
        if isinstance(arguments.get(parameter), pd.DataFrame) and name.startswith(("plot", "sum", "strongest")):
            for value in broken_frames(arguments[parameter]):
                error = outcome(name, {**arguments, parameter: value})
                assert error is not None, f"{name}({parameter}=...) without rows or columns was accepted"
    assert unchanged(world, before)


def broken_frames(whole: pd.DataFrame) -> list[pd.DataFrame]:
    return [pd.DataFrame(), whole.iloc[:0], pd.DataFrame({"a": [1.0]})]


FREE = {"case_id", "number", "position", "positions", "severed_positions", "shots"}
"""Whole numbers that may be below 0: they count from the end, or are a data set's own."""


@pytest.mark.parametrize("name", sorted(set(NAMES) - RESULTS - BY_THEMSELVES - {"HeadMap", "MendEditor"}))
def test_numbers_are_finite_and_counts_are_no_less_than_0(world, name):
    """By annotation, so that a new argument is tried as well."""
    arguments = CASES[name](world)
    for parameter, each in inspect.signature(PUBLIC[name]).parameters.items():
        leaves = set(_leaves(each.annotation))
        wrong = [float("nan"), float("inf"), -float("inf")] if float in leaves else []
        wrong += [-5] if leaves <= {int, NoneType} and parameter not in FREE else []
        for value in wrong:
            error = outcome(name, {**arguments, parameter: value})
            assert error is not None, f"{name}({parameter}={value!r}) was accepted"
            check_message(error, parameter, value)


LONE = "half \ud83d"


@pytest.mark.parametrize("name", sorted(set(NAMES) - BY_THEMSELVES))
def test_texts_that_are_no_characters_are_refused(world, name):
    arguments = CASES[name](world)
    for parameter, each in inspect.signature(PUBLIC[name]).parameters.items():
        hints = get_args(each.annotation) or (each.annotation,)
        if str in hints and not any(get_origin(hint) is os.PathLike for hint in hints):
            error = outcome(name, {**arguments, parameter: LONE})
            assert error is not None, f"{name}({parameter}={LONE!r}) was accepted"


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_keyword_is_named_with_a_short_list(name):
    takes = inspect.signature(PUBLIC[name]).parameters
    if any(each.kind is each.VAR_KEYWORD for each in takes.values()) or name in BY_THEMSELVES:
        return
    with pytest.raises(TypeError) as caught:
        PUBLIC[name](nonsense=1)
    said = str(caught.value)
    assert said.startswith(f"{name} has no argument 'nonsense'.")
    assert "rome_lens." not in said
    assert len(said) < 300


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 130),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 0.5, 1e30]),
    st.text("a {}/.", max_size=5),
    st.sampled_from(["", "resid", "mlp", "prob", "local", "garbage", "The Eiffel Tower", FACT.text]),
    st.binary(max_size=3),
    st.sampled_from([object(), len, int, 1j, SimpleNamespace(cfg=SimpleNamespace(n_layers=3)), np.zeros(2)]),
    st.builds(torch.ones, st.lists(st.integers(0, 3), max_size=3)),
    st.sampled_from(
        [FACT, REQUEST, rl.locate.State("mlp", 99, 1), rl.locate.State("head", 5, 99), rl.RomeConfig(layer=99)]
    ),
    st.sampled_from(
        [rl.MemitConfig(layers=[99]), rl.edit.FinetuneConfig(layers=[99]), rl.edit.MendConfig(layers=[99])]
    ),
    st.sampled_from(
        [rl.GaussianNoise(), rl.locate.TokenReplacement("Rome"), pd.DataFrame(), Path("none"), Path(os.devnull)]
    ),
)
HASHABLE = st.one_of(st.none(), st.integers(-3, 130), st.text("ab{}", max_size=3))
WRONG = st.one_of(
    VALUES,
    st.lists(VALUES, max_size=3),
    st.tuples(VALUES, VALUES),
    st.dictionaries(HASHABLE, VALUES, max_size=2),
)


@pytest.mark.parametrize("name", [name for name in NAMES if inspect.signature(PUBLIC[name]).parameters])
def test_anything_is_used_or_refused(world, name):
    """Errors are of the kinds that the documentation names, from this package, and say what was received."""
    parameters = inspect.signature(PUBLIC[name]).parameters
    arguments = CASES[name](world)
    before = kept(world)
    tower = BeartypeConf(is_pep484_tower=True)

    @SETTINGS
    @given(st.sampled_from(sorted(parameters)), WRONG)
    def attempt(parameter: str, value: Any) -> None:
        try:
            fits = is_bearable(value, parameters[parameter].annotation, conf=tower)
        except TypeError:  # the length of a tensor without dimensions
            fits = False
        if (name in ELSEWHERE and fits) or costly(name, parameter, value):
            return
        error = outcome(name, {**arguments, parameter: value})
        assert unchanged(world, before)
        assert fits or error is not None, f"{name}({parameter}={value!r}) was accepted"
        if error is not None:
            check_message(error, parameter, value)

    attempt()


def costly(name: str, parameter: str, value: Any) -> bool:
    """Whether a call means much work, and rightly so."""
    if parameter == "path" and value is None:
        return True  # a download
    return parameter in ("samples", "steps", "window", "length", "new_tokens") and isinstance(value, int) and value > 20


def outcome(name: str, arguments: dict[str, Any]) -> BaseException | None:
    """The error of a call; None if there was none. What a public function promises about errors holds."""
    try:
        PUBLIC[name](**arguments)
    except ACCEPTED as error:
        frames = list(traceback.walk_tb(error.__traceback__))
        raised_by = frames[-1][0].f_globals["__name__"].partition(".")[0]
        if raised_by not in ("rome_lens", "beartype"):
            raise AssertionError(f"{name} failed in the depths of {raised_by}: {error!r}") from error
        return error
    return None


def check_message(error: BaseException, parameter: str, value: Any) -> None:
    """Says what was received, or where."""
    text = str(error)
    signs = [parameter, *(show(each) for each in (value, *parts(value)) for show in (str, repr))]
    assert len(text) > 20, text
    assert any(sign and sign in text for sign in signs), f"{error!r} does not say that {parameter} is {value!r}"


def parts(value: Any) -> list[Any]:
    """What may be named in place of the whole."""
    if isinstance(value, torch.Tensor):
        return [list(value.shape)]
    if isinstance(value, pd.DataFrame):
        return ["frame"]
    if is_dataclass(value):
        return [part for each in vars(value).values() for part in (each if isinstance(each, list) else [each])]
    if isinstance(value, str):
        return [str(Path(value))] if value else ["file ."]
    if isinstance(value, list | tuple | dict) and not value:
        return ["no ", "None of"]  # records, traces, ...
    return list(value) if isinstance(value, list | tuple | dict) else ["null_space_threshold"] if value is None else []


def kept(world: World) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in world.model.state_dict().items()}


def unchanged(world: World, before: dict[str, torch.Tensor]) -> bool:
    after = world.model.state_dict()
    return after.keys() == before.keys() and all(torch.equal(before[name], after[name]) for name in before)
