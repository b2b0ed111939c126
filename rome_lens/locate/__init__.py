"""Where is a fact stored? Causal tracing (paper section 2), with its noises, metrics and averages."""

from rome_lens.locate.config import TraceConfig
from rome_lens.locate.corruption import (
    Corruption,
    CorruptionFunction,
    GaussianNoise,
    TokenReplacement,
    UniformNoise,
    same_length_subject,
)
from rome_lens.locate.effects import average_effects, average_total_effect
from rome_lens.locate.many_facts import TracedFacts, load_traces, trace_facts
from rome_lens.locate.maps import HeadMap, trace_heads, trace_kinds
from rome_lens.locate.metrics import Metric
from rome_lens.locate.prompt import TracedPrompt
from rome_lens.locate.restoring import State, predict_restored, restore_states
from rome_lens.locate.trace import CausalTrace
from rome_lens.locate.tracing import causal_trace

__all__ = [
    "CausalTrace",
    "Corruption",
    "CorruptionFunction",
    "GaussianNoise",
    "HeadMap",
    "Metric",
    "State",
    "TokenReplacement",
    "TraceConfig",
    "TracedFacts",
    "TracedPrompt",
    "UniformNoise",
    "average_effects",
    "average_total_effect",
    "causal_trace",
    "load_traces",
    "predict_restored",
    "restore_states",
    "same_length_subject",
    "trace_facts",
    "trace_heads",
    "trace_kinds",
]
