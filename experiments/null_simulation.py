"""How often each method's tests are wrong, where it is known which language stands out at which unit.

    python experiments/null_simulation.py

Text is made up: every unit has values at tokens of documents of shards of four languages, with differences between
documents that all units share in part. In some units some languages are shifted, the rest are alike in all. Printed for
each method and kind of shift: the share of false ones among the pairs of unit and language called significant
(Benjamini-Hochberg), how often there is any false one beyond the best by chance (max-T), both with their standard
errors, and the shares of the true ones found. A pair is false where the language does not lie beyond every other
language. "units" are the same for units as such, false where all languages are alike.

A transfer neuron turns the stream, to which all units write. There, where a language is shifted in some units, it may
differ at all; pairs are false only of languages that are alike in every unit.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lsn_lens.studies.experiment import run_cli  # before torch, whose idle threads it lets sleep

# isort: split
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lsn_lens import methods
from lsn_lens.controls import Permutations, benjamini_hochberg, contrast_of, contrast_test, load_shards
from lsn_lens.runs.run import Run
from lsn_lens.runs.shards import DOCUMENTS, LENGTH, TOKENS, row_key
from lsn_lens.statistics import worst_first_ranks

LANGUAGES = ("a", "b", "c", "d")
STREAM = 24  # width of the residual stream
DOCUMENTS_EACH, TOKENS_EACH, EXPERT = 3, 6, 2  # of a shard, of a document, units of an expert
LEVEL = 0.05

# by how much the languages are shifted in the units that are not alike in all; a language is named by its index
SHIFTS: dict[str, tuple[float, float, float, float]] = {
    "none": (0.0, 0.0, 0.0, 0.0),
    "one high": (1.5, 0.0, 0.0, 0.0),
    "one low": (-1.5, 0.0, 0.0, 0.0),
    "two high": (1.5, 1.5, 0.0, 0.0),
    "ladder": (2.0, 1.0, 0.0, -1.5),
}
METHODS: dict[str, Any] = {
    "lape": methods.Lape(filter_share=0.5, bar_share=0.5),
    "lap": methods.Lap(),
    "lave": methods.Lave(filter_share=0.5, bar_share=0.5),
    "frozen_lape": methods.FrozenLape(filter_share=0.5, bar_share=0.5),
    "entropy_lambda": methods.EntropyLambda(bar_share=0.5),
    "act_grad": methods.ActGrad(filter_share=0.5, bar_share=0.5),
    "dln": methods.Dln(share=1.0, bins=8),
    "plnd": methods.Plnd(bases=("mlp",), top_mlp=0.9),
    "expert_frequency": methods.ExpertFrequency(size=EXPERT, high=0.5),
    "diffmean": methods.DiffMean(),
    "language_dimensions": methods.LanguageDimensions(),
    "average_precision, top": methods.AveragePrecision("top", bases=("mlp_pre",)),
    "average_precision, bottom": methods.AveragePrecision("bottom", bases=("mlp_pre",)),
    "average_precision, both": methods.AveragePrecision("both", bases=("mlp_pre",)),
    "sharing": methods.Sharing(check_parallel=False),
    "transfer": methods.Transfer(),
}


def made_run(generator: np.random.Generator, shifts: np.ndarray, shards: int = 16) -> Run:
    """What `METHODS` but `transfer` read, of one layer; `shifts` is `[language unit]`, units of an expert alike."""
    parts: dict[str, list[Mapping[str, Tensor]]] = {}
    rows: dict[str, list[Mapping[str, Tensor]]] = {}
    base, spread, texts = _values(generator, shifts, shards)
    for label, values in texts.items():
        parts[label] = [_sums(each, base, spread) for each in values]
        rows[label] = [_rows(each.float()) for each in values]
    key = METHODS["expert_frequency"].statistics()[0].key
    constants = {f"{key}.assignment": torch.arange(shifts.shape[1])[None] // EXPERT}
    return Run(parts, {}, documents=rows, constants=constants)


def written_run(generator: np.random.Generator, shifts: np.ndarray, shards: int = 16) -> Run:
    """What `transfer` reads, of two layers alike: units write vectors into a stream that is random before."""
    writes = torch.from_numpy(generator.normal(size=(shifts.shape[1], STREAM))) / STREAM
    parts: dict[str, list[Mapping[str, Tensor]]] = {}
    rows: dict[str, list[Mapping[str, Tensor]]] = {}
    units, before, products = (need.key for need in METHODS["transfer"].statistics())
    for label, values in _values(generator, shifts, shards)[2].items():
        parts[label], rows[label] = [], []
        for each in values:
            active = torch.nn.functional.silu(each[:, -1])
            stream = torch.from_numpy(generator.normal(size=(len(each), STREAM)))
            after = (stream + active @ writes).sum(0)
            sums = {f"{products}.stream": after.expand(2, -1), f"{products}.along": (writes @ after).expand(2, -1)}
            counts = {TOKENS: torch.full((2,), TOKENS_EACH * len(each)), DOCUMENTS: torch.tensor(len(each))}
            parts[label].append(sums | counts)
            made = {units: active, before: stream, products: stream @ writes.T}
            layers = {row_key(key, layer): value.float() for key, value in made.items() for layer in range(2)}
            rows[label].append(layers | {row_key(LENGTH, 0): torch.ones(len(each), 1)})
    return Run(parts, {}, documents=rows, constants={f"{products}.squares": writes.square().sum(1).expand(2, -1)})


def _values(
    generator: np.random.Generator, shifts: np.ndarray, shards: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Tensor]]:
    """Base and spread of each unit, and each language's values `[shard document token unit]`."""
    units = shifts.shape[1]
    base, spread = generator.uniform(-1.5, 0.5, units), generator.uniform(0.5, 2.0, units)
    texts = {}
    for label, shift in zip(LANGUAGES, shifts, strict=False):
        together = generator.normal(size=(shards, DOCUMENTS_EACH, 1, 1))
        alone = generator.normal(size=(shards, DOCUMENTS_EACH, 1, units))
        token = generator.normal(size=(shards, DOCUMENTS_EACH, TOKENS_EACH, units))
        texts[label] = torch.from_numpy(base + spread * (shift + 0.4 * together + 0.6 * alone + token))
    return base, spread, texts


