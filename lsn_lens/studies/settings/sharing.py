"""The settings of the sharing study."""

from dataclasses import dataclass
from math import isfinite


@dataclass(frozen=True)
class SharingSettings:
    """What `sharing_study` changes, and its text.

    Attributes:
        items: Parallel documents whose loss is measured.
        task_items: Items of the task (choose a document's ending), made of the documents behind these.
        choices: Choices of an item of the task.
        share: Besides whole types: at most this share of each layer's neurons, so that types have the same number.
        factors: Factors that all-shared neurons are multiplied by.
        task_factors: The same, for the task.
        seeds: Random sets per item, type and control.
        halvings: With a sibling: random halvings of the items.
        sibling: Name or folder of a second model of the same shape, for example the instruct model.
        check_parallel: Refuse items whose records or lengths contradict parallel text, see `lsn_lens.methods.Sharing`.

    Raises:
        ValueError: A number or factor that cannot be meant.
    """

    items: int = 40
    task_items: int = 20
    choices: int = 4
    share: float = 0.05
    factors: tuple[float, ...] = (0.5, 1.25, 1.5, 2.0)
    task_factors: tuple[float, ...] = (1.25, 1.5)
    seeds: int = 3
    halvings: int = 20
    sibling: str | None = None
    check_parallel: bool = True

    def __post_init__(self) -> None:
        if min(self.items, self.task_items) < 5 or self.choices < 2 or min(self.seeds, self.halvings) < 1:
            raise ValueError(
                f"items={self.items}, task_items={self.task_items}, choices={self.choices}, seeds={self.seeds}, "
                f"halvings={self.halvings}: expected 5 items or more, 2 choices or more, and 1 or more of the rest."
            )
        factors = (*self.factors, *self.task_factors)
        if not (self.factors and self.task_factors and all(map(isfinite, factors)) and 0 < self.share <= 1):
            raise ValueError(
                f"factors={self.factors}, task_factors={self.task_factors}, share={self.share}: expected one or more "
                "finite factors each, and a share in (0, 1]."
            )
