"""Seeing a model think: its states, its answers and when it halts, as numbers, pictures and a report."""

from hrm.analysis.answers import Answers, answers_by_segment, difficulty
from hrm.analysis.baselines import Baseline, train_baseline
from hrm.analysis.report import Analysis, analyze
from hrm.analysis.states import (
    Covariance,
    StateUpdate,
    participation_ratio,
    principal_components,
    residual,
    state_updates,
    untrained,
)

__all__ = [
    "Analysis",
    "Answers",
    "Baseline",
    "Covariance",
    "StateUpdate",
    "analyze",
    "answers_by_segment",
    "difficulty",
    "participation_ratio",
    "principal_components",
    "residual",
    "state_updates",
    "train_baseline",
    "untrained",
]
