"""lm-evaluation-harness: its numbers are those of plain passes, on tasks whose data lie in a local file."""

import json

import pytest
import torch
from lm_eval.api.instance import Instance

import rome_lens as rl
from rome_lens.evaluate.harness.model import HarnessModel
from rome_lens.evaluate.likelihood import mean_log_probabilities
from tests.edit.artifact.test_edit import made_up

pytestmark = [pytest.mark.filterwarnings("ignore")]  # of the harness and of what it imports

QUESTIONS = [
    {"question": "The capital of France is", "choices": ["Rome", "Paris", "Seattle, in the city"], "answer": 1},
    {"question": "The mother tongue of Dante is", "choices": ["Italian", "French", "In"], "answer": 0},
    {"question": "Honda Civic is a product of", "choices": ["Apple", "Honda", "Porsche"], "answer": 1},
    {"question": "The Colosseum is located in", "choices": ["Rome", "Paris", "Antarctica"], "answer": 0},
]
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{data}"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


def asked(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """Writes a task and its data, and gives the folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def write(task: str, documents: list[dict], **names: str):
        data = tmp_path / "data.jsonl"
        data.write_text("\n".join(map(json.dumps, documents)))
        (tmp_path / "task.yaml").write_text(task.format(data=data, **names))
        return tmp_path

    return write


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
def test_choices_are_those_of_our_log_probabilities(tiny_model, tasks, family, bos):
    """Also of an edited model; torch's random state stays as it is."""
    model = tiny_model(family, bos=bos)
    folder = tasks(CHOICE, QUESTIONS)

    def expected() -> float:
        right = 0
        for each in QUESTIONS:
            asked = [rl.data.Continuation(each["question"], choice) for choice in each["choices"]]
            lengths = [len(model.tokenizer(f" {c}", add_special_tokens=False)["input_ids"]) for c in each["choices"]]
            right += int((mean_log_probabilities(model, asked) * torch.tensor(lengths)).argmax()) == each["answer"]
        return right / len(QUESTIONS)

    state = torch.get_rng_state()
    frame = rl.evaluate.run_harness(model, ["local_choice"], tasks_in=folder, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert frame.loc[0, ["task", "metric", "filter", "n"]].tolist() == ["local_choice", "acc", "none", 4]
    assert frame.loc[0, "value"] == expected()
    with made_up(model).applied(model):
        assert (
            rl.evaluate.run_harness(model, ["local_choice"], tasks_in=folder, progress=False).loc[0, "value"]
            == expected()
        )


@pytest.mark.parametrize(("family", "bos"), [("gpt2", False), ("llama", True)])
def test_log_likelihoods_are_sums_of_ours_and_greedy_where_each_token_is(tiny_model, family, bos):
    """Also behind a context that ends with a space, and behind none."""
    model = tiny_model(family, bos=bos)
    pairs = [(each["question"], f" {choice}") for each in QUESTIONS for choice in each["choices"]]
    best = model.tokenizer.decode([model(model.to_tokens(QUESTIONS[0]["question"]))[0, -1].argmax().item()])
    pairs += [("The capital of France is ", "Paris"), ("", "Rome is"), (QUESTIONS[0]["question"], best)]
    answers = HarnessModel(model, progress=False).loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    ours = mean_log_probabilities(model, [rl.data.Continuation(*pair) for pair in pairs[:-3]])
    for (value, _), mean, (_, choice) in zip(answers, ours, pairs, strict=False):
        assert value == pytest.approx(
            mean.item() * len(model.tokenizer.encode(choice, add_special_tokens=False)), rel=1e-4
        )
    assert answers[-3][0] == pytest.approx(answers[pairs.index(("The capital of France is", " Paris"))][0], rel=1e-5)
    ids = torch.tensor([[0, *model.tokenizer("Rome is", add_special_tokens=False)["input_ids"]]])
    plain = model(ids)[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).sum().item()
    assert answers[-2][0] == pytest.approx(plain, rel=1e-4)
    if len(model.tokenizer.encode(best, add_special_tokens=False)) == 1:
        assert answers[-1][1]
    assert not all(greedy for _, greedy in answers)


@pytest.mark.parametrize("length", [6, 128])
@torch.no_grad()
def test_whole_texts_have_the_log_probability_of_plain_passes(tiny, monkeypatch, length):
    """The text's tokens after the end-of-text token, in windows where they do not fit into the context."""
    monkeypatch.setattr(tiny.cfg, "n_ctx", length)
    text = "The capital of France is Paris; the capital of Italy is Rome."
    ids = tiny.tokenizer(text, add_special_tokens=False)["input_ids"]
    expected = 0.0
    for done in range(0, len(ids), length):
        new = len(ids[done : done + length])
        read = torch.tensor([[0, *ids][max(0, done + new - length) : done + new]])
        log_probs = tiny(read)[0, -new:].log_softmax(-1)
        expected += log_probs.gather(-1, torch.tensor(ids[done : done + new])[:, None]).sum().item()
    (value,) = HarnessModel(tiny, progress=False).loglikelihood_rolling(asked("loglikelihood_rolling", [(text,)]), True)
    assert len(ids) > 6
    assert value == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_texts_are_greedy_and_end_where_the_task_says(tiny):
    """Of prompts and lengths that differ, written together."""
    written = []
    for i, each in enumerate(QUESTIONS):
        ids = tiny.tokenizer(each["question"], add_special_tokens=False)["input_ids"]
        start = len(ids)
        for _ in range(4 + i):
            ids = [*ids, tiny(torch.tensor([ids]))[0, -1].argmax().item()]
        written.append(tiny.tokenizer.decode(ids[start:], skip_special_tokens=True))
    end = written[1][2]
    options = [{"max_gen_toks": 4 + i, "until": [end] if i == 1 else []} for i in range(4)]
    requests = asked(
        "generate_until", [(each["question"], each_) for each, each_ in zip(QUESTIONS, options, strict=True)]
    )
    texts = HarnessModel(tiny, progress=False).generate_until(requests, disable_tqdm=True)
    assert texts == [written[0], written[1][: written[1].index(end)], *written[2:]]
    with pytest.raises(ValueError, match="they are written greedily"):
        sampled = asked("generate_until", [("Rome", {"do_sample": True, "temperature": 0.7})])
        HarnessModel(tiny).generate_until(sampled)


def test_no_tasks_are_refused(tiny):
    with pytest.raises(ValueError, match="expected a list of one task's name or more"):
        rl.evaluate.run_harness(tiny, [])
