"""Figures: a tidy frame in, a plotly Figure out. Knows pandas and plotly only."""

from rome_lens.plots.editing import plot_bleed_over, plot_comparison, plot_convergence
from rome_lens.plots.scores import plot_layers_and_tokens, plot_scores, plot_sequence
from rome_lens.plots.tracing import plot_average_effects, plot_robustness, plot_trace

__all__ = [
    "plot_average_effects",
    "plot_bleed_over",
    "plot_comparison",
    "plot_convergence",
    "plot_layers_and_tokens",
    "plot_robustness",
    "plot_scores",
    "plot_sequence",
    "plot_trace",
]
