"""Actions by name: the words accepted in place of an action."""

from collections.abc import Callable
from typing import Any

from lsn_lens.interventions.actions import Action, zero
from lsn_lens.interventions.values import mean_ablation, other_mean_ablation
from lsn_lens.statistics.sums import Statistics

Choice = Action | Callable[[str], Action] | str  # an action, a function from languages to actions, or one of `WORDS`
OF_RUN = {"mean": mean_ablation, "other mean": other_mean_ablation}
WORDS = ("zero", *OF_RUN)
ACTIONS = "an action: lsn.zero, lsn.set_to(...), lsn.scale(...), lsn.add(...), lsn.mean_ablation(run.statistics), ..."


def action_of(action: Any, statistics: Statistics | None = None) -> Action | Callable[[str], Action]:
    """The action for a word ("zero", "mean", "other mean"); an action or a function is checked and returned.

    Args:
        action: A word, an action, or a function from languages to actions.
        statistics: Statistics of a run, for the words "mean" and "other mean".

    Raises:
        ValueError: An unknown word, a word that needs `statistics` without them, or a value that is not an action.
    """
    if not isinstance(action, str):
        function: Any = action if callable(action) else None
        made_in, name = (str(getattr(function, key, "")) for key in ("__module__", "__qualname__"))
        if made_in.startswith("lsn_lens.interventions.") and "<locals>" not in name:
            raise ValueError(f"action={name} makes an action: call it. Expected {ACTIONS}")
        return function or check_action(action)
    word = action.lower().replace("_", " ").strip()
    if word not in WORDS:
        raise ValueError(f"action={action!r}: expected one of the words {list(WORDS)}, or {ACTIONS}")
    if word == "zero":
        return zero
    if statistics is None:
        raise ValueError(
            f"action={action!r} needs the means of a run, and no run is available here: give "
            f"lsn.{OF_RUN[word].__name__}(run.statistics)."
        )
    return OF_RUN[word](statistics)


def action_for(action: Any, language: str | None = None) -> Action:
    """The action for one language, from an action, a word, or a function of the language.

    Raises:
        ValueError: A value that is not an action, a word that needs statistics, or a function without a language.
    """
    chosen = action_of(action)
    if isinstance(chosen, Action) or language is None:
        return check_action(chosen)
    return check_action(action_of(chosen(language)))


def check_action(action: Any) -> Action:
    """Require an action, and return it.

    Raises:
        ValueError: Another value; the message lists the actions.
    """
    if not isinstance(action, Action):
        hint = " This is a function: call it with a language, as for other_mean_ablation." if callable(action) else ""
        raise ValueError(f"action={str(action)[:60]!r} is of type {type(action).__name__}: expected {ACTIONS}{hint}")
    return action
