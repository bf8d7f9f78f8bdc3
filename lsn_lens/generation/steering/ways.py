"""Ways to steer a model to another language, and their cost on real text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lsn_lens.evaluation import verdict
from lsn_lens.evaluation.baseline import HeldOut
from lsn_lens.evaluation.perplexity import loss_table
from lsn_lens.generation.steering.trials import Trial, run_trials
from lsn_lens.generation.texts.identifiers import Identify
from lsn_lens.interventions.actions import Action, add
from lsn_lens.interventions.intervening import Intervention
from lsn_lens.interventions.recipes import diffmean_steering, dimensions_steering, language_arithmetics
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.sums import Statistics
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.plan import Layout

NOTHING = "nothing"  # the source of texts without a prompt
NONE = "none"  # the steering of texts without intervention


@dataclass(frozen=True)
class Steering:
    """A way to make a model write in a target language.

    Attributes:
        name: Name in tables.
        make: From the source (None: any source) and the target to an intervention.
        dose: The strength, or the count of units.
        seed: Seed of a random counterpart, which has the name and dose of the real steering; None for the real one.
        prefix: Words in front of the prompt, by target.
        uses_source: Whether `make` depends on the source.
    """

    name: str
    make: Callable[[str | None, str], Intervention]
    dose: float | int = 1
    seed: int | None = None
    prefix: Mapping[str, str] = field(default_factory=dict)
    uses_source: bool = False


def forcing(
    found: NeuronSet, actions: Mapping[str, Action], *, name: str, dose: float | int = 1, seed: int | None = None
) -> Steering:
    """The target's action, for example of `language_medians(statistics)`, on its units; with a seed, on random units.

    Source: forcing to the median as Kojima et al. 2024, released code.
    """
    chosen = found if seed is None else found.random_like(seed)

    def make(source: str | None, target: str) -> Intervention:
        if target not in actions:
            raise KeyError(f"{name!r} has no action for {target!r}; it has actions for {list(actions)}.")
        return Intervention(f"{name} {dose:g} -> {target}", ((chosen[target], actions[target]),))

    return Steering(name, make, dose, seed)


def arithmetics(
    statistics: Statistics,
    found: NeuronSet,
    mode: Literal["additive", "replacement", "difference"] = "additive",
    strength: float | int = 1.0,
    *,
    name: str,
    seed: int | None = None,
) -> Steering:
    """`language_arithmetics`: the source's units off, the target's on; with a seed, random units."""
    chosen = found if seed is None else found.random_like(seed)

    def make(source: str | None, target: str) -> Intervention:
        return language_arithmetics(statistics, chosen, target, source, mode=mode, strength=strength)

    return Steering(name, make, strength, seed, uses_source=True)


def direction(
    statistics: Statistics, layer: int, strength: float | int = 1.0, *, name: str = "diffmean", seed: int | None = None
) -> Steering:
    """`diffmean_steering` from the other languages' mean; with a seed, along a random direction of the same length."""

    def make(source: str | None, target: str) -> Intervention:
        pushed = diffmean_steering(statistics, target, layer=layer, strength=strength)
        if seed is None:
            return pushed
        ((whole, action),) = pushed.steps
        values = action.values["resid"]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
        drawn = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed))
        drawn = drawn * (values.norm(dim=-1) / drawn.norm(dim=-1))[:, None]
        return Intervention(pushed.name, ((whole, add({"resid": drawn}, action.name)),))

    return Steering(name, make, strength, seed)


def dimensions(
    statistics: Statistics,
    found: NeuronSet,
    strength: float | int = 1.0,
    *,
    name: str = "language_dimensions",
    seed: int | None = None,
    **place: Any,
) -> Steering:
    """`dimensions_steering` with the units of "language_dimensions"; with a seed, random dimensions of the layer.

    `place` is its `layer` and `variant`: with the middle layer and "released", the published way.
    """
    chosen = found if seed is None else found.random_like(seed)

    def make(source: str | None, target: str) -> Intervention:
        return dimensions_steering(statistics, chosen, target, strength=strength, **place)

    return Steering(name, make, strength, seed)


def instruction(words: Mapping[str, str], *, name: str = "prompt") -> Steering:
    """No change of the model, only words in front of the prompt, by target: the baseline for interventions.

    `instruction_words` makes such words of a template, as "Answer in {language}. ".
    """

    def make(source: str | None, target: str) -> Intervention:
        if target not in words:
            raise KeyError(f"{name!r} has no words for {target!r}; it has words for {list(words)}.")
        return Intervention(f"{name} -> {target}")

    return Steering(name, make, prefix=words)


