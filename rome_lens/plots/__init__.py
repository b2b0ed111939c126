"""Figures: a tidy frame in, a plotly Figure out. Knows pandas and plotly only."""

from rome_lens.plots.editing import plot_bleed_over, plot_comparison, plot_convergence
from rome_lens.plots.heatmaps import plot_effect_maps, plot_trace, plot_traces
from rome_lens.plots.scores import plot_layers_and_tokens, plot_scores, plot_sequence
from rome_lens.plots.studies import plot_rewrite, plot_texts, plot_tracing_against_editing
from rome_lens.plots.tracing import plot_average_effects, plot_noise_levels, plot_robustness, plot_severed

__all__ = [
    "plot_average_effects",
    "plot_bleed_over",
    "plot_comparison",
    "plot_convergence",
    "plot_effect_maps",
    "plot_layers_and_tokens",
    "plot_noise_levels",
    "plot_rewrite",
    "plot_robustness",
    "plot_scores",
    "plot_sequence",
    "plot_severed",
    "plot_texts",
    "plot_trace",
    "plot_traces",
    "plot_tracing_against_editing",
]
