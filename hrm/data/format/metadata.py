"""``dataset.json``: the description of one split."""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, field_validator, model_validator

from hrm.sizes import Identifiers, Length, Vocabulary

IGNORE_LABEL = -100
"""The label that losses and metrics leave out; labels equal to ``ignore_label_id`` become this one."""


class Metadata(BaseModel):
    """``dataset.json`` of one split. Keys beyond the published ones are kept.

    TRM's loader requires ``total_puzzles``; HRM's builders do not write it.
    """

    model_config = ConfigDict(extra="allow")

    pad_id: NonNegativeInt
    ignore_label_id: int | None
    blank_identifier_id: NonNegativeInt
    vocab_size: Vocabulary
    seq_len: Length
    num_puzzle_identifiers: Identifiers
    total_groups: NonNegativeInt
    mean_puzzle_examples: float = Field(ge=0, allow_inf_nan=False)
    total_puzzles: NonNegativeInt | None = None
    sets: list[str]

    @field_validator("sets")
    @classmethod
    def _plain_names(cls, names: list[str]) -> list[str]:
        for name in names:
            if not name or name.startswith(".") or set(name) & set("/\\\0"):
                raise ValueError(f"the set name {name!r} is not a plain name; it could lead out of the folder")
        if len(set(names)) < len(names):
            raise ValueError("a set is named twice; its examples would count twice")
        return names

    @model_validator(mode="after")
    def _fillers_fit(self) -> "Metadata":
        for name, limit_name in (("pad_id", "vocab_size"), ("blank_identifier_id", "num_puzzle_identifiers")):
            value, limit = getattr(self, name), getattr(self, limit_name)
            if value >= limit:
                raise ValueError(f"{name} is {value}, expected less than {limit_name} {limit}")
        return self

    @property
    def task(self) -> str | None:
        """The task's name, or None: published folders do not name it."""
        return (self.model_extra or {}).get("task")
