"""Trace a fact, click a state to restore it, forecast and spare the harm of an edit, apply edits, undo any of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest, Fact, check_prompts
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.methods.near import LEAST_SHARE
from rome_lens.edit.methods.rome import RomeConfig
from rome_lens.evaluate.side_effects.compare import compare_models
from rome_lens.explorer.edits import Edits
from rome_lens.explorer.tables import changes, table, token
from rome_lens.explorer.view import View, lines
from rome_lens.locate.config import TraceConfig
from rome_lens.locate.grid import restored_layers
from rome_lens.locate.restoring import State, predict_restored
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import causal_trace
from rome_lens.models import Model
from rome_lens.plots import plot_trace, save

if TYPE_CHECKING:
    import ipywidgets


@checked
class Explorer:
    """A widget to trace and edit facts; a notebook shows it when it is the last line of a cell.

    The buttons call the methods, which may be called directly as well; they read what stands in the widget. `apply`
    changes the model's weights until `undo`; nothing else changes them.

    Attributes:
        model: the model.
        widget: the ipywidgets widget.
        trace: the last trace, or None.
        edit: the last edit that was computed, or None; kept after `undo`.
    """

    def __init__(
        self,
        model: Model,
        fact: Fact,
        *,
        target: str = "",
        prompts: Sequence[str] = (),
        tracing: TraceConfig | None = None,
        config: RomeConfig | None = None,
        covariances: Mapping[int, KeyCovariance] | None = None,
    ):
        """Builds the widget. Nothing runs before a button is clicked or a method is called.

        Args:
            model: Model to run; changed by `apply` until `undo`.
            fact: The fact to begin with; it can be changed in the widget.
            target: The new object.
            prompts: Further prompts to watch: they are in the forecast, and compared before and after an edit. The
                fact's own is always compared.
            tracing: The options to begin with; None: three samples, and otherwise as in `causal_trace`.
            config: For `rome`; its layer is the one to begin with.
            covariances: By layer, which are those to choose from; None: the one that ships for the model.
        """
        if prompts:
            check_prompts(prompts)
        self.model = model
        self.trace: CausalTrace | None = None
        self.edit: Edit | None = None
        self._tracing = TraceConfig(samples=3) if tracing is None else tracing
        self._edits = Edits(model, RomeConfig() if config is None else config, covariances)
        self._reached: list[str] = []  # the prompts of the last forecast that the edit would reach
        view = self._view = View(fact, target, prompts, self._tracing, self._edits.layers)
        view.part(
            *(view.prompt, view.subject, view.answer),
            view.wrapped(view.kind, view.head, view.window, view.samples),
            buttons={"Trace": self.run_trace},
            below=[view.runs, view.figure_box, view.restored],
        )
        view.part(
            *(view.wrapped(view.target, view.layer), view.watched, view.protected),
            buttons={"Forecast": self.forecast, "Protect these": self.protect, "Apply": self.apply},
            below=[view.forecast, view.predictions, view.history],
        )
        view.part(view.file, buttons={"Save edit": self.save_edit, "Save figure": self.save_figure})
        self.widget: ipywidgets.Widget = view.root

    @property
    def fact(self) -> Fact:
        """The fact in the widget; without an answer, a trace takes the model's own."""
        return Fact(self._view.prompt.value, self._view.subject.value, answer=self._view.answer.value.strip() or None)

    @property
    def request(self) -> EditRequest:
        """The edit that stands in the widget."""
        return EditRequest(self._view.prompt.value, self._view.subject.value, self._view.target.value.strip())

    @property
    def edits(self) -> list[Edit]:
        """The edits that are in the model, in the order in which they were applied."""
        return list(self._edits.applied)

    def run_trace(self) -> CausalTrace:
        """Traces the fact and shows its heatmap, with cells that can be clicked."""
        view = self._view
        kind, head = view.kind.value, view.head.value
        config = replace(
            self._tracing,
            kind=kind,
            head=head if kind == "head" else None,
            window=view.window.value,
            samples=view.samples.value,
        )
        trace = self.trace = causal_trace(self.model, self.fact, config=config, progress=False)
        self._figure = view.show_figure(plot_trace(trace.to_frame(), answer=trace.answer), self._cell_clicked)
        view.runs.value = (
            f"{token(trace.answer)}, {trace.metric}: <b>{trace.clean:.3f}</b> clean, <b>{trace.corrupted:.3f}</b> "
            "corrupted. Click a cell to see what restoring it makes the model say."
        )
        view.restored.value = ""
        return trace

    def restore(self, position: int, layer: int) -> pd.DataFrame:
        """Shows what the model predicts when what a cell stands for is restored in the corrupted run: one state, or a
        window of MLPs or attentions.

        Returns:
            As `predict_restored`.

        Raises:
            ValueError: there is no trace yet, or no such cell.
        """
        if self.trace is None:
            raise ValueError("There is no trace yet. Trace first.")
        config = self.trace.config
        window = restored_layers(config.kind, layer, config.window, self.model.cfg.n_layers)
        states = [State(config.kind, position, each, config.head) for each in window]
        found = predict_restored(
            self.model, self.trace.fact, states, samples=config.samples, corruption=config.corruption
        )
        layers = f"layer {layer}" if len(window) == 1 else f"layers {window.start} to {window.stop - 1}"
        self._view.restored.value = f"Restored at {token(self.trace.tokens[position])}, {layers}:" + table(found)
        return found

    def forecast(self) -> pd.DataFrame:
        """Computes the edit, without applying it, and shows what it would reach: of the prompts that are watched and of
        the subjects that ship (`near_subjects`).

        Returns:
            As `strongest_bleed_over`, the largest share first.
        """
        found = self._edits.forecast(self._computed(), lines(self._view.watched))
        self._reached = found.loc[found["size"] >= LEAST_SHARE, "prompt"].tolist()
        self._view.forecast.value = (
            "Of what the edit adds at its own prompt, it would add at others (share):"
            + table(found[["prompt", "token", "share"]])
            if len(found)
            else "It reaches none of the subjects that ship. Write other prompts under <i>also watch</i>."
        )
        return found

    def protect(self) -> list[str]:
        """Puts the prompts that the last forecast says the edit would reach on the list of those to protect.

        Returns:
            All that is on the list.
        """
        self._view.protected.value = "\n".join(dict.fromkeys([*lines(self._view.protected), *self._reached]))
        return lines(self._view.protected)

    def apply(self) -> Edit:
        """Computes the edit, writes it into the model's weights, and shows what it changed.

        An edit of the same prompt and subject that is applied is undone first.
        """
        request = self.request
        for number, edit in reversed(list(enumerate(self.edits))):
            if (edit.requests[0].prompt, edit.requests[0].subject) == (request.prompt, request.subject):
                self.undo(number)
        edit = self._computed()
        prompts = [request.text, *lines(self._view.watched), *lines(self._view.protected)]
        compared = compare_models(self.model, edit, prompts, progress=False)
        self._edits.apply(edit)
        problems = "; ".join(edit.health.problems) if edit.health else ""
        self._view.predictions.value = (
            "The model is edited. "
            + (f"Health: {escape(problems)}." if problems else "")
            + changes(compared.tokens)
            + "KL(before || after) by prompt, nats:"
            + table(compared.divergence)
        )
        self._show_edits()
        return edit

    def undo(self, number: int = -1) -> None:
        """Takes an edit out of the weights: the last one, or that number of `edits`. After the last one the weights are
        bit for bit what they were. Does nothing if no edit is applied.

        Raises:
            EditError: something else has changed the matrix in the meantime.
            ValueError: there is no edit of that number.
        """
        if number == -1 and not self.edits:
            return
        self._edits.undo(len(self.edits) - 1 if number == -1 else number)
        self._view.predictions.value = "The edit is undone." if self.edits else "The model is as it was."
        self._show_edits()

    def save_edit(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Saves the last edit; see `Edit.save`.

        Args:
            path: The file; None: the name in the widget, with .safetensors.

        Raises:
            ValueError: there is no edit yet.
            FileExistsError: the file exists.
        """
        if self.edit is None:
            raise ValueError("There is no edit yet. Apply or forecast one first.")
        path = Path(self._view.file.value + ".safetensors" if path is None else path)
        self.edit.save(path)
        return path

    def save_figure(self, path: str | os.PathLike[str] | None = None) -> list[Path]:
        """Saves the heatmap as PDF, SVG and PNG; see `rome_lens.plots.save`.

        Args:
            path: The files' name without suffix; None: the one in the widget.

        Raises:
            ValueError: there is no trace yet.
            FileExistsError: a file exists.
        """
        if self.trace is None:
            raise ValueError("There is no trace yet. Trace first.")
        return save(self.trace.plot(), self._view.file.value if path is None else path, columns=1)

    def _computed(self) -> Edit:
        """The edit that stands in the widget."""
        self.edit = self._edits.compute(self.request, self._view.layer.value, lines(self._view.protected))
        return self.edit

    def _show_edits(self) -> None:
        names = [f"{edit.requests[0].text} → {edit.requests[0].target}" for edit in self.edits]
        self._view.show_history(names, self.undo)

    def _cell_clicked(self, position: int, layer: int) -> None:
        with self._view.busy(self._view.restored, "Restoring ..."):
            self.restore(position, layer)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)
