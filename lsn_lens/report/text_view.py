"""Activations of a few neurons on a few sentences, as a table and as coloured text."""

import html
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.text.corpora import as_corpora

SHOWN = 160  # characters of a document


def highest_on_text(model: Model, corpora: Any, scores: NeuronScores, found: NeuronSet, each: int = 2) -> str:
    """Activations of each language's best neurons on the first hold-out document of every language, as html.

    Args:
        model: A HookedTransformer or TransformerBridge with a fast tokenizer.
        corpora: Text, of which the first 160 characters are shown.
        scores: Of the method that found the set.
        found: Neurons of the MLPs.
        each: Neurons per language.
    """
    keys = ["language", "basis", "layer", "unit"]
    ranked = scores.to_frame().merge(found.to_frame(), on=keys).sort_values("score", ascending=False, kind="stable")
    neurons = ranked.groupby("language", sort=False).head(each)
    there = set(neurons["language"])
    neurons = neurons.set_index("language").loc[[label for label in found.languages if label in there]]
    texts = {label: next(iter(corpus.hold_out))[:SHOWN] for label, corpus in as_corpora(corpora).items()}
    return neuron_on_text(activations_on_text(model, texts, neurons.reset_index()))


@torch.no_grad()
def activations_on_text(
    model: Model, texts: Mapping[str, str], neurons: pd.DataFrame, site: str = "mlp_act"
) -> pd.DataFrame:
    """Activations of some neurons, token by token.

    Args:
        model: A HookedTransformer or TransformerBridge with a fast tokenizer.
        texts: One text for each label, for example the same sentence in each language.
        neurons: One row per neuron: `language` (whose it is), `layer`, `unit`, as in `NeuronSet.to_frame()`.
        site: Site to read; by default act(gate), whose sign LAPE counts.

    Returns:
        One row per text, piece and neuron: `text`, `place`, `piece`, `neuron`, `activation`. Tokens of one character
        form one piece, with the activation furthest from 0. The BOS token is read, but not shown.

    Raises:
        ValueError: No neurons, or a text longer than the model's context.
    """
    check_model(model)
    if neurons.empty:
        raise ValueError("no neurons to show: the table is empty.")
    rows = neurons[["language", "layer", "unit"]].itertuples(index=False, name=None)
    labels = [f"{language}: layer {layer}, unit {unit}" for language, layer, unit in rows]
    frames = []
    for label, text in texts.items():
        acts, spans = _read(model, text, neurons, site)
        pieces = _pieces(text, spans)
        for place, (piece, tokens) in enumerate(pieces):
            values = acts[tokens]
            values = values.gather(0, values.abs().argmax(0, keepdim=True))[0].tolist()
            columns = {"text": label, "place": place, "piece": piece, "neuron": labels, "activation": values}
            frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def neuron_on_text(activations: pd.DataFrame) -> str:
    """All texts coloured by the activation of a selectable neuron, as html that works offline.

    Activations below 0, where the neuron does not fire, are shown as 0. One colour scale per neuron, for all texts.

    Args:
        activations: From `activations_on_text`.

    Source: CircuitsVis `colored_tokens_multi`.
    """
    from circuitsvis.tokens import colored_tokens_multi  # slow to import, and needed here only

    neurons = list(activations["neuron"].unique())
    tokens: list[str] = []
    values: list[np.ndarray] = []
    for label, rows in activations.groupby("text", sort=False):
        wide = rows.pivot(index="place", columns="neuron", values="activation")[neurons].clip(lower=0)
        pieces = rows.drop_duplicates("place").sort_values("place")["piece"]
        shown = map(html.escape, pieces.str.replace("\n", " "))  # CircuitsVis reads html in tokens
        tokens += [f"{html.escape(str(label))}:  ", *shown, "\n"]
        values += [np.zeros((1, len(neurons))), wide.to_numpy(), np.zeros((1, len(neurons)))]
    return _escaped(colored_tokens_multi(tokens, torch.from_numpy(np.concatenate(values)), neurons).local_src)


def _read(model: Model, text: str, neurons: pd.DataFrame, name: str) -> tuple[torch.Tensor, list[Any]]:
    """Activations `[token, neuron]` and each token's span of characters."""
    encoded = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = model.tokenizer.bos_token_id
    front = [] if start is None else [start]
    ids = front + encoded["input_ids"]
    if len(ids) > model.cfg.n_ctx:
        raise ValueError(f"a text of {len(ids)} tokens is beyond the model's context of {model.cfg.n_ctx}: shorten it.")
    site, read = structure.reader(model, name)
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(acts: torch.Tensor, hook: Any) -> None:
            kept[layer] = read(acts, layer)[0].float().cpu()

        return hook

    layers = sorted(set(neurons["layer"]))
    with model.hooks(fwd_hooks=[(site.hook_name(layer), keep(layer)) for layer in layers]):
        forward.hidden_states(model, torch.tensor([ids], device=structure.device_of(model)), None)
    columns = [kept[layer][len(front) :, unit] for layer, unit in zip(neurons["layer"], neurons["unit"], strict=True)]
    return torch.stack(columns, dim=1), encoded["offset_mapping"]


def _pieces(text: str, spans: list[tuple[int, int]]) -> list[tuple[str, list[int]]]:
    """Tokens that share a character become one piece: its text, and the numbers of its tokens."""
    groups: list[tuple[int, int, list[int]]] = []
    for token, (first, last) in enumerate(spans):
        if groups and first < groups[-1][1]:
            begin, end, tokens = groups[-1]
            groups[-1] = (begin, max(end, last), [*tokens, token])
        else:
            groups.append((first, last, [token]))
    return [(text[begin:end], tokens) for begin, end, tokens in groups]


def _escaped(source: str) -> str:
    """CircuitsVis writes texts into a script as they are; `<` in them must not end it."""
    library, call, data = source.rpartition("CircuitsVis.render(\n")
    data, end, rest = data.rpartition("</script>")
    return library + call + data.replace("<", "\\u003c") + end + rest
