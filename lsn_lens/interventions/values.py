"""Values to set units to: measured by a run, or computed by the model on other text."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.bars import tqdm
from lsn_lens.files import whole_number
from lsn_lens.interventions.actions import Action, MlpSite, set_to
from lsn_lens.methods.average_precision import positive_median
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.identity import origin_of
from lsn_lens.neurons.sites import SITES, WRITE_SITE, flat
from lsn_lens.refusal import check_kind
from lsn_lens.statistics.needs import DocumentValues, Statistic
from lsn_lens.statistics.sums import Statistics
from lsn_lens.text.tokens import separator_id

Means = dict[str, Float[Tensor, "layer unit"]]


def mean_ablation(statistics: Statistics) -> Action:
    """Set units to their mean over all languages of a run (`run.statistics`), with equal weight per language."""
    return measured(statistics, set_to(pooled_means(statistics), "dataset mean"))


def other_mean_ablation(statistics: Statistics) -> Callable[[str], Action]:
    """A function from a language to the action that sets units to their mean over the run's other languages."""
    _check(statistics)
    return lambda language: measured(statistics, set_to(pooled_means(statistics, language), "other languages' mean"))


def measured(statistics: Statistics, action: Action) -> Action:
    """The same action with the run's model, text and layout as the origin of its values."""
    return replace(action, origin=statistics.origin)


def language_means(statistics: Statistics, language: str, mlp_site: MlpSite = "mlp_post") -> Means:
    """The mean of every unit over a language's tokens: basis -> `[layer unit]`, for all bases with sums in the run.

    Raises:
        KeyError: An unknown language.
    """
    place = place_of(statistics, language)
    return {basis: statistics.mean(site)[place].float() for basis, site in _summed(statistics, mlp_site).items()}


def language_mean(statistics: Statistics, language: str, mlp_site: MlpSite = "mlp_post") -> Action:
    """Set units to a language's mean over tokens.

    Source: the steering of Tang et al. 2024, whose code is not released; later work (arXiv 2507.22608) sets the mean
    of act(gate) (`mlp_site="mlp_act"`).
    """
    action = measured(statistics, set_to(language_means(statistics, language, mlp_site), f"mean of {language}"))
    return action if mlp_site == "mlp_post" else action.on(mlp_site)


def language_medians(statistics: Statistics) -> dict[str, Action]:
    """Language -> action that sets units to the median of its sentence means; the run needs "average_precision".

    Source: Kojima et al. 2024, released code.
    """
    medians = positive_median(statistics)
    values = [
        {basis: each[place].float() for basis, each in medians.items()} for place in range(len(statistics.languages))
    ]
    return {
        language: measured(statistics, set_to(own, f"median of {language}"))
        for language, own in zip(statistics.languages, values, strict=True)
    }


def language_median(statistics: Statistics, language: str) -> Action:
    """Set units to the median over one language's sentence means, see `language_medians`."""
    place_of(statistics, language)
    return language_medians(statistics)[language]


def language_maximum(statistics: Statistics, language: str, bases: Iterable[str] = ("mlp",)) -> Action:
    """Set units to their highest value on a language's text.

    The run needs `collect(..., extra=[DocumentValues("mlp_post", "maximum")])`, with the write site of each basis.
    """
    layers = range(statistics.tokens.shape[1])
    place_of(statistics, language)
    highest = {}
    for basis, site in _write_sites(bases).items():
        key = DocumentValues(site, "maximum").key
        highest[basis] = torch.stack([statistics.documents(key, layer)[language].amax(0) for layer in layers])
    return measured(statistics, set_to(highest, f"maximum of {language}"))


