"""The interventions to measure: language, action, hooks, and the languages to measure on."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal

from lsn_lens.evaluation.scored import Hooks
from lsn_lens.interventions.actions import zero
from lsn_lens.interventions.intervening import Intervention, check_steps, hooks_of, step_hooks
from lsn_lens.interventions.words import Choice, action_for
from lsn_lens.labels import label_list
from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet

Evaluate = Literal["all", "own"] | Callable[[str], Iterable[str]]
NONE = "none"  # the row without intervention


@dataclass(frozen=True)
class Job:
    """One intervention to measure.

    Attributes:
        name: Name of the set or of the intervention.
        language: The language whose units are changed; "" for an intervention of no language.
        action: Name of the action.
        units: Number of different units that are changed.
        hooks: Hooks that change the units; a job without hooks needs no pass.
        labels: The languages to measure.
    """

    name: str
    language: str
    action: str
    units: int
    hooks: Hooks
    labels: tuple[str, ...]


def jobs_of(
    model: Model,
    languages: Iterable[str],
    sets: NeuronSet | Mapping[str, NeuronSet],
    action: Choice = zero,
    evaluate: Evaluate = "all",
    width: Callable[[str], int] | None = None,
) -> list[Job]:
    """One job per set and language; impossible jobs are refused here, before anything is measured.

    Takes the arguments of `perplexity_table`; `languages` are those with text, and `width` is as in
    `intervention_hooks`.

    Raises: as `perplexity_table`.
    """
    languages = tuple(languages)
    if not callable(evaluate) and evaluate not in ("all", "own"):
        raise ValueError(f"evaluate={evaluate!r}: expected 'all', 'own' or a function of the intervened language.")
    choices: dict[str, Callable[[str], Iterable[str]]] = {"all": lambda _: languages, "own": lambda own: [own]}
    choose = choices[evaluate] if isinstance(evaluate, str) else evaluate
    change = cache(partial(action_for, action))
    width = width or cache(partial(structure.site_width, model))
    named, jobs = {"": sets} if isinstance(sets, NeuronSet) else dict(sets), []
    check_steps(model, [(each, change(language)) for each in named.values() for language in each.languages])
    for name, each in named.items():
        for language in each.languages:
            if language == NONE:
                raise ValueError(
                    f"a language of the set {name!r} is called {NONE!r}, as the row without intervention is."
                )
            units, what = each[language], change(language)
            hooks = step_hooks(model, units, what, width)
            labels = tuple(label_list(choose(language), f"evaluate({language!r})"))
            if not labels:
                raise ValueError(f"evaluate({language!r}) is empty: expected one or more of {list(languages)}.")
            jobs.append(Job(name, language, what.name, len(units), hooks, labels))
    unknown = sorted({label for job in jobs for label in job.labels} - set(languages))
    if unknown:
        raise KeyError(f"no text for {unknown} to measure on; the corpora have {list(languages)}.")
    return jobs


def jobs_for(model: Model, languages: Iterable[str], interventions: Iterable[Intervention]) -> list[Job]:
    """One job per intervention, measured on all languages."""
    width, labels = cache(partial(structure.site_width, model)), tuple(languages)
    return [Job(what.name, "", "", len(what), hooks_of(model, what, width), labels) for what in interventions]
