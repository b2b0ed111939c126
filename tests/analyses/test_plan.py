"""The forecast of a shape: the numbers that are published, and errors that say what to give."""

import json

import pytest

from analyses import plan
from analyses.common.cost import shape_of_config
from tests.tiny import CONFIGS


@pytest.mark.parametrize(
    ("name", "billions"), [("gpt2-xl", 1.638), ("gpt-j", 6.051), ("llama-3-8b", 8.030), ("llama-3.2-1b", 1.499)]
)
def test_the_shapes_are_those_of_the_models(name, billions):
    """As published, with tied embeddings twice: 1.558 + 0.080, 6.051, 8.030, 1.236 + 0.263."""
    shape = shape_of_config(plan.configuration(name))
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=2e-3)
    assert plan.SHAPES[next(known for known in plan.SHAPES if known.startswith(name))]["source"]


def test_a_plan_is_printed_and_grows_with_the_work(tiny_folder, capsys):
    table = {}
    for samples in ("2", "4"):
        plan.main(["--model", str(tiny_folder("gpt2")), "--samples", samples])
        table[samples] = capsys.readouterr().out
        assert "loading" in table[samples]
        assert f"a trace (mlp, {samples} samples)" in table[samples]
    shape = shape_of_config(CONFIGS["gpt2"]())
    prompt = plan.cost.Prompt(10, range(4))
    one, two = (
        plan.forecast(shape, layer=1, prompt=prompt, samples=n, itemsize=4, speed=plan.cost.Speed(1e9)) for n in (2, 4)
    )
    assert 1.8 < two["seconds"][1] / one["seconds"][1] < 2
    assert two["seconds"][5] == one["seconds"][5]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--model", "gpt"], "expected the beginning of one of gpt2-xl"),
        (["--model", "gpt2-xl", "--layer", "48"], "has layers 0 to 47"),
        (["--model", "gpt2-xl", "--tokens", "3"], "expected at least 4 and 1"),
    ],
)
def test_what_does_not_fit_is_refused(given, message, capsys):
    with pytest.raises(SystemExit):
        plan.main(given)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("written", [{"model_type": "nonsense"}, {}, []])
def test_a_foreign_file_is_refused(tmp_path, written):
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match="is not a config.json of a model that transformers knows"):
        plan.configuration(str(tmp_path))


def test_a_mixture_of_experts_has_no_plan():
    with pytest.raises(ValueError, match="one dense MLP each"):
        shape_of_config(CONFIGS["mixtral"]())