def resample(
    model: Model,
    documents: Iterable[str],
    bases: Iterable[str] = ("mlp",),
    *,
    tokens: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> Action:
    """Set units to their values at random tokens of other text; all units at a position come from the same token.

    A position of the text gets the same token in every row and pass. The values are `[layer, tokens, unit]` per basis.

    Args:
        model: A HookedTransformer or TransformerBridge.
        documents: Text to draw from, for example other-language text; read until there are enough tokens.
        bases: Bases of the units to set.
        tokens: Number of tokens to draw from; each document's leading BOS token is left out.
        seed: Seed of the tokens' order.
        progress: Show a progress bar.

    Raises:
        ValueError: The documents have too few tokens or are one string, or the model lacks a basis.
        KeyError: A basis that cannot be written to.
    """
    tokens = whole_number(tokens, "tokens", least=1)
    if isinstance(documents, str):
        raise ValueError("documents is one string, which would be read letter by letter: give a list of documents.")
    check_model(model)
    sites = {basis: SITES[site] for basis, site in _write_sites([bases] if isinstance(bases, str) else bases).items()}
    for site in sites.values():
        structure.site_width(model, site.name)  # refuses a model without it
    layers = range(model.cfg.n_layers)
    parts: dict[tuple[str, int], list[Tensor]] = {(basis, layer): [] for basis in sites for layer in layers}

    def keep(basis: str, layer: int) -> Callable[..., None]:
        def hook(acts: Tensor, hook: object) -> None:
            parts[basis, layer].append(flat(acts, sites[basis])[0, 1:].detach().cpu())

        return hook

    hooks = [(sites[basis].hook_name(layer), keep(basis, layer)) for basis, layer in parts]
    start = separator_id(model.tokenizer, "bos")
    first = next(iter(parts))
    read = 0
    with torch.no_grad(), model.hooks(fwd_hooks=hooks), tqdm(total=tokens, unit="tok", disable=not progress) as bar:
        for document in documents:
            ids = model.tokenizer(document, add_special_tokens=False)["input_ids"][: model.cfg.n_ctx - 1]
            model(torch.tensor([[start, *ids]], device=structure.device_of(model)))
            bar.update(len(parts[first][-1]))
            read = sum(map(len, parts[first]))
            if read >= tokens:
                break
    if read < tokens:
        raise ValueError(f"the documents have {read} tokens, fewer than {tokens}: give more text, or ask for fewer.")
    order = torch.randperm(read, generator=torch.Generator().manual_seed(seed))[:tokens]
    values = {basis: torch.stack([torch.cat(parts[basis, layer])[order] for layer in layers]) for basis in sites}
    return replace(set_to(values, "resample"), origin=origin_of(model))


def place_of(statistics: Statistics, language: str) -> int:
    """The index of a language on the first axis of statistics.

    Raises:
        KeyError: An unknown language; the message lists the run's languages.
    """
    _check(statistics)
    if language not in statistics.languages:
        raise KeyError(f"no language {language!r}; the languages are {list(statistics.languages)}.")
    return statistics.languages.index(language)


def _check(statistics: Any) -> None:
    check_kind("statistics", statistics, Statistics, "the statistics of a run, as run.statistics")


def _summed(statistics: Statistics, mlp_site: MlpSite) -> Mapping[str, str]:
    """The bases with sums in the run: basis -> site of the sums."""
    _check(statistics)
    sites = {**WRITE_SITE, "mlp": mlp_site}
    return {basis: site for basis, site in sites.items() if Statistic(site, "sum").key in statistics.sums}


def _write_sites(bases: Iterable[str]) -> dict[str, str]:
    sites = {basis: WRITE_SITE.get(basis) for basis in bases}
    known = {basis: site for basis, site in sites.items() if site is not None}
    if not known or len(known) < len(sites):
        raise KeyError(f"bases {list(sites)}: expected one or more of {list(WRITE_SITE)}.")
    return known


def pooled_means(statistics: Statistics, without: str | None = None, mlp_site: MlpSite = "mlp_post") -> Means:
    """The mean of every unit over all languages but `without`, equally weighted, for all bases with sums."""
    sites = _summed(statistics, mlp_site)
    return {basis: statistics.pooled_mean(site, without).float() for basis, site in sites.items()}
