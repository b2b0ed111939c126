"""The same edit under several protocols: what each number is, computed by hand, and that they are never mixed."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch

import rome_lens as rl
from rome_lens.data.prompts import in_chat, put
from rome_lens.data.records import Question, QuestionRecord, subject_range
from rome_lens.evaluate.answers import generate_answers
from rome_lens.evaluate.judges import contains_answer
from rome_lens.evaluate.protocols import PROTOCOLS, Protocol, record_questions
from rome_lens.evaluate.summary import by_protocol
from rome_lens.models.tokens import tokenize
from tests.evaluate.test_scoring import failing, run
from tests.evaluate.test_sequence import RECORDS, noise, same

SHORT = replace(PROTOCOLS["generated"], new_tokens=4)
ALL = ("probability", "teacher_forced", SHORT)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION = QuestionRecord(
    rl.EditRequest("Who is {}?", "Dante", "Italian", true_answer="French"),
    paraphrase_prompts=("Dante is",),
    portability={"hop": (Question("The capital of Dante is", "Rome", aliases=("Roma",), instead="Paris"),)},
    locality={"nq": (rl.data.Continuation("The Space Needle is in", "Seattle"), Question("Beats Music is", ""))},
    case_id=7,
)


@pytest.fixture
def chatting(tiny_model):
    """A tiny Llama with a chat template, in a copy."""
    model = copy.deepcopy(tiny_model("llama", bos=True))
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.chat_template = TEMPLATE
    return model


@torch.no_grad()
def greedy(model, prompt: str, new_tokens: int = 50, stops=(".", "\n")) -> tuple[str, list[int]]:
    """What `generate_answers` does, in a loop of whole passes."""
    ids = list(tokenize(model, prompt).ids)
    new: list[int] = []
    while len(new) < new_tokens:
        new.append(int(model(torch.tensor([ids + new]))[0, -1].argmax()))
        text = model.tokenizer.decode(new, skip_special_tokens=True)
        if any(stop in text for stop in stops) or new[-1] in model.tokenizer.all_special_ids:
            break
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip(), new


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "mistral", "gemma2"])
@pytest.mark.parametrize("stops", [(".", "\n"), ("e", "the c")])
def test_answers_in_a_batch_are_those_of_each_prompt_alone(tiny_model, family, stops):
    """Rows of other lengths, a prompt that occurs twice, and batches of any size change nothing."""
    model = tiny_model(family)
    prompts = ["Rome", "The Eiffel Tower is located in the city of", "Dante is", "Rome", "One, two"]
    expected = [greedy(model, prompt, 12, stops) for prompt in prompts]
    for rows in (2, 64):
        found = generate_answers(model, prompts, new_tokens=12, stops=stops, rows_per_batch=rows)
        assert [(each.text, list(each.tokens)) for each in found] == expected
    assert any(len(each.tokens) < 12 for each in found) or stops[0] == "."


def test_an_answer_that_does_not_fit_the_context_is_refused(tiny):
    with pytest.raises(ValueError, match="has 80 tokens, and 50 new ones are asked for, but gpt2 reads at most 128"):
        generate_answers(tiny, [" Rome" * 80])


def test_rows_of_each_protocol_are_its_own(tiny, weights_of):
    """The probabilities are score_record's; teacher forcing counts tokens; a written answer is the whole target."""
    before = weights_of(tiny)
    frame = run(tiny, RECORDS, {"noise": noise}, protocols=ALL)
    assert same(tiny, before)
    alone = run(tiny, RECORDS, {"noise": noise})
    mine = frame[frame["protocol"] == "probability"].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone)
    assert list(frame["protocol"].unique()) == ["probability", "teacher_forced", "generated"]
    assert set(frame.loc[frame["protocol"] != "probability", "metric"]) == {"efficacy", "paraphrase", "locality"}
    values = frame.set_index(["case_id", "method", "protocol", "metric"])["value"]
    record = RECORDS[0]
    with noise(tiny, record.request).applied(tiny):
        now = greedy(tiny, "The Space Needle is in", 4)[1]
        text = greedy(tiny, record.request.text, 4)[0]
    assert values[0, "noise", "generated", "locality"] == (now == greedy(tiny, "The Space Needle is in", 4)[1])
    assert values[0, "noise", "generated", "efficacy"] == (text.lower() == "rome")
    assert (values.xs("base", level="method").xs("locality", level="metric") == 1).all()


