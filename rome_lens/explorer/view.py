"""The explorer's widgets and where they stand. Each part has its button, and beside it what that button is doing."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from html import escape
from typing import Any

from rome_lens.data.records import Fact
from rome_lens.errors import UnavailableError
from rome_lens.locate.config import TraceConfig

KINDS = {"residual state": "resid", "MLP": "mlp", "attention": "attn", "attention head": "head"}
OPENING = (
    "Nothing is traced yet. <b>Trace</b> shows which states of the model, restored alone, bring back the answer that "
    "noise on the subject has taken away."
)


class View:
    """The widgets by name, and `root`, which holds them all. It is at most 60 em wide, and fits 480 pixels."""

    def __init__(self, fact: Fact, target: str, prompts: Sequence[str], tracing: TraceConfig, layers: Sequence[int]):
        self._widgets, self._go = widgets, _ = libraries()
        self.prompt = self._text("prompt", fact.prompt)
        self.subject = self._text("subject", fact.subject)
        self.answer = self._text("answer", fact.answer or "", placeholder="the model's own")
        self.kind = self._number("Dropdown", "restore", options=KINDS, value=tracing.kind)
        self.head = self._number("BoundedIntText", "head", value=tracing.head or 0, max=10_000)
        self.window = self._number("BoundedIntText", "window", value=tracing.window, min=1, max=10_000)
        self.samples = self._number("BoundedIntText", "samples", value=tracing.samples, min=1, max=10_000)
        self.runs = widgets.HTML()  # the clean and the corrupted run; they stay in view
        self.figure_box = widgets.VBox([widgets.HTML(OPENING)], layout=widgets.Layout(min_height="3em"))
        self.restored = widgets.HTML()

        self.target = self._text("new object", target)
        self.layer = self._number("Dropdown", "layer", options=list(layers))
        self.watched = self._lines("also watch", prompts)
        self.protected = self._lines("protect", ())
        self.forecast, self.predictions = widgets.HTML(), widgets.HTML()
        self.history = widgets.VBox()

        self.file = self._text("file", "explored")
        self._buttons: list[Any] = []
        self.root = widgets.VBox(layout=widgets.Layout(width="100%", max_width="60em"))
        self.kind.observe(lambda _: self._show_what_counts(), "value")
        self._show_what_counts()

    def part(self, *above: Any, buttons: dict[str, Callable[[], object]], below: Sequence[Any] = ()) -> None:
        """Adds a part: widgets, a row of buttons with the status of what they do, and what they show."""
        widgets = self._widgets
        status = widgets.HTML()
        row = [self.button(name, work, status) for name, work in buttons.items()]
        box = widgets.HBox([*row, status], layout=widgets.Layout(flex_flow="row wrap", align_items="center"))
        self.root.children = [*self.root.children, *above, box, *below]

    def button(self, name: str, work: Callable[[], object], status: Any) -> Any:
        """A button that does the work while all are disabled, and shows in `status` that it runs, or its error."""
        button = self._widgets.Button(description=name, layout=self._widgets.Layout(width="auto"))

        def clicked(_: object) -> None:
            with self.busy(status, f"{name} ..."):
                work()

        button.on_click(clicked)
        self._buttons.append(button)
        return button

    @contextmanager
    def busy(self, status: Any, message: str) -> Iterator[None]:
        """Inside, no button can be pressed and `status` has the message. An error is shown there and goes no further:
        a widget's errors go to a log that nobody sees.
        """
        status.value = message
        for button in self._buttons:
            button.disabled = True
        try:
            yield
            if status.value == message:
                status.value = ""
        except Exception as error:
            status.value = f"<b>{type(error).__name__}</b>: {escape(str(error))}"
        finally:
            for button in self._buttons:
                button.disabled = False

    def show_history(self, names: Sequence[str], undo: Callable[[int], object]) -> None:
        """A row for each edit that is in the model, with a button that undoes it."""
        widgets, gone = self._widgets, [row.children[0] for row in self.history.children]
        self._buttons = [button for button in self._buttons if button not in gone]
        rows = []
        for number, name in enumerate(names):
            status = widgets.HTML(escape(name))
            rows.append(widgets.HBox([self.button("Undo", partial(undo, number), status), status]))
        self.history.children = rows

    def show_figure(self, figure: Any, clicked: Callable[[int, int], object]) -> Any:
        """Puts a heatmap in its place; a click on a cell calls `clicked` with its row and column."""
        shown = self._go.FigureWidget(figure.update_layout(autosize=True))
        shown._config = {
            **shown._config,
            "responsive": True,
        }  # follows the window; a widget takes no config
        shown.data[0].on_click(
            lambda _, points, __: [clicked(*each) for each in zip(points.ys, points.xs, strict=True)]
        )
        self.figure_box.children = [shown]
        self.figure_box.layout.min_height = f"{figure.layout.height}px"
        return shown

    def _show_what_counts(self) -> None:
        """Hides the head and the window where the kind has none."""
        self.head.layout.display = None if self.kind.value == "head" else "none"
        self.window.layout.display = None if self.kind.value in ("mlp", "attn") else "none"

    def _text(self, name: str, value: str, **options: Any) -> Any:
        layout = self._widgets.Layout(width="100%", max_width="34em")
        return self._widgets.Text(value, description=name, layout=layout, **options)

    def _lines(self, name: str, lines: Sequence[str]) -> Any:
        layout = self._widgets.Layout(width="100%", max_width="34em")
        return self._widgets.Textarea("\n".join(lines), description=name, layout=layout, rows=3)

    def _number(self, kind: str, name: str, **options: Any) -> Any:
        return getattr(self._widgets, kind)(description=name, layout=self._widgets.Layout(width="17em"), **options)

    def wrapped(self, *given: Any) -> Any:
        """Widgets beside each other as far as there is room."""
        return self._widgets.HBox(given, layout=self._widgets.Layout(flex_flow="row wrap"))


def lines(area: Any) -> list[str]:
    """The lines of a text area that are not blank."""
    return [line.strip() for line in area.value.splitlines() if line.strip()]


def libraries() -> tuple[Any, Any]:
    """ipywidgets and plotly's graph objects. Raises UnavailableError where they or anywidget are missing."""
    try:
        import anywidget  # noqa: F401 (plotly's FigureWidget needs it)
        import ipywidgets
        import plotly.graph_objects as go
    except ImportError as error:
        raise UnavailableError(
            "The explorer needs ipywidgets and anywidget: pip install 'rome-lens[notebook]'."
        ) from error
    return ipywidgets, go
