"""What changes with the step: the learning rate, how many updates carry gradients, and the depth of recursion."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from hrm.config import ModelConfig
from hrm.errors import InputError
from hrm.model import HRM
from hrm.sizes import Cycles
from hrm_kernels.fixed_point import Gradient, gradient_steps, warm_up


def learning_rate(step: int, base: float, warmup_steps: int, total_steps: int, min_ratio: float) -> float:
    """The learning rate of step ``step``, counted from 1.

    It rises linearly from 0 to ``base`` at step ``warmup_steps``, then falls along a half cosine to
    ``min_ratio * base`` at step ``total_steps``, and stays there. With ``min_ratio`` 1.0 it is constant after the
    warm-up.

    Source: the published HRM training code.
    """
    if step < warmup_steps:
        return base * step / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return base * (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def total_steps(epochs: int, groups: int, mean_puzzle_examples: float, global_batch_size: int) -> int:
    """The number of steps in ``epochs`` epochs. An epoch visits one puzzle of each group, with all its examples."""
    return max(1, int(epochs * groups * mean_puzzle_examples / global_batch_size))


def gradient_mode(step: int, warmup_steps: int, model: ModelConfig) -> Gradient:
    """The gradient mode of step ``step``, counted from 1.

    During the warm-up it is a number of updates, which grows from one of each level to what ``model.gradient`` says.
    """
    if step > warmup_steps:
        return model.gradient
    updates = model.H_cycles * len(model.cycle)
    first, last = (gradient_steps(model.cycle, updates, mode) for mode in ("one_step", model.gradient))
    return warm_up(step - 1, warmup_steps, last, first)


Moment = Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, lt=1)]
"""A moment of a training: an integer is a step, a fraction below 1 a share of all steps."""


def step_of(moment: Moment, total_steps: int) -> int:
    """The step of ``moment``."""
    return moment if isinstance(moment, int) else round(moment * total_steps)


class DepthStage(BaseModel):
    """A stage of the depth curriculum.

    Attributes:
        until: the last step of the stage, or its end as a share of all steps.
        H_cycles, L_cycles: of a training segment in this stage, in place of the model's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    until: Moment
    H_cycles: Cycles
    L_cycles: Cycles


class DepthSchedule:
    """The depth of recursion by step: that of each stage in turn, then that of the model.

    Source: CGAR (arXiv 2511.08653).

    Args:
        stages: in the order of their ends.
        config: the model's configuration.
        total_steps: steps of the training.

    Raises:
        InputError: a stage ends before the one before it.
    """

    def __init__(self, stages: Sequence[DepthStage], config: ModelConfig, total_steps: int):
        self._ends = [step_of(stage.until, total_steps) for stage in stages]
        if self._ends != sorted(self._ends):
            raise InputError(f"depth: the stages end at steps {self._ends}, expected them in ascending order")
        values = config.model_dump()
        cycles = [{"H_cycles": stage.H_cycles, "L_cycles": stage.L_cycles} for stage in stages]
        self._configs = [*(type(config).parse(values | depth) for depth in cycles), config]

    def at(self, step: int) -> ModelConfig:
        """The model's configuration with the depth of step ``step``, counted from 1."""
        return self._configs[sum(end < step for end in self._ends)]


@contextmanager
def at_depth(model: HRM, config: ModelConfig) -> Iterator[None]:
    """Let ``model`` compute with the depth of ``config`` within this context. No weight depends on the depth."""
    whole = model.config
    _set_config(model, config)
    try:
        yield
    finally:
        _set_config(model, whole)


def _set_config(model: HRM, config: ModelConfig) -> None:
    model.config = model.inner.config = config  # type: ignore[assignment]
