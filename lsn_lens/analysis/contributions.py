"""Contributions of neurons by type to the residual stream and to a token's logit, at the last position of a text."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.analysis.sharing import DEFAULT, active_layers
from lsn_lens.methods.sharing import PRODUCT, TYPES, Sharing, members
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.statistics.sums import Statistics

TOP_SHARE = 0.0488  # 800 of the 16,384 neurons of a layer of BLOOMZ-7B


def contribution(statistics: Statistics, norms: Float[Tensor, "layer unit"], method: Sharing = DEFAULT) -> pd.DataFrame:
    """Contributions of neurons by type at the last position: neuron i adds m_i v_i, of size `C_i = |m_i| * norm(v_i)`.

    Args:
        statistics: Statistics of a run.
        norms: From `down_norms`.
        method: Defines which neurons are active.

    Returns:
        One row per layer, language and type, means over items: `top_share`, the share of the type among the
        `round(0.0488 * d_mlp)` neurons (one at least) of highest C; `chance`, its share among all neurons; `sum_share`,
        of the sum of C; `mean`, `maximum` and `minimum` of C in the type; `coverage`, the share of items in which some
        neuron has the type. Other items are left out of the means (NaN if there is no item).

    Raises:
        KeyError: The run lacks the method's statistics.
        ValueError: Fewer than two languages, items that are not parallel, or norms of another model.

    Source: Wang et al. 2024 (arXiv 2406.09265), released notebooks: C and the top 800 of 16,384. In these notebooks an
        empty type counts as 0 in the means; `sum_share` and `chance` are ours.
    """
    rows = []
    for layer, label, types, products in _products(statistics, method):
        expected = (statistics.tokens.shape[1], products.shape[-1])
        if tuple(norms.shape) != expected:
            raise ValueError(f"norms {tuple(norms.shape)}: expected {expected}, from down_norms of the run's model.")
        sizes = products.double().abs() * norms[layer].double().cpu()
        top = _highest(sizes)
        for name, each in zip(TYPES, types, strict=True):
            shares = {
                "top_share": (top & each).sum(-1) / top.sum(-1),
                "chance": each.double().mean(-1),
                "sum_share": (sizes * each).sum(-1) / sizes.sum(-1),
            }
            means = {key: float(value.nanmean()) for key, value in shares.items()}
            rows.append({"layer": layer, "language": label, "type": name, **means, **_spread(sizes, each)})
    return pd.DataFrame(rows)


def effective_score(
    statistics: Statistics, model: Model, tokens: int | Mapping[str, Sequence[int]], method: Sharing = DEFAULT
) -> pd.DataFrame:
    """Contributions of neurons by type to the logit of a reference token, at the last position.

    Neuron i adds `E_i(w) = e_w . (m_i v_i)` to the logit of token w, were there no norm before the unembedding (and
    none after the MLP, which Gemma has). E is signed.

    Args:
        statistics: Statistics of a run of the model.
        model: A HookedTransformer or TransformerBridge.
        tokens: The token's id, or per language the ids by item, for example from `answer_token`.
        method: Defines which neurons are active.

    Returns:
        One row per layer, language and type: `mean`, `maximum` and `minimum` of E in the type, means over items, and
        `coverage`, as in `contribution`.

    Raises:
        KeyError: The run lacks the method's statistics, or a language has no tokens.
        ValueError: Fewer than two languages, items that are not parallel, or another number of tokens than items.

    Source: Wang et al. 2024 (arXiv 2406.09265), released notebooks.
    """
    check_model(model)
    rows = []
    for layer, label, types, products in _products(statistics, method):
        wanted = [tokens] * len(products) if isinstance(tokens, int) else list(tokens[label])
        if len(wanted) != len(products):
            raise ValueError(f"{label}: {len(wanted)} reference tokens for {len(products)} items; give one for each.")
        scores = effective_values(model, layer, products, torch.tensor(wanted))
        for name, each in zip(TYPES, types, strict=True):
            rows.append({"layer": layer, "language": label, "type": name, **_spread(scores, each)})
    return pd.DataFrame(rows)


def effective_values(
    model: Model, layer: int, products: Float[Tensor, "item unit"], tokens: Int[Tensor, "item"]
) -> Float[Tensor, "item unit"]:
    """Each neuron's contribution to the logit of each item's token: `e_w . (m_i v_i)`, in float64."""
    check_model(model)
    towards = model.W_U[:, tokens.to(model.W_U.device)].double().cpu()
    return products.double() * (_down(model, layer) @ towards).T


def down_norms(model: Model) -> Float[Tensor, "layer unit"]:
    """Norms of the rows of each layer's down projection, of the weights as they are (do not centre them)."""
    check_model(model)
    return torch.stack([_down(model, layer).norm(dim=-1) for layer in range(model.cfg.n_layers)])


def answer_token(tokenizer: Any, prompt: str, answer: str) -> int:
    """The first token of an answer when it follows the prompt. Spaces count: `" true"` in English, `"真"` in Chinese.

    Raises:
        ValueError: The prompt is cut into other tokens when the answer follows, or the answer has none.
    """
    before, whole = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + answer))
    if len(whole) <= len(before) or whole[: len(before)] != before:
        raise ValueError(
            f"the tokens of {prompt!r} are not those that {prompt + answer!r} begins with: the answer has no first "
            "token of its own. Let the prompt end elsewhere, or move a space between prompt and answer."
        )
    return whole[len(before)]


def _products(statistics: Statistics, method: Sharing) -> Iterator[tuple[int, str, Tensor, Tensor]]:
    """Layer, language, `[type item unit]` members, and m `[item unit]` at the last position."""
    for layer, fires in active_layers(statistics, method):
        types = members(fires.sum(0), len(fires))
        products = statistics.documents(PRODUCT.key, layer)
        yield from ((layer, label, types, products[label]) for label in statistics.languages)


def _highest(sizes: Float[Tensor, "item unit"]) -> Bool[Tensor, "item unit"]:
    order = sizes.argsort(dim=-1, descending=True, stable=True)[:, : max(1, round(TOP_SHARE * sizes.shape[-1]))]
    return torch.zeros_like(sizes, dtype=torch.bool).scatter(-1, order, True)


def _spread(values: Float[Tensor, "item unit"], has: Bool[Tensor, "item unit"]) -> dict[str, float]:
    """Mean, maximum and minimum over the neurons of a type, averaged over the items in which some neuron has it."""
    if not has.any():
        return {"mean": math.nan, "maximum": math.nan, "minimum": math.nan, "coverage": 0.0}
    some = has.any(-1)
    values, has = values[some], has[some]
    return {
        "mean": float(((values * has).sum(-1) / has.sum(-1)).mean()),
        "maximum": float(values.masked_fill(~has, -torch.inf).amax(-1).mean()),
        "minimum": float(values.masked_fill(~has, torch.inf).amin(-1).mean()),
        "coverage": float(some.double().mean()),
    }


def _down(model: Model, layer: int) -> Float[Tensor, "unit d_model"]:
    return model.blocks[layer].mlp.W_out.detach().double().cpu()