def _sums(values: Tensor, base: np.ndarray, spread: np.ndarray) -> dict[str, Tensor]:
    """Of one shard, from values `[document token unit]`."""
    tokens = values.flatten(0, 1)
    active = torch.nn.functional.silu(tokens)
    plnd = METHODS["plnd"].need.key
    size = values.clamp_min(0).square().mean(1).sqrt() + 0.01
    bins = ((tokens - torch.from_numpy(base)) / torch.from_numpy(spread) * 2 + 5).long().clamp(0, 9)
    chosen = tokens.unflatten(1, (-1, EXPERT)).mean(2) > 0.5
    selected = METHODS["expert_frequency"].statistics()[0].key
    sums = {
        "mlp_pre.positive": (tokens > 0).sum(0),
        "mlp_pre.sum": tokens.sum(0),
        "mlp_act.sum": active.sum(0),
        "mlp_post.squares": active.square().sum(0),
        "mlp_post.act_grad": torch.nn.functional.softplus(tokens).sum(0),
        "resid_post.sum": tokens.sum(0),
        "resid_post.squares": tokens.square().sum(0),
        METHODS["dln"].statistics()[0].key: torch.nn.functional.one_hot(bins, 10).sum(0).int(),
        f"{plnd}.mlp.minimum": size.amin(0),
        f"{plnd}.mlp.rank.maximum": worst_first_ranks(size).amax(0),
        f"{plnd}.mlp.sum": size.sum(0),
        f"{selected}.selected": chosen.sum(0),
    }
    return {key: each[None] for key, each in sums.items()} | {
        f"{selected}.counted": torch.tensor([len(tokens)]),
        TOKENS: torch.tensor([len(tokens)]),
        DOCUMENTS: torch.tensor(len(values)),
    }


def _rows(values: Tensor) -> dict[str, Tensor]:
    last = torch.nn.functional.silu(values[:, -1])
    each = {"mlp_pre.mean": values.mean(1), "mlp_act.last": last, "mlp_post.last": last}
    return {row_key(key, 0): value for key, value in (each | {LENGTH: torch.ones(len(values), 1)}).items()}


Truth = tuple[Tensor, Tensor]  # where a language stands out, `[language unit]`, and where languages differ, `[unit]`


def truth_of_values(shifts: np.ndarray, side: str, alike: int) -> Truth:
    """A language stands out where it lies beyond all others but `alike`."""
    beyond = []
    for sign in {"high": (1,), "low": (-1,), "both": (1, -1)}[side]:
        above = (sign * shifts[:, None] > sign * shifts[None]).sum(1)
        beyond.append(above >= len(shifts) - 1 - alike)
    return torch.from_numpy(np.any(beyond, axis=0)), torch.from_numpy((shifts != shifts[0]).any(0))