def test_a_model_that_writes_one_word_scores_by_hand(tiny):
    """It says " Rome" and then a stop: the multi-hop answer is written, an alias counts, and all else is not."""
    model = copy.deepcopy(tiny)
    rome, stop = (model.tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (" Rome", "."))
    assert model.tokenizer.decode([rome]) == " Rome"
    with torch.no_grad():
        model.unembed.b_U[rome] = 1e4
        written = run(model, [QUESTION], {}, protocols=[replace(PROTOCOLS["generated"], new_tokens=1)])
        assert written.set_index("metric")["value"].to_dict() == {
            "efficacy": 0,
            "paraphrase": 0,
            "portability_hop": 1,
            "locality_nq": 1,
            "portability": 1,
            "locality": 1,
        }
        model.unembed.b_U[stop] = 1e5
        stopped = run(model, [QUESTION], {}, protocols=["generated", "generated_contains"])
    assert set(stopped.loc[stopped["metric"].str.startswith("portability"), "value"]) == {0}
    aliased = replace(
        QUESTION, portability={"hop": (Question("The capital of Dante is", "The Eternal City", aliases=("Rome!",)),)}
    )
    with torch.no_grad():
        model.unembed.b_U[stop] = 0
        again = run(model, [aliased], {}, protocols=[replace(PROTOCOLS["generated"], new_tokens=1)])
    assert again.set_index("metric")["value"]["portability"] == 1


def test_questions_are_compared_where_an_answer_competes(tiny):
    frame = run(tiny, [QUESTION], {}, protocols=["probability"]).set_index("metric")["value"]
    p = {}
    for prompt, text in (
        ("Who is Dante?", "Italian"),
        ("Who is Dante?", "French"),
        ("The Space Needle is in", "Seattle"),
    ):
        record = rl.EditRecord(rl.EditRequest("{}", prompt, text), "Hugo")
        log_p = rl.evaluate.score_record(tiny, record)
        p[prompt, text] = log_p
    assert set(frame.index) >= {"efficacy", "p_efficacy", "portability", "locality", "p_locality_nq"}
    as_record = rl.EditRecord(QUESTION.request, "French")
    assert frame["efficacy"] == rl.evaluate.score_record(tiny, as_record)["ES"]


def test_protocols_are_put_into_the_template_or_the_instruction(chatting):
    record = RECORDS[0]
    put_in = in_chat(chatting, record)
    assert put_in.request.text == "<|user|>The Eiffel Tower is located in the city of\n<|assistant|>"
    assert put_in.neighborhood_prompts == ("<|user|>The Space Needle is in\n<|assistant|>",)
    text, positions = subject_range(chatting, put_in.request)
    assert "".join(chatting.tokenizer.decode([text.ids[i]]) for i in positions).strip() == "The Eiffel Tower"
    assert in_chat(chatting, "Hi", earlier=[("a", "b")]) == "<|user|>a\n<|assistant|>b\n<|user|>Hi\n<|assistant|>"
    asked = in_chat(chatting, QUESTION)
    assert asked.portability["hop"][0].prompt == "<|user|>The capital of Dante is\n<|assistant|>"
    told_short = replace(PROTOCOLS["generated_instruction"], new_tokens=4)
    frame = run(chatting, [record], {}, protocols=["probability_chat", told_short])
    expected = rl.evaluate.score_record(chatting, put_in)
    chat = frame[frame["protocol"] == "probability_chat"].set_index("metric")["value"].to_dict()
    assert chat == pytest.approx(expected)
    told = put(record, lambda prompt: f"Please answer the question:\n\nQ: {prompt}\nA:")
    written = greedy(chatting, told.request.text, 4)[0]
    efficacy = frame[(frame["protocol"] == "generated_instruction") & (frame["metric"] == "efficacy")]
    assert efficacy["value"].item() == (written.lower() == "rome")


def test_a_model_without_a_template_is_refused_before_an_edit(tiny):
    made = []
    with pytest.raises(ValueError, match="gpt2 has no chat template"):
        run(tiny, RECORDS, {"noise": lambda m, r: made.append(r)}, protocols=["generated_chat"])
    assert not made


def test_a_judge_of_ones_own_decides_and_shares_what_was_written(tiny):
    seen = []

    def lenient(question, answers, written):
        seen.append((question, tuple(answers)))
        return 1.0

    mine = Protocol("mine", "generated", judge=lenient, new_tokens=4)
    frame = run(tiny, [QUESTION], {}, protocols=[SHORT, mine])
    values = frame[frame["protocol"] == "mine"].set_index("metric")["value"]
    assert values["efficacy"] == values["portability"] == 1
    assert seen == [
        ("Who is Dante?", ("Italian",)),
        ("Dante is", ("Italian",)),
        ("The capital of Dante is", ("Rome", "Roma")),
    ]


