"""Runs drawn anew from a run's shards, and corpora with their documents' labels shuffled. No model is run here."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from torch import Tensor

from lsn_lens.labels import label_list
from lsn_lens.methods.base import Method
from lsn_lens.refusal import DoesNotApply
from lsn_lens.runs.run import DRAWN, Run
from lsn_lens.runs.shards import DOCUMENTS, LENGTH, TOKENS, Layered, read_shard
from lsn_lens.statistics.needs import Need
from lsn_lens.text.corpora import as_corpora
from lsn_lens.text.documents import Documents, LanguageCorpus
from lsn_lens.text.records import Records

FEW_SHARDS = 5  # with fewer, a bootstrap has too few different draws

Draw = Mapping[str, Sequence[tuple[str, int]]]  # label -> what it gets, each by its own label and number
Shard = Path | Mapping[str, Tensor]


def load_shards(run: Run, methods: Iterable[Method]) -> Run:
    """The run in memory, with only the statistics of these methods, for many draws.

    Raises:
        ValueError: A missing or damaged file.
    """
    needs = [need for method in methods for need in method.statistics()]
    sums = {label: [_read(shard, partial(_is_sum, needs)) for shard in run.shards[label]] for label in run.shards}
    rows: dict[str, list[Mapping[str, Tensor]]] = {}
    if any(need.by_document for need in needs):
        rows = {
            label: [_read(shard, partial(_is_row, needs)) for shard in run.documents[label]] for label in run.documents
        }
    return replace(run, shards=sums, documents=rows, settings={**run.settings, DRAWN: True})


def _read(shard: Shard, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    if isinstance(shard, Layered):
        shard.check()
    if not isinstance(shard, Path):
        return {key: value for key, value in shard.items() if wanted(key)}
    if not shard.is_file() or not _is_whole(shard, shard.stat().st_mtime_ns):
        raise ValueError(
            f"{shard} is missing or damaged. Call collect with the arguments of the run: it redoes that shard."
        )
    with safe_open(str(shard), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118 (not a dict)


@lru_cache(maxsize=1 << 16)
def _is_whole(shard: Path, _changed: int) -> bool:
    """Cached per state of a file: the check reads the whole file, each method only a part."""
    return read_shard(shard) is not None


def _is_sum(needs: Sequence[Need], key: str) -> bool:
    return key in (TOKENS, DOCUMENTS) or any(key == need.key or key.startswith(f"{need.key}.") for need in needs)


def _is_row(needs: Sequence[Need], key: str) -> bool:
    return key.rsplit("@", 1)[0] in {LENGTH, *(need.key for need in needs)}


def check_shards(run: Run, paired: bool = False) -> None:
    """Refuse a run with too few shards or, for a paired draw, with different numbers of shards.

    Raises:
        ValueError: The message says what to do.
    """
    counts = {label: len(shards) for label, shards in run.shards.items()}
    few = {label: count for label, count in counts.items() if count < FEW_SHARDS}
    if few:
        raise DoesNotApply(
            f"too few shards to draw from: {few}; expected {FEW_SHARDS} or more in each language, better 16. Collect "
            "again with Layout(shards=16); a language has no more shards than rows (blocks or documents), so give "
            "more text where that is not enough."
        )
    if paired and len(set(counts.values())) > 1:
        raise DoesNotApply(
            f"a paired draw takes shard i of every language together, but their numbers differ: {counts}. Give "
            "paired=False, or collect parallel text with Layout(equal=True)."
        )


def rearranged(run: Run, draw: Draw) -> Run:
    """A run whose languages have the shards in `draw`, in that order, with repetitions.

    Sums, counts and values of single documents follow, so every function of a run works on the result. `settings` are
    those of the original run, with a mark: the result cannot be saved.

    Args:
        run: The run to draw from.
        draw: Label to shards, each as its label and its number (from 0) in `run`.

    Raises:
        KeyError: A language or shard that the run does not have.
    """
    unknown = sorted(
        {
            (source, place)
            for pairs in draw.values()
            for source, place in pairs
            if source not in run.shards or not 0 <= place < len(run.shards[source])
        }
    )
    if unknown:
        counts = {label: len(shards) for label, shards in run.shards.items()}
        raise KeyError(f"no shards {unknown}; the numbers of shards are {counts}.")
    shards, documents = (
        {label: [parts[source][place] for source, place in pairs] for label, pairs in draw.items()} if parts else {}
        for parts in (run.shards, run.documents)
    )
    return replace(run, shards=shards, documents=documents, settings={**run.settings, DRAWN: True})


def resampled(run: Run, seed: int, *, paired: bool = False) -> Run:
    """A run with as many shards per language, drawn with replacement: one bootstrap replicate over blocks of documents.

    A language's draw depends on its label and the seed, not on the other languages or their order.

    Args:
        run: A run with at least 5 shards per language; from `load_shards` for many replicates.
        seed: Seed of the draw, 0 or more.
        paired: Draw the same shards in all languages. For parallel text, where document i is the same in each:
            "sharing" needs it.

    Raises:
        ValueError: Too few shards; with `paired`, different numbers of shards.

    Source: Efron and Tibshirani 1993, drawing whole groups of dependent values.
    """
    check_shards(run, paired)
    draw = {}
    for label, shards in run.shards.items():
        generator = np.random.default_rng([seed] if paired else [seed, zlib.crc32(label.encode())])
        places = np.sort(generator.integers(len(shards), size=len(shards))).tolist()
        draw[label] = [(label, place) for place in places]
    return rearranged(run, draw)


def permuted(run: Run, seed: int, *, paired: bool = False, among: Sequence[str] | None = None) -> Run:
    """The same shards with their labels permuted across languages: the null that no language matters.

    With `among`, only the labels of these languages are permuted, and the null is that they are alike. Each language
    keeps its number of shards. With `paired`, labels are permuted among the shards of one position, so that document i
    stays the same document in each language. The draw does not depend on the order of the languages. Documents of one
    shard stay together, which leaves more difference between languages than permuting documents would: a label gets
    some languages' shards more often than others by chance.

    `among` are labels of the run, by default all; other arguments and errors are those of `resampled`.

    Raises: as `resampled`.
    """
    check_shards(run, paired)
    counts = {label: len(shards) for label, shards in run.shards.items()}
    draw = {label: [(label, place) for place in range(count)] for label, count in counts.items()}
    draw |= _permutation({label: counts[label] for label in counts if among is None or label in among}, seed, paired)
    return rearranged(run, {label: sorted(draw[label]) for label in counts})


def subset(run: Run, languages: Iterable[str]) -> Run:
    """The run restricted to one or several of its languages, in the given order.

    Raises:
        KeyError: A language that the run does not have.
    """
    languages = label_list(languages)
    unknown = [label for label in languages if label not in run.shards]
    if unknown:
        raise KeyError(f"no language {unknown}; the languages are {list(run.languages)}.")
    smaller = rearranged(run, {label: [(label, i) for i in range(len(run.shards[label]))] for label in languages})
    text = run.settings.get("text")
    if text is None:
        return smaller
    described = {**text, "languages": {label: text["languages"][label] for label in languages}}
    return replace(smaller, settings={**run.settings, "text": described})


def halves(run: Run) -> tuple[Run, Run]:
    """The first and the second half of each language's shards; parallel text stays parallel.

    Raises:
        ValueError: A language with one shard.
    """
    few = [label for label, shards in run.shards.items() if len(shards) < 2]
    if few:
        raise DoesNotApply(f"{few} have fewer than two shards, so no two halves: collect again with Layout(shards=2).")
    cuts = {label: (0, len(shards) // 2, len(shards)) for label, shards in run.shards.items()}
    first, second = (
        rearranged(run, {label: [(label, i) for i in range(*cut[part : part + 2])] for label, cut in cuts.items()})
        for part in (0, 1)
    )
    return first, second


def shuffled_labels(corpora: Any, seed: int = 0, *, paired: bool = False) -> dict[str, LanguageCorpus]:
    """Corpora whose documents are permuted across languages, for a null by document.

    Each label keeps its number of documents in both parts. The text is held in memory, without unusable records, which
    are counted in `skipped` of the given corpora.

    Args:
        corpora: From `load_corpora`.
        seed: Seed of the permutation, 0 or more.
        paired: Permute labels among the documents of one position only, for parallel text.

    Raises:
        ValueError: With `paired`, different numbers of documents.
    """
    corpora = as_corpora(corpora)
    parts = [{label: tuple(documents) for label, documents in each} for each in _parts(corpora)]
    shuffled = [_shuffle(texts, seed, paired) for texts in parts]
    return {label: LanguageCorpus(label, *(each[label] for each in shuffled)) for label in corpora}


def _parts(corpora: Mapping[str, LanguageCorpus]) -> Iterable[Iterable[tuple[str, Documents]]]:
    yield [(label, corpus.find) for label, corpus in corpora.items()]
    yield [(label, corpus.hold_out) for label, corpus in corpora.items()]


def _shuffle(texts: Mapping[str, tuple[str, ...]], seed: int, paired: bool) -> dict[str, Documents]:
    counts = {label: len(each) for label, each in texts.items()}
    if paired and len(set(counts.values())) > 1:
        raise ValueError(
            f"a paired shuffle takes document i of every language together, but their numbers differ: {counts}. "
            "Give paired=False, or parallel text."
        )
    draw = _permutation(counts, seed, paired)
    given = {label: tuple(texts[source][place] for source, place in draw[label]) for label in counts}
    return {label: Documents(Records(f"shuffled labels:{label}", partial(iter, each))) for label, each in given.items()}


def _permutation(counts: Mapping[str, int], seed: int, paired: bool) -> dict[str, list[tuple[str, int]]]:
    """The items that each label gets, as many as before; the order of the labels does not matter."""
    generator, labels = np.random.default_rng(seed), sorted(counts)
    if paired:
        rows = [[(labels[i], place) for i in generator.permutation(len(labels))] for place in range(counts[labels[0]])]
        return {label: [row[i] for row in rows] for i, label in enumerate(labels)}
    items = [(label, place) for label in labels for place in range(counts[label])]
    order = iter(generator.permutation(len(items)).tolist())
    return {label: [items[next(order)] for _ in range(counts[label])] for label in labels}


def seeds(seed: int, count: int) -> list[int]:
    """`number` seeds for single draws, from one seed."""
    return [int(each) for each in np.random.SeedSequence(seed).generate_state(count, np.uint64)]
