"""Expert frequencies: heat maps, sets of experts, similarity of languages, and the masked model."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.statistics.experts import expert_scores, select_experts
from lsn_lens.statistics.sums import Statistics


def frequencies(statistics: Statistics, method: ExpertFrequency | None = None) -> pd.DataFrame:
    """Share of tokens that select each expert: rows (language, layer), columns experts, in the same order for all."""
    values = (method or ExpertFrequency()).frequency(statistics)
    index = pd.MultiIndex.from_product([statistics.languages, range(values.shape[1])], names=["language", "layer"])
    return pd.DataFrame(values.flatten(0, 1).numpy(), index=index).rename_axis(columns="expert")


def expert_sets(
    statistics: Statistics,
    method: ExpertFrequency | None = None,
    families: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Experts that are frequent in all languages, in one, or in one family, layer by layer.

    Args:
        statistics: Statistics of a run.
        method: Defines which experts are frequent.
        families: Name -> at least two languages.

    Returns:
        One row per layer and set: `layer`, `set` ("shared by all", "only <language>", "family <name>": in all of its
        languages and in no other), `experts` (how many), `expected` (by chance: each language's frequent experts drawn
        from the layer independently of the others'), `frequent` (frequent experts per language).

    Raises:
        KeyError: A family with a language that the run lacks.
    """
    method = method or ExpertFrequency()
    frequent, labels = method.frequent(method.frequency(statistics)), list(statistics.languages)
    unknown = [each for family in (families or {}).values() for each in family if each not in labels]
    if unknown:
        raise KeyError(f"no languages {unknown}; the run has {labels}.")
    groups = {"shared by all": labels, **{f"only {each}": [each] for each in labels}}
    groups |= {f"family {name}": list(members) for name, members in (families or {}).items()}
    rows = []
    for layer in range(frequent.shape[1]):
        each = frequent[:, layer]
        experts, sizes = each.shape[1], each.sum(1)
        for name, members in groups.items():
            inside = torch.tensor([label in members for label in labels])
            count = int((each == inside[:, None]).all(0).sum())
            shares = sizes.double() / experts
            expected = experts * float(torch.where(inside, shares, 1 - shares).prod())
            chosen = ", ".join(f"{a} {int(b)}" for a, b in zip(labels, sizes, strict=True))
            row = {"layer": layer, "set": name, "experts": count, "expected": expected, "frequent": chosen}
            rows.append(row)
    return pd.DataFrame(rows)


def expert_similarity(
    statistics: Statistics, method: ExpertFrequency | None = None, measure: str = "pearson"
) -> pd.DataFrame:
    """Similarity of each pair of languages: "pearson" or "cosine" of all frequencies, "jaccard" of frequent experts."""
    method = method or ExpertFrequency()
    values = method.frequency(statistics)
    if measure == "jaccard":
        rows = method.frequent(values).flatten(1).double().numpy()
        shared = rows @ rows.T
        result = shared / (rows.sum(1)[:, None] + rows.sum(1)[None] - shared)
    elif measure in ("pearson", "cosine"):
        rows = values.flatten(1).numpy()
        rows = rows - rows.mean(1, keepdims=True) if measure == "pearson" else rows
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        result = rows @ rows.T
    else:
        raise ValueError(f"measure={measure!r}: expected 'pearson', 'cosine' or 'jaccard'.")
    return pd.DataFrame(result, index=statistics.languages, columns=statistics.languages)


def language_clusters(similarity: pd.DataFrame) -> np.ndarray:
    """Average linkage on 1 - similarity, in SciPy's form (`scipy.cluster.hierarchy.dendrogram` draws it)."""
    distance = 1 - similarity.to_numpy()
    return linkage(squareform((distance + distance.T) / 2, checks=False), method="average")


def family_test(
    similarity: pd.DataFrame, families: Mapping[str, Sequence[str]], permutations: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Test whether languages of one family are more similar than languages of different families.

    Returns:
        `difference` (mean similarity within families minus between families) and `p`, the share of random assignments
        of the languages to the families, this one included, with at least that difference.

    Raises:
        ValueError: No pair of languages within a family, or none between families.
    """
    labels = list(similarity.index)
    family_of = {label: name for name, members in families.items() for label in members}
    codes = np.array([list(families).index(family_of[each]) if each in family_of else -1 - i
                      for i, each in enumerate(labels)])  # fmt: skip
    pairs = np.array(list(combinations(range(len(labels)), 2)))
    values = similarity.to_numpy()[pairs[:, 0], pairs[:, 1]]

    def difference(order: np.ndarray) -> float:
        same = order[pairs[:, 0]] == order[pairs[:, 1]]
        return float(values[same].mean() - values[~same].mean()) if same.any() and not same.all() else np.nan

    observed = difference(codes)
    if np.isnan(observed):
        raise ValueError(f"families {dict(families)} leave no pair within, or none between, for {labels}.")
    generator = np.random.default_rng(seed)
    drawn = [difference(generator.permutation(codes)) for _ in range(permutations)]
    return {"difference": observed, "p": (1 + sum(each >= observed - 1e-12 for each in drawn)) / (1 + permutations)}


@contextlib.contextmanager
def only_experts(
    model: Model, assignment: Int[Tensor, "layer unit"], share: float | int, score: str = "l1"
) -> Iterator[Model]:
    """Run the model with only each token's best experts; the neurons of other experts are 0.

    Selection is per layer, from the masked model's activations: masking earlier layers changes later ones. Frequencies,
    in contrast, come from the dense model.

    Args:
        model: A HookedTransformer or TransformerBridge.
        assignment: The expert of every neuron, `run.constants["<key>.assignment"]`.
        share: Share of each layer's experts that a token keeps, in (0, 1].
        score: "l1" or "l2".

    Yields:
        The model; its hooks are gone when the block ends.
    """
    check_model(model)
    if not 0 < share <= 1 or score not in ("l1", "l2"):
        raise ValueError(f"share={share}, score={score!r}: expected a share in (0, 1] and 'l1' or 'l2'.")
    device = structure.device_of(model)
    size = int((assignment[0] == 0).sum())

    def hook(layer: int) -> Any:
        expert, order = assignment[layer].to(device), assignment[layer].argsort(stable=True).to(device)

        def mask(acts: Tensor, hook: Any) -> Tensor:
            scores = expert_scores(acts.flatten(0, 1), order, size, score)
            chosen = select_experts(scores[None], "per_layer", float(share))[0]
            return acts * chosen[:, expert].view(acts.shape)

        return mask

    hooks = [(f"blocks.{layer}.mlp.hook_post", hook(layer)) for layer in range(len(assignment))]
    with model.hooks(fwd_hooks=hooks):
        yield model