def truth_of_stream(shifts: np.ndarray, side: str, alike: int) -> Truth:
    """A language that is alike another one in every unit stands out nowhere; any other may stand out anywhere."""
    like = (shifts[:, None] == shifts[None]).all(2).sum(1) > 1
    differ = torch.tensor(bool((shifts != shifts[0]).any()))
    return torch.from_numpy(~like)[:, None].expand(shifts.shape), differ.expand(shifts.shape[1])


# how a run is made from shifts, and what is true of it; the first serves every method that is not named
VALUES = (made_run, truth_of_values)
WORLDS: dict[str, tuple[Callable[..., Run], Callable[..., Truth]]] = {"transfer": (written_run, truth_of_stream)}


def errors(rejected: Tensor, true: Tensor) -> tuple[float, bool, float]:
    """Share of false ones among those rejected, whether there is any, and the share of the true ones among all true."""
    false = int((rejected & ~true).sum())
    power = float((rejected & true).sum() / true.sum()) if true.any() else math.nan
    return false / max(int(rejected.sum()), 1), false > 0, power


def simulate(
    seed: int, kind: str, names: list[str], units: int = 120, changed: float = 0.3, draws: Permutations | None = None,
    alike: int = 0, shards: int = 16,
) -> list[dict[str, Any]]:  # fmt: skip
    """One replicate: a row for each method, of languages and of units."""
    generator = np.random.default_rng([seed, list(SHIFTS).index(kind)])
    shifts = np.zeros((len(LANGUAGES), units))
    shifts[:, : int(changed * units) // EXPERT * EXPERT] = np.array(SHIFTS[kind])[:, None]
    runs = {make: make(generator, shifts, shards) for make, _ in (VALUES, *WORLDS.values())}
    rows = []
    for name in names:
        make, truth = WORLDS.get(name, VALUES)
        method, small = METHODS[name], load_shards(runs[make], [METHODS[name]])
        declared = contrast_of(method)
        assert declared is not None
        tests = contrast_test(
            small,
            method,
            method.score(small.statistics),
            replace(draws or Permutations(999, 0, False, False), seed=seed),
            alike,
        )
        true, unit_true = truth(shifts, declared[0].side(method), alike)
        for what, p, family, is_true in (
            ("languages", tests.p_values, tests.family_wise, true),
            ("units", tests.unit_p_values, tests.unit_family_wise, unit_true),
        ):
            (p_value,), (adjusted,) = ([each[..., -1, :] for each in values.values()] for values in (p, family))
            fdr, _, power = errors(benjamini_hochberg(p_value, LEVEL), is_true)
            _, any_false, family_power = errors(adjusted <= LEVEL, is_true)
            rows.append({"method": name, "shift": kind, "test": what, "false discovery": fdr, "family-wise": any_false,
                         "found": power, "found, family-wise": family_power})  # fmt: skip
    return rows


def summary(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Means over replicates, and standard errors of the two error rates."""
    groups: Any = pd.DataFrame(rows).groupby(["test", "method", "shift"], sort=False)
    table = groups.mean()
    for name in ("false discovery", "family-wise"):
        table[f"{name} +-"] = groups[name].agg(lambda each: each.std(ddof=1) / math.sqrt(len(each)))
    return table


def null_simulation(
    replicates: int = 200, permutations: int = 999, paired: bool = False, pool: bool = False, alike: int = 0,
    units: int = 120, shards: int = 16, method: list[str] | None = None, out: str | None = None,
) -> None:  # fmt: skip
    """Print the table.

    Args:
        replicates: Runs made up for each kind of shift.
        permutations: Permutations of labels in each.
        paired: Permute within positions only.
        pool: Pool the null statistics of all units.
        alike: See `permutation_test`.
        units: Units of a run; three tenths are shifted.
        shards: Shards per language.
        method: Name of one method; all by default.
        out: A CSV file for the table.
    """
    rows, names = [], method or list(METHODS)
    torch.set_num_threads(1)
    for kind in SHIFTS:
        for seed in range(replicates):
            rows += simulate(seed, kind, names, units, 0.3, Permutations(permutations, 0, paired, pool), alike, shards)
    table = summary(rows)
    print(table.round(3).to_string())
    if out:
        table.to_csv(out)


if __name__ == "__main__":
    run_cli(null_simulation)
