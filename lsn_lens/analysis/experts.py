"""Expert frequencies: heat maps, sets of experts, similarity of languages, and the masked model."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from lsn_lens.methods.expert_frequency import ExpertFrequency
from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sites import SITES
from lsn_lens.statistics.experts import ExpertAssignment, expert_scores, select_experts
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
    model: Model,
    assignment: Int[Tensor, "layer unit"] | ExpertAssignment,
    share: float | int,
    score: str = "l1",
    *,
    among: Bool[Tensor, "layer expert"] | None = None,
    selection: Literal["per_layer", "cross_layer"] = "per_layer",
    relative: bool = False,
) -> Iterator[Model]:
    """Run the model with only each token's best experts; the neurons of other experts are 0.

    With `selection="per_layer"`, experts are chosen from the masked model's activations: masking earlier layers changes
    later ones. Frequencies, in contrast, come from the dense model. `"cross_layer"` needs the scores of all layers
    before it can mask the first: each text is read twice, first by the dense model, whose scores choose.

    Args:
        model: A HookedTransformer or TransformerBridge.
        assignment: The expert of every neuron, `method.experts_of(run.statistics)`.
        share: Share of each layer's experts ("cross_layer": of all layers' experts) that a token keeps, in (0, 1].
        score: "l1" or "l2".
        among: The experts that a token may choose from, as a language's frequent ones; by default all.
        selection: Whether a token's experts are ranked within each layer, or over all layers at once.
        relative: For "cross_layer": divide scores by the layer's mean at the token.

    Yields:
        The model; its hooks are gone when the block ends.

    Raises:
        ValueError: A share, score, selection or pool of experts that cannot be; "cross_layer" while tokens are
            generated from a cache, which the first reading would fill.
        DoesNotApply: Experts of a model of another shape.

    Source: sparse activation as in Liu et al. 2024 (arXiv 2402.16367), of which only the abstract and the names of the
    parts could be read.
    """
    check_model(model)
    kept = assignment if isinstance(assignment, ExpertAssignment) else ExpertAssignment(assignment)
    kept.check(model.cfg.n_layers, structure.site_width(model, "mlp_post"))
    _check_choice(kept, share, score, among, selection)
    with contextlib.ExitStack() as stack:
        masks = _Masks(kept, float(share), score, among, selection, relative)
        if selection == "cross_layer":
            body = forward.body_of(model.original_model) if structure.is_bridge(model) else model
            handle = body.register_forward_pre_hook(masks.read_first, with_kwargs=True)
            stack.callback(handle.remove)
        names = [SITES["mlp_post"].hook_name(layer) for layer in range(model.cfg.n_layers)]
        hooks = [(name, partial(masks.mask, layer)) for layer, name in enumerate(names)]
        stack.enter_context(model.hooks(fwd_hooks=hooks))
        yield model


def _check_choice(
    experts: ExpertAssignment, share: float | int, score: str, among: Tensor | None, selection: str
) -> None:
    if not 0 < share <= 1 or score not in ("l1", "l2") or selection not in ("per_layer", "cross_layer"):
        raise ValueError(
            f"share={share}, score={score!r}, selection={selection!r}: expected a share in (0, 1], 'l1' or 'l2', and "
            "'per_layer' or 'cross_layer'."
        )
    shape = (len(experts.units), experts.experts)
    if among is not None and (among.dtype != torch.bool or tuple(among.shape) != shape or not among.any(1).all()):
        raise ValueError(
            f"among is {among.dtype} {list(among.shape)}: expected a bool mask {list(shape)} [layer, expert] with an "
            "expert in every layer."
        )


@dataclass
class _Masks:
    """The hooks of `only_experts`; `reading` while the dense model reads the text."""

    experts: ExpertAssignment
    share: float
    score: str
    among: Tensor | None
    selection: str
    relative: bool
    reading: bool = False
    scores: dict[int, Tensor] = field(default_factory=dict)
    chosen: Tensor = field(default_factory=lambda: torch.zeros(0))

    def read_first(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Before the masked model reads a text, let the dense model read it, and choose."""
        if self.reading:
            return
        if kwargs.get("past_key_values") is not None or kwargs.get("past_kv_cache") is not None:
            raise ValueError(
                "experts across layers are chosen by a first reading of the text, which would fill the cache of keys "
                "and values: give cache=False, or selection='per_layer'."
            )
        self.reading = True
        try:
            module(*args, **kwargs)
        finally:
            self.reading = False
        scores = torch.stack([self.scores.pop(layer) for layer in range(len(self.experts.units))])
        self.chosen = select_experts(scores, "cross_layer", self.share, self.relative, self.among)

    def mask(self, layer: int, acts: Tensor, hook: Any) -> Tensor:
        """Set the neurons of all experts that the token did not choose to 0."""
        expert = self.experts.units[layer].to(acts.device)
        if self.selection == "cross_layer" and not self.reading:
            chosen = self.chosen[layer]
        else:
            scores = expert_scores(acts.flatten(0, 1), expert.argsort(stable=True), self.experts.size, self.score)
            if self.reading:
                self.scores[layer] = scores
                return acts
            among = None if self.among is None else self.among[layer : layer + 1]
            chosen = select_experts(scores[None], "per_layer", self.share, among=among)[0]
        return acts * chosen[:, expert].view(acts.shape)
