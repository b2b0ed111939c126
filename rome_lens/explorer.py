"""A widget for notebooks: trace a fact, click a state to restore it, edit the fact, and undo the edit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd

from rome_lens.checking import checked
from rome_lens.data.records import EditRequest, Fact, check_prompts
from rome_lens.edit.artifact.applied import AppliedEdit
from rome_lens.edit.artifact.edit import Edit
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.methods.rome import RomeConfig, rome
from rome_lens.errors import UnavailableError
from rome_lens.evaluate.side_effects.compare import compare_models
from rome_lens.locate.config import TraceConfig
from rome_lens.locate.restoring import State, predict_restored
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import causal_trace
from rome_lens.models import Model
from rome_lens.plots import plot_trace

if TYPE_CHECKING:
    import ipywidgets

_KINDS = {"residual state": "resid", "MLP": "mlp", "attention": "attn"}


@checked
class Explorer:
    """A widget to trace and edit one fact; a notebook shows it when it is the last line of a cell.

    The buttons call the methods, which may be called directly as well. `apply` changes the model's weights until
    `undo`; nothing else changes them.

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
        samples: int = 3,
        window: int = 10,
        config: RomeConfig | None = None,
        covariance: KeyCovariance | None = None,
    ):
        """Builds the widget. Nothing runs before a button is clicked or a method is called.

        Args:
            model: Model to run; changed by `apply` until `undo`.
            fact: The fact to begin with; prompt and subject can be changed in the widget.
            target: The new object.
            prompts: Further prompts to compare before and after the edit; the fact's own is always compared.
            samples: Number of corrupted runs of a trace.
            window: Number of MLPs or attentions restored together.
            config: For `rome`, the layer included; None: its default.
            covariance: For `rome`; None: the one that ships for the model.

        Raises:
            ValueError: a number is below 1, or a prompt is blank.
            UnavailableError: ipywidgets or anywidget is not installed.
        """
        self._tracing = TraceConfig(samples=samples, window=window)
        if prompts:
            check_prompts(prompts)
        widgets, go = _libraries()
        self.model = model
        self.trace: CausalTrace | None = None
        self.edit: Edit | None = None
        self._config, self._covariance = config, covariance
        self._applied: AppliedEdit | None = None
        wide = widgets.Layout(width="34em")
        self._prompt = widgets.Text(fact.prompt, description="prompt", layout=wide)
        self._subject = widgets.Text(fact.subject, description="subject", layout=wide)
        self._kind = widgets.Dropdown(options=_KINDS, value="resid", description="restore")
        self._target = widgets.Text(target, description="new object")
        self._watched = widgets.Textarea("\n".join(prompts), description="also watch", layout=wide, rows=3)
        self._figure = go.FigureWidget()
        self._figure.update_layout(height=120, xaxis={"visible": False}, yaxis={"visible": False})
        self._figure.add_annotation(text="No trace yet.", showarrow=False)
        self._restored, self._predictions, self._status = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._buttons = {
            name: widgets.Button(description=name, button_style=style)
            for name, style in (("Trace", "primary"), ("Apply", "danger"), ("Undo", ""))
        }
        self._buttons["Undo"].disabled = True
        for name, work in (("Trace", self.run_trace), ("Apply", self.apply), ("Undo", self.undo)):
            self._buttons[name].on_click(self._clicked(work))
        self._figure_box = widgets.VBox([self._figure])
        self.widget: ipywidgets.Widget = widgets.VBox(
            [
                widgets.VBox([self._prompt, self._subject]),
                widgets.HBox([self._kind, self._buttons["Trace"]]),
                self._figure_box,
                self._restored,
                widgets.HBox([self._target, self._buttons["Apply"], self._buttons["Undo"]]),
                self._watched,
                self._predictions,
                self._status,
            ]
        )

    @property
    def fact(self) -> Fact:
        """The prompt and subject in the widget, without an answer: a trace takes the model's own."""
        return Fact(self._prompt.value, self._subject.value)

    def run_trace(self) -> CausalTrace:
        """Traces the fact and shows its heatmap, with cells that can be clicked.

        Raises:
            ValueError: as `causal_trace`.
        """
        _, go = _libraries()
        trace = causal_trace(self.model, self.fact, kind=self._kind.value, config=self._tracing, progress=False)
        self.trace = trace
        self._figure = go.FigureWidget(plot_trace(trace.to_frame(), answer=trace.answer))
        self._figure.data[0].on_click(self._cell_clicked)
        self._figure_box.children = [self._figure]
        self._restored.value = (
            f"{_quoted(trace.answer)}: {trace.clean:.3f} clean, {trace.corrupted:.3f} corrupted. "
            "Click a cell to restore that state alone."
        )
        return trace

    def restore(self, position: int, layer: int) -> pd.DataFrame:
        """Shows what the model predicts when the state at this token and layer is restored in the corrupted run.

        Only this state is restored, whereas a cell of the heatmap of MLPs or attentions restores a window of layers.

        Returns:
            As `predict_restored`.

        Raises:
            ValueError: there is no trace yet, or no such state.
        """
        if self.trace is None:
            raise ValueError("There is no trace yet. Trace first.")
        state = State(self.trace.kind, position, layer)
        tracing = self._tracing
        found = predict_restored(
            self.model, self.trace.fact, [state], samples=tracing.samples, corruption=tracing.corruption
        )
        where = f"{_quoted(self.trace.tokens[position])}, layer {layer}"
        self._restored.value = f"Restored at {where}:" + _table(found)
        return found

    def apply(self) -> Edit:
        """Computes the edit, writes it into the model's weights, and shows what it changed.

        An edit that is already applied is undone first.

        Raises:
            EditError, CovarianceError, ValueError: as `rome`.
        """
        self.undo()
        fact = self.fact
        request = EditRequest(fact.prompt, fact.subject, self._target.value.strip())
        edit = rome(
            self.model,
            request,
            config=self._config,
            covariance=self._covariance,
            on_unhealthy="ignore",  # its problems are shown below
            progress=False,
        )
        prompts = [fact.text, *filter(None, map(str.strip, self._watched.value.splitlines()))]
        compared = compare_models(self.model, edit, prompts, progress=False)
        self.edit, self._applied = edit, edit.apply(self.model)
        self._buttons["Undo"].disabled = False
        problems = "; ".join(edit.health.problems) if edit.health else ""
        self._predictions.value = "The model is edited. " + (f"Health: {escape(problems)}." if problems else "")
        columns = ["prompt", "token", "before", "after"]
        self._predictions.value += _table(compared.tokens[columns]) + "KL(before || after) by prompt:"
        self._predictions.value += _table(compared.divergence)
        return edit

    def undo(self) -> None:
        """Restores the weights bit for bit. Does nothing if no edit is applied.

        Raises:
            EditError: something else has changed the matrix in the meantime.
        """
        if self._applied is not None:
            self._applied.revert()
            self._applied = None
            self._predictions.value = "The model is as it was."
        self._buttons["Undo"].disabled = True

    def _cell_clicked(self, heatmap: Any, points: Any, state: object) -> None:
        for position, layer in zip(points.ys, points.xs, strict=True):
            self._clicked(partial(self.restore, position, layer))()

    def _clicked(self, work: Callable[[], object]) -> Callable[..., None]:
        """A callback that does the work with the buttons disabled, and shows an error in the widget."""

        def run(*_: object) -> None:
            with self._busy():
                try:
                    work()
                except Exception as error:  # a widget's errors go to a log that nobody sees
                    self._status.value = f"<b>{type(error).__name__}</b>: {escape(str(error))}"

        return run

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Inside, the buttons are disabled and the status says that something runs."""
        self._status.value = "Running ..."
        for button in self._buttons.values():
            button.disabled = True
        try:
            yield
        finally:
            for name, button in self._buttons.items():
                button.disabled = name == "Undo" and self._applied is None
            if self._status.value == "Running ...":
                self._status.value = ""

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)


def _libraries() -> tuple[Any, Any]:
    try:
        import anywidget  # noqa: F401 (plotly's FigureWidget needs it)
        import ipywidgets
        import plotly.graph_objects as go
    except ImportError as error:
        raise UnavailableError(
            "The explorer needs ipywidgets and anywidget: pip install 'rome-lens[notebook]'."
        ) from error
    return ipywidgets, go


def _quoted(token: str) -> str:
    return f"<code>{escape(repr(token))}</code>"


def _table(frame: pd.DataFrame) -> str:
    shown = frame.assign(**{name: frame[name].map(repr) for name in ("token",) if name in frame})
    return shown.to_html(index=False, float_format=lambda value: f"{value:.3f}", border=0)