def test_a_run_goes_on_with_another_protocol(tiny, tmp_path):
    """What is there is not measured again; a protocol of the same name that is another one is refused."""
    run(tiny, RECORDS, {"noise": noise}, protocols=["teacher_forced"], out=tmp_path)
    both = run(tiny, RECORDS, {"noise": noise}, protocols=["teacher_forced", SHORT], out=tmp_path)
    pd.testing.assert_frame_equal(both, run(tiny, RECORDS, {"noise": noise}, protocols=["teacher_forced", SHORT]))
    other = replace(PROTOCOLS["generated"], new_tokens=3)
    with pytest.raises(rl.errors.FormatError, match=r"'protocol generated.new_tokens': 4}, but .* 3}"):
        run(tiny, RECORDS, {"noise": noise}, protocols=[other], out=tmp_path)


def test_a_failed_edit_has_a_row_for_each_protocol(tiny):
    with pytest.warns(rl.errors.EditWarning, match="1 edits by 'failing'"):
        frame = run(tiny, RECORDS, {"failing": failing}, protocols=ALL)
    summary = rl.summarize(frame).set_index(["method", "protocol"])
    assert summary.loc["failing", "failed"].to_list() == [1, 1, 1]
    table = by_protocol(frame).set_index(["method", "metric"])
    assert table.loc[("failing", "efficacy"), "n"] == 2
    assert table.loc[("base", "efficacy"), "n"] == 3


def test_unlike_protocols_are_never_averaged():
    rows = [(i, "m", way, "efficacy", value, "") for way, value in (("a", 1.0), ("b", 0.0)) for i in range(3)]
    rows += [(3, "m", "a", "efficacy", 0.0, ""), (0, "m", "c", "ES", 0.5, ""), (1, "m", "c", "ES", 0.5, "")]
    frame = pd.DataFrame(rows, columns=["case_id", "method", "protocol", "metric", "value", "error"])
    summary = rl.summarize(frame).set_index("protocol")
    assert summary["efficacy"].to_dict() == pytest.approx({"a": 0.75, "b": 0.0, "c": float("nan")}, nan_ok=True)
    (row,) = by_protocol(frame).to_dict("records")
    assert (row["n"], row["a"], row["b"], row["c"]) == (2, 1.0, 0.0, 0.5)
    assert row["a_low"] < row["a_high"] == 1.0
    assert 0.0 == row["b_low"] < row["b_high"]
    figure = rl.plots.plot_scores(rl.summarize(frame))
    assert [note.text for note in figure.layout.annotations] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="more than once"):
        rl.summarize(frame.drop(columns="protocol"))


def test_what_cannot_be_meant_is_refused(tiny):
    with pytest.raises(ValueError, match="There is no protocol 'genrated', expected one of probability, "):
        run(tiny, RECORDS, {}, protocols=["genrated"])
    with pytest.raises(ValueError, match=r"protocols is 'generated', expected a list of names: \['generated'\]"):
        run(tiny, RECORDS, {}, protocols="generated")
    with pytest.raises(ValueError, match="The protocol 'generated' is given twice"):
        run(tiny, RECORDS, {}, protocols=["generated", "generated"])
    with pytest.raises(ValueError, match="protocols is empty and there is no score"):
        run(tiny, RECORDS, {}, protocols=[])
    with pytest.raises(ValueError, match="there is no score. Give score="):
        run(tiny, RECORDS, {}, before=rl.evaluate.locality_predictions)
    with pytest.raises(ValueError, match="both named 'probability'"):
        run(tiny, RECORDS, {}, protocols=["probability"], score=rl.evaluate.score_record)
    with pytest.raises(ValueError, match="instruction 'Answer!' holds {} 0 times"):
        Protocol("mine", "generated", instruction="Answer!")


def test_questions_have_the_answers_that_compete():
    questions = record_questions(QUESTION)
    assert questions["efficacy"] == (Question("Who is Dante?", "Italian", instead="French"),)
    assert questions["locality_nq"][0].instead == "Italian"
    assert contains_answer("", ["the Eternal City"], "It is The Eternal city, Rome") == 1
    assert contains_answer("", ["Rom"], "Rome") == 0
