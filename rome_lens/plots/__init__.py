"""Figures: a tidy frame in, a plotly Figure out. Knows pandas and plotly only, and how files are written."""

from rome_lens.plots.comparison import plot_comparison
from rome_lens.plots.effects import plot_average_effects
from rome_lens.plots.heads import plot_heads
from rome_lens.plots.heatmaps import plot_effect_maps, plot_trace, plot_traces
from rome_lens.plots.layers import plot_layers
from rome_lens.plots.saving import save
from rome_lens.plots.scores import plot_scores, plot_sequence

__all__ = [
    "plot_average_effects",
    "plot_comparison",
    "plot_effect_maps",
    "plot_heads",
    "plot_layers",
    "plot_scores",
    "plot_sequence",
    "plot_trace",
    "plot_traces",
    "save",
]
