"""Presets: the published numbers, models recognised by what they are, and guesses that are called so."""

import copy
import re

import pytest

import rome_lens as rl
from rome_lens.edit.covariance.shipped import shipped_covariance
from rome_lens.edit.presets.table import Preset, find_preset, list_presets
from rome_lens.models import model_family

SHAPES = {
    "gpt2": {
        "GPT-2 medium": (24, 1024, 4096),
        "GPT-2 large": (36, 1280, 5120),
        "GPT-2 XL": (48, 1600, 6400),
        "GPT-2 small": (12, 768, 3072),
    },
    "gptj": {"GPT-J 6B": (28, 4096, 16384)},
    "neox": {"GPT-NeoX 20B": (44, 6144, 24576)},
    "llama": {
        "Llama-2-7B": (32, 4096, 11008),
        "Llama-3-8B": (32, 4096, 14336),
        "Llama-3.2-3B": (28, 3072, 8192),
        "Llama-3.2-1B": (16, 2048, 8192),
        "Llama-2-13B": (40, 5120, 13824),
        "SmolLM2-360M": (32, 960, 2560),
    },
    "qwen2": {"Qwen2.5-7B": (28, 3584, 18944)},
}
"""Of true models: layers, d_model, d_mlp."""


@pytest.fixture
def shaped(tiny_model):
    """A model that says it is of a true one's family and shape, and is called something else."""

    def make(name: str):
        family, shape = next((family, known[name]) for family, known in SHAPES.items() if name in known)
        model = copy.deepcopy(tiny_model(family))
        model.cfg.model_name = "my-finetuned-copy"
        model.cfg.n_layers, model.cfg.d_model, model.cfg.d_mlp = shape
        return model

    return make


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("GPT-2 medium", rl.RomeConfig(layer=8, clamp_norm_factor=3, steps=20)),
        ("GPT-2 large", rl.RomeConfig(layer=12, steps=20)),
        ("GPT-2 XL", rl.RomeConfig(layer=17, steps=20)),
        ("GPT-J 6B", rl.RomeConfig(layer=5, steps=20)),
        ("GPT-NeoX 20B", rl.RomeConfig(layer=15, steps=20)),
        ("Llama-3-8B", rl.RomeConfig(layer=5, weight_decay=1e-3, steps=25)),
        ("Qwen2.5-7B", rl.RomeConfig(layer=5, weight_decay=1e-3, steps=25)),
        ("GPT-2 XL", rl.MemitConfig(layers=(13, 14, 15, 16, 17), steps=20, covariance_weight=20_000)),
        ("GPT-J 6B", rl.MemitConfig(layers=(3, 4, 5, 6, 7, 8), covariance_weight=15_000)),
        ("Llama-3-8B", rl.MemitConfig(layers=(4, 5, 6, 7, 8), learning_rate=0.1, covariance_weight=15_000)),
        (
            "Llama-2-7B",
            rl.MemitConfig(layers=(4, 5, 6, 7, 8), weight_decay=1e-3, clamp_norm_factor=4, covariance_weight=15_000),
        ),
        ("Llama-3-8B", rl.edit.AlphaEditConfig(layers=(4, 5, 6, 7, 8), learning_rate=0.1)),
        ("Qwen2.5-7B", rl.edit.AlphaEditConfig(layers=(7, 8, 9, 10, 11), learning_rate=0.1)),
        ("GPT-2 XL", rl.edit.EmmetConfig(layers=(17,), steps=20)),
        ("GPT-J 6B", rl.edit.FinetuneConfig(layers=(21,))),
    ],
)
def test_a_known_shape_gets_the_published_numbers_whatever_it_is_called(shaped, name, config):
    """Without a warning, which would be an error here."""
    assert type(config).for_model(shaped(name)) == config


def test_what_asks_for_a_covariance_names_the_known_layer(shaped):
    with pytest.raises(ValueError, match=r"layers=\[17\]"):
        shipped_covariance(shaped("GPT-2 XL"))