def steer(
    model: Model,
    steerings: Sequence[Steering],
    prompts: Mapping[str, Sequence[str]],
    targets: Sequence[str],
    identify: Identify,
    *,
    samples: int = 40,
    tokens: int = 32,
    temperature: float | int = 0.8,
    chat: bool | str = False,
    stop: Iterable[str] = (),
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Generate texts under every steering, for every source and target, and without steering.

    Args:
        model: A HookedTransformer or TransformerBridge.
        steerings: Real steerings and random counterparts.
        prompts: Source language -> prompts in it.
        targets: Languages to steer to; a source is not steered to itself.
        identify: Language identifier, for example `identifier(languages)`.
        samples: Texts without a prompt (source "nothing"); 0 skips them.
        tokens: New tokens per text.
        temperature: See `generate`.
        chat: See `generate`; not for texts without a prompt.
        stop: See `generate`.
        seed: Seed of the samples, the same for all.
        progress: Show a progress bar.

    Returns:
        One row per text: `steering` ("none" without), `dose`, `seed`, `source`, `target` ("" without steering),
        `prompt` (without the words in front), `units`, `text`, and the columns of `run_trials`.

    Raises:
        ValueError: A string instead of a list of prompts; or no text to generate.
        KeyError: A target that the identifier or a steering does not know.
        FloatingPointError: NaN or infinity; the message names the intervention.

    Warns:
        UserWarning: A steering has no units to change.
    """
    check_model(model)
    _check(prompts, targets, identify)
    plain = Steering(NONE, lambda *_: Intervention(NONE))
    trials = [*_trials(plain, prompts, [""], samples)]
    for each in steerings:
        trials += _trials(each, prompts, targets, samples)
    settings = {"tokens": tokens, "temperature": temperature, "chat": chat, "stop": list(stop)}
    texts = run_trials(model, trials, identify, seed=seed, progress=progress, **settings)
    return texts.astype({"seed": "Int64"})


def _check(prompts: Mapping[str, Sequence[str]], targets: Sequence[str], identify: Identify) -> None:
    strings = [source for source, some in prompts.items() if isinstance(some, str)]
    if strings:
        raise ValueError(f"the prompts of {strings} are one string: give a list of strings.")
    known = list(getattr(identify, "languages", targets))
    unknown = [target for target in targets if target not in known]
    if unknown:
        raise KeyError(f"the identifier does not know the targets {unknown}; it knows {known}.")


def _trials(
    steering: Steering, prompts: Mapping[str, Sequence[str]], targets: Sequence[str], samples: int
) -> list[Trial]:
    """The trials: one for prompts of all sources where the change does not depend on the source."""
    trials = []
    for target in targets:
        rows = [(source, each) for source, some in prompts.items() if source != target for each in some]
        groups = [[row for row in rows if row[0] == source] for source in prompts] if steering.uses_source else [rows]
        head = {"steering": steering.name, "dose": steering.dose, "seed": steering.seed}
        for group in filter(None, groups):
            what = steering.make(group[0][0] if steering.uses_source else None, target)
            texts = [steering.prefix.get(target, "") + text for _, text in group]
            labels = [{**head, "source": source, "target": target, "prompt": text} for source, text in group]
            trials.append(Trial(what, texts, labels, {}))
        if samples:
            label = {**head, "source": NOTHING, "target": target, "prompt": ""}
            front = [steering.prefix[target]] if target in steering.prefix else None
            trials.append(Trial(steering.make(None, target), front, [label], {"samples": samples, "chat": False}))
    return trials


def steering_losses(
    model: Model,
    corpora: Any,
    steerings: Sequence[Steering],
    targets: Sequence[str],
    *,
    layout: Layout | None = None,
    text: HeldOut | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Loss increases on real hold-out text: should be negative for the target, not positive for other languages.

    Random counterparts and prefixes are left out; no source language's units are switched off.

    Returns:
        One row per steering, dose and target: loss increases in nats per token, `target_nll_change`, `other_nll_change`
        (mean of the others), `worst_other` and `worst_other_nll_change`; the first two also in bits per byte.

    Raises:
        ValueError: Nothing but random counterparts and prefixes.
        KeyError: A target without text, or no other language's text beside it.
        FloatingPointError: The loss is NaN or infinite; the message names the steering.
    """
    check_model(model)
    corpora = as_corpora(corpora)
    real = [each for each in steerings if each.seed is None and not each.prefix]
    if not real:
        raise ValueError("no steering that changes the model: random counterparts and prefixes are left out here.")
    if len(corpora) < 2 or not set(targets) <= set(corpora):
        raise KeyError(f"targets {list(targets)}: expected some of two languages or more with text, {list(corpora)}.")
    cells = [(each, target) for each in real for target in targets]
    what = [replace(each.make(None, target), name=str(number)) for number, (each, target) in enumerate(cells)]
    losses: Any = loss_table(model, corpora, what, layout=layout, text=text, progress=progress)
    rows = []
    for number, (each, target) in enumerate(cells):
        mine: Any = losses[losses["intervention"] == str(number)].set_index("evaluated")
        if not np.isfinite(mine["nll"]).all():
            raise FloatingPointError(
                f"under {each.make(None, target).name!r}: the loss is NaN or infinite. Is a strength too large?"
            )
        said = verdict.rises(mine.reset_index(), target)
        rows.append(
            {
                "steering": each.name,
                "dose": each.dose,
                "target": target,
                "target_nll_change": said["own_rise"],
                "other_nll_change": said["mean_other_rise"],
                "worst_other": said["worst_other"],
                "worst_other_nll_change": said["worst_other_rise"],
                "target_bits_per_byte_change": said["own_rise_bits_per_byte"],
                "other_bits_per_byte_change": said["mean_other_rise_bits_per_byte"],
            }
        )
    table = pd.DataFrame(rows)
    table.attrs["text"] = losses.attrs["text"]
    return table
