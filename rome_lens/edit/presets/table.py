"""The numbers that are known for a model and a method, each with its source: presets.csv, and models.csv for shapes."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from math import log
from typing import Any, Literal

import pandas as pd

from rome_lens.checking import checked
from rome_lens.errors import EditWarning, warn
from rome_lens.models import MlpMatrix, Model, check_model, model_family

Method = Literal["rome", "memit", "alphaedit", "emmet", "ultraedit", "finetune"]
Provenance = Literal["measured", "published", "inherited", "guess"]
Shape = tuple[str, int, int, int]  # family, layers, d_model, d_mlp

_NOT_NUMBERS = {"model", "method", "layers", "provenance", "source"}
_WHOLE = {"steps"}
_OUTPUT: MlpMatrix = "out"


@checked
@dataclass(frozen=True)
class Preset:
    """The numbers that a method is run with on a model, and where they come from.

    Attributes:
        model: whose numbers they are.
        method: the method's function in `rome_lens.edit`.
        matrices: the edited blocks, ascending, by the MLP matrix that is edited in them: "out", "in" or "gate".
        numbers: fields of the method's config; the config's own defaults hold for those that are missing.
        provenance: "measured" by this package; "published" by the method's authors; "inherited": used by others, mostly
            copied from another model; "guess": those of the nearest known model of the family, the layers scaled by
            depth.
        source: where the numbers stand.
    """

    model: str
    method: Method
    matrices: Mapping[MlpMatrix, tuple[int, ...]]
    numbers: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = "guess"
    source: str = ""

    @property
    def layers(self) -> tuple[int, ...]:
        """The edited blocks, ascending."""
        return tuple(sorted({layer for layers in self.matrices.values() for layer in layers}))


@checked
def list_presets() -> pd.DataFrame:
    """All presets of the package: model, method, layers, the numbers (NaN: the config's default), provenance, source.

    The layers are those of output matrices unless "gate" or "in" (up_proj) stands before them.
    """
    return _read("presets.csv")


@checked
def find_preset(model: Model, method: Method) -> Preset:
    """The numbers for a model, by its family and shape, whatever it is called: a fine-tuned copy has the same.

    A model of another size than those that are known gets the nearest one's of its family, with the provenance "guess".
    Llama 1, Llama 2 and other models of one family and shape cannot be told apart.

    Args:
        model: Model to recognise; it is not run.
        method: The method's name, such as "rome".

    Raises:
        ValueError: nothing is known for the model's family and this method.
    """
    preset = nearest_preset(model, method)
    if preset is None:
        known = sorted({shape[0] for name, shape in _shapes().items() if name in _presets(method)})
        raise ValueError(
            f"No {method} preset is known for {model.cfg.model_name!r} (family {model_family(model) or 'unknown'}), "
            f"expected one of the families {', '.join(known)}. Measure which layer to edit: recommend_layers(model)."
        )
    return preset


def preset_to_use(model: Model, method: Method) -> Preset:
    """As `find_preset`; a guess is warned of (EditWarning)."""
    preset = find_preset(model, method)
    if preset.provenance == "guess":
        warn(
            f"The {method} numbers for {model.cfg.model_name!r} are a guess: {preset.source}, with layers "
            f"{list(preset.layers)} scaled by depth. Measure which layer to edit: recommend_layers(model).",
            EditWarning,
        )
    return preset


def nearest_preset(model: Model, method: Method) -> Preset | None:
    """As `find_preset`, but None if nothing is known."""
    check_model(model)
    cfg = model.cfg
    shape = model_family(model), cfg.n_layers, cfg.d_model, cfg.d_mlp or 0
    presets = _presets(method)
    alike = [name for name, known in _shapes().items() if name in presets and known[0] == shape[0]]
    if not alike or not shape[3]:
        return None
    nearest = min(alike, key=lambda name: _distance(_shapes()[name], shape))
    found, known = presets[nearest], _shapes()[nearest]
    return found if known == shape else _scaled(found, known[1], cfg.n_layers)


def _distance(one: Shape, other: Shape) -> float:
    """How unlike two models of a family are: in depth, in width, and in how wide the MLPs are for it."""
    pairs = [(one[1], other[1]), (one[2], other[2]), (one[3] / one[2], other[3] / other[2])]
    return sum(abs(log(a / b)) for a, b in pairs)


def _scaled(preset: Preset, depth: int, new_depth: int) -> Preset:
    """The preset for a model with `new_depth` layers in place of `depth`: each range of layers at the same share.

    lambda, MEMIT's weight of C, is left to the config, which knows the width.
    """

    def scale(layers: tuple[int, ...]) -> tuple[int, ...]:
        ends = (round((layer + 0.5) * new_depth / depth - 0.5) for layer in (layers[0], layers[-1]))
        first, last = (min(max(end, 0), new_depth - 1) for end in ends)
        return tuple(range(first, last + 1))

    return replace(
        preset,
        matrices={name: scale(layers) for name, layers in preset.matrices.items()},
        numbers={name: number for name, number in preset.numbers.items() if name != "covariance_weight"},
        provenance="guess",
        source=f"those of {preset.model} ({preset.provenance}: {preset.source})",
    )


@cache
def _shapes() -> dict[str, Shape]:
    """The known models' shapes by their names."""
    return {name: (family, *map(int, sizes)) for name, family, *sizes in _read("models.csv").itertuples(index=False)}


@cache
def _presets(method: Method) -> dict[str, Preset]:
    """A method's presets by model."""
    table = _read("presets.csv")
    rows = table[table["method"] == method].to_dict("records")
    names = [name for name in table.columns if name not in _NOT_NUMBERS]
    made = {}
    for row in rows:
        numbers = {name: int(row[name]) if name in _WHOLE else row[name] for name in names if pd.notna(row[name])}
        layers = _parsed(row["layers"])
        made[row["model"]] = Preset(row["model"], method, layers, numbers, row["provenance"], row["source"])
    return made


def _parsed(text: str) -> dict[MlpMatrix, tuple[int, ...]]:
    """Blocks by matrix: {"gate": (11, 12), "in": (18,)} of "gate 11-12; in 18"; {"out": (5,)} of "5"."""
    found: dict[MlpMatrix, tuple[int, ...]] = {}
    for part in text.split("; "):
        *name, numbers = part.split()
        first, _, last = numbers.partition("-")
        matrix: Any = name[0] if name else _OUTPUT
        found[matrix] = tuple(range(int(first), int(last or first) + 1))
    return found


def _read(name: str) -> pd.DataFrame:
    text = (resources.files("rome_lens") / "edit" / "presets" / name).read_text(encoding="utf-8")
    return pd.read_csv(io.StringIO(text), dtype={"layers": str})