@pytest.mark.smollm2
def test_the_shipped_covariance_is_of_the_preset_layer(smollm2):
    assert shipped_covariance(smollm2).layer == rl.RomeConfig.for_model(smollm2).layer == 4


def test_another_shape_of_the_name_is_another_model(tiny):
    """The name alone says nothing: the tiny model is no GPT-2 XL."""
    model = copy.deepcopy(tiny)
    model.cfg.model_name = "gpt2-xl"
    assert find_preset(model, "rome").provenance == "guess"


@pytest.mark.parametrize(
    ("name", "nearest", "layers"),
    [
        ("GPT-2 small", "GPT-2 medium", (4,)),  # 8 of 24, at the same depth of 12
        ("Llama-3.2-1B", "Llama-3.2-3B", (3,)),
        ("Llama-2-13B", "Llama-2-7B", (6,)),  # MLPs as wide for their model, unlike Llama 3's
        ("SmolLM2-360M", "SmolLM2-135M", (4,)),
    ],
)
def test_another_size_of_a_family_gets_a_guess_that_is_called_one(shaped, name, nearest, layers):
    model = shaped(name)
    preset = find_preset(model, "rome")
    assert (preset.model, preset.provenance, preset.layers) == (nearest, "guess", layers)
    with pytest.warns(rl.errors.EditWarning, match=f"guess: those of {nearest}.*scaled by depth.*recommend_layers"):
        assert rl.RomeConfig.for_model(model).layer == layers[-1]
    with pytest.warns(rl.errors.EditWarning, match="a guess"):
        assert rl.edit.suggested_layer(model) == layers[-1]


def test_a_guess_scales_a_range_and_leaves_the_weight_of_c_to_the_width(shaped):
    model = shaped("Llama-3.2-1B")
    preset = find_preset(model, "memit")
    assert preset.layers == (2, 3, 4)
    with pytest.warns(rl.errors.EditWarning, match="a guess"):
        config = rl.MemitConfig.for_model(model)
    assert config.covariance_weight is None
    assert config.weight(8192) == 7500


def test_an_unknown_family_is_told_what_is_known_and_what_to_do(tiny_model):
    model = tiny_model("opt")
    expected = (
        r"No rome preset is known for 'opt' \(family OPT\), expected one of the families GPT2, .*Llama.*Measure which "
        r"layer to edit: recommend_layers\(model\)\."
    )
    for call in (rl.RomeConfig.for_model, rl.edit.suggested_layer):
        with pytest.raises(ValueError, match=expected):
            call(model)
    with pytest.raises(ValueError, match="No emmet preset .* GPT2, GPTJ, Llama"):
        rl.edit.EmmetConfig.for_model(tiny_model("neox"))


def test_a_bridge_is_recognised_as_well(tiny_folder):
    assert model_family(rl.load_model(tiny_folder("gemma3"), device="cpu")) == "Gemma3"


def test_every_row_has_a_known_model_a_provenance_and_a_source():
    table = list_presets()
    assert not table.duplicated(["model", "method"]).any()
    assert set(table["provenance"]) == {"measured", "published", "inherited"}
    assert (table["source"].str.len() > 10).all()
    assert table["layers"].map(lambda text: bool(re.fullmatch(r"(\w+ )?\d+(-\d+)?(; \w+ \d+(-\d+)?)*", text))).all()


def test_matrices_other_than_the_output_are_named(shaped):
    """UltraEdit edits gates in some layers and up-projections in others."""
    preset = find_preset(shaped("Llama-3-8B"), "ultraedit")
    assert isinstance(preset, Preset)
    assert preset.matrices == {"gate": tuple(range(11, 16)), "in": tuple(range(18, 25))}
    assert preset.layers == (*range(11, 16), *range(18, 25))
    config = rl.edit.UltraEditConfig.for_model(shaped("Llama-3-8B"))
    assert config.layers == preset.matrices
