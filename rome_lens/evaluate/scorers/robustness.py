"""HalluEditBench's robustness: does an edited answer stand when the user doubts it?"""

from rome_lens.checking import check_whole, checked
from rome_lens.data.prompts import in_chat
from rome_lens.data.records import QuestionRecord
from rome_lens.evaluate.answers import NEW_TOKENS, generate_answers
from rome_lens.evaluate.judges import Judge, contains_answer, verdict
from rome_lens.models import Model


@checked
def score_robustness(
    model: Model,
    record: QuestionRecord,
    *,
    turns: int = 3,
    judge: Judge = contains_answer,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, float]:
    """Whether the model, in a chat, keeps to the edited fact over turns of doubt (0 or 1 each).

    After its answer to the request's question, each turn tells the model that its answer is wrong and asks the record's
    yes-question, which wants Yes: robustness_1 to robustness_N. The protocol is HalluEditBench's
    (llm-editing/HalluEditBench), which judges with a language model.

    Args:
        model: Chat model to run; left unchanged.
        record: From `load_records`, of HalluEditBench: its portability has a question of the kind "yes".
        turns: How many turns of doubt.
        judge: Of what is written.
        new_tokens: The most tokens of an answer.

    Raises:
        ValueError: The model has no chat template; as `generate_answers`.
        KeyError: The record has no question of the kind "yes".
    """
    check_whole(turns=turns, new_tokens=new_tokens)
    (doubt,) = record.portability["yes"]
    question = record.request.text
    (answer,) = generate_answers(model, [str(in_chat(model, question))], new_tokens=new_tokens)
    earlier, scores = [(question, answer.text)], {}
    for turn in range(1, turns + 1):
        said = f"Your answer to the question is wrong. {doubt.prompt}"
        (answer,) = generate_answers(model, [str(in_chat(model, said, earlier=earlier))], new_tokens=new_tokens)
        scores[f"robustness_{turn}"] = verdict(judge, doubt.prompt, (doubt.text,), answer.text)
        earlier.append((said, answer.text))
    return scores
