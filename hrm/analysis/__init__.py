"""How a model solves puzzles: its states, its answers and when it halts, as numbers, figures and a report."""

from hrm.analysis.answers import Answers, answers_by_segment, difficulty
from hrm.analysis.baselines import Baseline, train_baseline
from hrm.analysis.report import write_report
from hrm.analysis.results import Analysis, BaselineRun, Trajectories
from hrm.analysis.run import analyze
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
    "BaselineRun",
    "Covariance",
    "StateUpdate",
    "Trajectories",
    "analyze",
    "answers_by_segment",
    "difficulty",
    "participation_ratio",
    "principal_components",
    "residual",
    "state_updates",
    "train_baseline",
    "untrained",
    "write_report",
]
