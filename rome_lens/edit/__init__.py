"""What happens if a fact is rewritten? Edits of MLP matrices (paper section 3), by ROME and other methods."""

from rome_lens.edit.artifact.applied import AppliedEdit, applied_edits, revert_edits
from rome_lens.edit.artifact.edit import Edit, target_probabilities
from rome_lens.edit.artifact.health import EditHealth
from rome_lens.edit.artifact.update import Update
from rome_lens.edit.covariance.collect import collect_covariance
from rome_lens.edit.covariance.corpora import Texts, texts_from_dataset, texts_from_file, texts_from_model
from rome_lens.edit.covariance.diagnostics import CovarianceReport
from rome_lens.edit.covariance.key_covariance import KeyCovariance
from rome_lens.edit.covariance.shipped import builtin_covariances
from rome_lens.edit.forensics.detecting import detect_edits
from rome_lens.edit.forensics.triggers import screen_triggers
from rome_lens.edit.forensics.undoing import undo_blindly
from rome_lens.edit.methods.alphaedit import AlphaEditConfig, alphaedit
from rome_lens.edit.methods.anyedit import AnyEditConfig, anyedit, anyedit_targets
from rome_lens.edit.methods.batch import EditMemory
from rome_lens.edit.methods.cut_rank import CutEdit, cut_rank
from rome_lens.edit.methods.emmet import EmmetConfig, emmet
from rome_lens.edit.methods.finetune import FinetuneConfig, finetune
from rome_lens.edit.methods.knowledge_neurons import KnowledgeNeurons, KnowledgeNeuronsConfig, kn, knowledge_neurons
from rome_lens.edit.methods.memit import MemitConfig, memit
from rome_lens.edit.methods.memory import FactMemory, fact_memory
from rome_lens.edit.methods.mend.config import MendConfig
from rome_lens.edit.methods.mend.editor import MendEditor, mend
from rome_lens.edit.methods.mend.training import train_mend
from rome_lens.edit.methods.near import near_subjects
from rome_lens.edit.methods.rome import RomeConfig, rome
from rome_lens.edit.methods.ultraedit import UltraEditConfig, ultraedit
from rome_lens.edit.presets.layers import suggested_layer
from rome_lens.edit.presets.table import Preset, find_preset, list_presets
from rome_lens.edit.search.anchor import anchor_norm
from rome_lens.edit.search.contexts import sample_contexts
from rome_lens.edit.search.settings import BatchConfig, SearchConfig
from rome_lens.edit.search.targets import MemitTargets, memit_targets
from rome_lens.edit.search.windows import AnyEditTargets
from rome_lens.edit.sequence.ledger import EditLedger, LedgerRoom

__all__ = [
    "AlphaEditConfig",
    "AnyEditConfig",
    "AnyEditTargets",
    "AppliedEdit",
    "BatchConfig",
    "CovarianceReport",
    "CutEdit",
    "Edit",
    "EditHealth",
    "EditLedger",
    "EditMemory",
    "EmmetConfig",
    "FactMemory",
    "FinetuneConfig",
    "KeyCovariance",
    "KnowledgeNeurons",
    "KnowledgeNeuronsConfig",
    "LedgerRoom",
    "MemitConfig",
    "MemitTargets",
    "MendConfig",
    "MendEditor",
    "Preset",
    "RomeConfig",
    "SearchConfig",
    "Texts",
    "UltraEditConfig",
    "Update",
    "alphaedit",
    "anchor_norm",
    "anyedit",
    "anyedit_targets",
    "applied_edits",
    "builtin_covariances",
    "collect_covariance",
    "cut_rank",
    "detect_edits",
    "emmet",
    "fact_memory",
    "find_preset",
    "finetune",
    "kn",
    "knowledge_neurons",
    "list_presets",
    "memit",
    "memit_targets",
    "mend",
    "near_subjects",
    "revert_edits",
    "rome",
    "sample_contexts",
    "screen_triggers",
    "suggested_layer",
    "target_probabilities",
    "texts_from_dataset",
    "texts_from_file",
    "texts_from_model",
    "train_mend",
    "ultraedit",
    "undo_blindly",
]
