"""The language of a model's predictions by layer: the logit lens on tokens of exactly one language."""

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lsn_lens.analysis.lens.vocabulary import TokenLanguages
from lsn_lens.bars import tqdm
from lsn_lens.model import forward, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.hooks import set_aside
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sites import SITES
from lsn_lens.text.documents import LanguageCorpus
from lsn_lens.text.plan import Batch, Layout, Plan, layout_of
from lsn_lens.text.tokens import separator_id, tokenize

EMBEDDING = "blocks.0.hook_resid_pre"
Logits = Float[Tensor, "batch pos vocabulary"]


@torch.no_grad()
def logit_lens(
    model: Model,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"] | Bool[Tensor, "batch pos"] | None = None,
    *,
    norm: bool = True,
    at: Int[Tensor, "batch"] | None = None,
    reduce: Callable[[Logits], Any] | None = None,
) -> list[Any]:
    """Logits of the next token, as if the model ended after each layer.

    Runs under the hooks on the model, including interventions.

    Args:
        model: A HookedTransformer or TransformerBridge.
        ids: Token ids.
        mask: 1 for tokens, 0 for padding, which must be on the right.
        norm: Apply the final norm to every layer. False applies it to the last layer alone, as the code of
            Zhao et al. does: the last layer is the model's own output either way.
        at: One position per row; the logits are then `[batch 1 vocabulary]`.
        reduce: Function of each layer's logits `[batch pos vocabulary]`, so that only one layer's logits are held. By
            default the logits of all layers are kept.

    Returns:
        The result of `reduce` per layer: index 0 is the input of the first block (the embedding), index l the output of
        block l.

    Raises:
        ValueError: Padding on the left, NaN or infinite logits, or a model without its own final norm and unembedding.

    Source: logit lens; without norm as in Zhao et al. 2024, released code (`layers/`), which overwrites layer 0 with
    constants, while here it is measured.
    """
    check_model(model)
    if not (hasattr(model, "ln_final") and hasattr(model, "unembed")):
        raise ValueError(f"{type(model).__name__} has no final norm and unembedding (ln_final, unembed) to read with.")
    last = model.cfg.n_layers
    seen: list[Any] = [None] * (last + 1)

    def read(layer: int) -> Callable[..., None]:
        def hook(residual: Tensor, hook: Any) -> None:
            chosen = residual if at is None else residual[torch.arange(len(at), device=at.device), at][:, None]
            logits = unembedded(model, chosen, norm or layer == last)
            if layer == last and not bool(logits.sum(dtype=torch.float32).isfinite()):  # both survive a sum
                raise ValueError(
                    "the model gives NaN or infinite logits; if an intervention is active, it is too strong."
                )
            seen[layer] = logits if reduce is None else reduce(logits)

        return hook

    names = [EMBEDDING, *(SITES["resid_post"].hook_name(layer) for layer in range(last))]
    with model.hooks(fwd_hooks=[(name, read(layer)) for layer, name in enumerate(names)]):
        forward.hidden_states(model, ids, None if mask is None else mask.long())
    return seen


def unembedded(model: Model, residual: Float[Tensor, "batch pos d_model"], norm: bool) -> Logits:
    """The model's own head: final norm (if asked for), unembedding, and the soft cap of models that have one."""
    logits = model.unembed(model.ln_final(residual) if norm else residual)
    cap = getattr(model.cfg, "output_logits_soft_cap", None) or 0
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


@torch.no_grad()
def check_lens(model: Model) -> None:
    """Check on a few tokens, without hooks, that the lens at the last layer is the model's output.

    Raises:
        ValueError: The outputs differ, so the model changes its logits in a way unknown to the lens; or NaN.
    """
    check_model(model)
    ids = torch.arange(16, device=structure.device_of(model)).view(2, 8) % structure.vocabulary_size(model)
    with set_aside(model):
        own = forward.logits(model, ids).float()
        lens = logit_lens(model, ids, reduce=_last)[-1].float()
    allowed = structure.TOLERANCE.get(next(model.parameters()).dtype, structure.HALF_TOLERANCE)
    difference = float((lens - own).abs().max() / own.std())
    if not difference <= allowed:
        raise ValueError(
            f"the lens at the last layer is not the model's output: logits differ by {difference:.2g} of their "
            f"standard deviation, at most {allowed:g} is allowed. This model does more after its last block than final "
            "norm, unembedding and soft cap, so its layers cannot be read this way."
        )


def _last(logits: Tensor) -> Tensor:
    return logits


def working_language(
    model: Model,
    texts: Mapping[str, LanguageCorpus | Iterable[str]],
    labels: TokenLanguages,
    *,
    top_k: int = 10,
    norm: bool = True,
    layout: Layout | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The language of each layer's next-token predictions, on text of each language.

    At each position of a text, the `top_k` tokens of a layer's lens are looked up in `labels`; tokens of no single
    language are left out. The share of a language is taken over the identified tokens of a document, then averaged over
    documents. Runs under the hooks on the model.

    Args:
        model: A HookedTransformer or TransformerBridge.
        texts: Language of the text -> corpus (its `hold_out` is read) or texts.
        labels: From `token_languages`, made with the model's tokenizer and `vocabulary_size`.
        top_k: Number of most probable tokens per position.
        norm: See `logit_lens`.
        layout: How text becomes batches; one row per document by default, each as long as the context at most.
        progress: Show a progress bar.

    Returns:
        One row per text language (`text`), `layer` (0 the embedding, the last the model's output) and `language`:
        `share` of the identified top-k tokens; `coverage`, the share of all top-k tokens that is identified;
        `probability` of all tokens of the language together, in [0, 1]. References that do not depend on the layer:
        `text_share`, the language's share in the identified tokens of the text itself; `unigram_share` and
        `vocabulary_share`, its share in random tokens (see `TokenLanguages.chance`). `documents` were averaged; `empty`
        ones had no identified token and count for none. `attrs["text"]` describes the text.

    Raises:
        ValueError: Labels of another vocabulary, `top_k` out of range, no text, or a model that the lens cannot read.

    Source: Zhao et al. 2024, released code: top 10 tokens of every position, each by itself, mean over prompts. There
    the positions are a prompt and 64 generated tokens, and prompts without identified token count as zeros; here the
    text is given, the separator that a document begins with is left out, and such documents count for none.
    """
    check_model(model)
    size = structure.vocabulary_size(model)
    if len(labels.labels) != size:
        raise ValueError(
            f"labels are for {len(labels.labels)} token ids, the model has {size}: "
            "token_languages(model.tokenizer, ..., vocabulary=lsn_lens.model.structure.vocabulary_size(model))."
        )
    if not 1 <= top_k <= size:
        raise ValueError(f"top_k={top_k}: expected 1 to {size}, the size of the vocabulary.")
    check_lens(model)
    layout, frames = layout_of(layout, Layout(kind="documents", equal=False)), []
    with tempfile.TemporaryDirectory(prefix="lsn_lens-") as folder:
        plan = _plan(model, texts, Path(folder), layout, progress)
        total = sum(map(plan.tokens_of, plan.shards))
        with tqdm(total=total, desc="working language", unit="tok", unit_scale=True, disable=not progress) as bar:
            for shard in plan.shards:
                parts = []
                for batch in plan.batches(shard):
                    parts.append(_measure(model, batch, plan, labels, top_k, norm))
                    bar.update(int(batch.keep.sum()))
                frames.append(_rows(shard.language, parts, labels))
    table = pd.concat(frames, ignore_index=True).merge(labels.chance(), on="language", how="left")
    table.attrs |= {"text": plan.describe(), "top_k": top_k, "norm": norm}
    return table


def _plan(
    model: Model,
    texts: Mapping[str, LanguageCorpus | Iterable[str]],
    folder: Path,
    layout: Layout,
    progress: bool,
) -> Plan:
    tokens = {
        label: tokenize(
            label, each.hold_out if isinstance(each, LanguageCorpus) else each, model.tokenizer, folder,
            separator=layout.separator, bos=layout.bos, max_tokens=layout.max_tokens,
            d_vocab=structure.vocabulary_size(model), progress=progress,
        )
        for label, each in texts.items()
    }  # fmt: skip
    if not tokens:
        raise ValueError("no texts: expected at least one language.")
    at_once = 512 if structure.device_of(model).type == "cpu" else None  # more logits do not fit into the cache
    border = structure.position_border(model)
    return Plan(tokens, replace(layout, shards=1), context=model.cfg.n_ctx, at_once=at_once, border=border)


def _measure(
    model: Model, batch: Batch, plan: Plan, labels: TokenLanguages, top_k: int, norm: bool
) -> dict[str, Float[np.ndarray, "row ..."]]:
    """For each row of a batch: share, coverage and probability by layer, and share in the text itself."""
    device = structure.device_of(model)
    ids, indicator = batch.ids.to(device), labels.indicator.to(device)
    separator = separator_id(model.tokenizer, plan.layout.separator)
    keep = batch.keep if separator is None else batch.keep & (batch.ids != separator)
    keep = keep & (torch.arange(keep.shape[1]) > 0) if plan.layout.bos else keep  # the BOS in front of each block
    counted = keep.to(device)[..., None]

    def by_language(logits: Tensor) -> Tensor:
        """`[2 row language]`: identified tokens among the top k, and probability, summed over positions."""
        top = indicator[logits.topk(top_k, dim=-1).indices].sum(-2)
        # row by row, so that a large vocabulary needs room for one row's probabilities only
        mass = torch.stack([row.float().softmax(-1) @ indicator for row in logits])
        return torch.stack([(each * counted).double().sum(1) for each in (top, mass)]).cpu()

    mask = batch.keep.to(device, torch.long) if batch.padded else None
    both = torch.stack(logit_lens(model, ids, mask, norm=norm, reduce=by_language), 2)  # [2 row layer language]
    top, mass = both[0], both[1]
    positions = keep.sum(1).double()[:, None]
    text = (indicator[ids] * counted).double().sum(1).cpu()
    return {
        "share": (top / top.sum(-1, keepdim=True)).numpy(),
        "coverage": (top.sum(-1) / positions / top_k).numpy(),
        "probability": (mass / positions[..., None]).numpy(),
        "text_share": (text / text.sum(-1, keepdim=True)).numpy(),
    }


def _rows(text: str, parts: list[dict[str, Any]], labels: TokenLanguages) -> pd.DataFrame:
    """The table of one text language: means over rows, without those where nothing was identified."""
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counted = np.isfinite(rows["share"]).all(-1)  # [row layer]
    means = {name: _mean(each) for name, each in rows.items()}
    layers, languages = means["share"].shape
    index = pd.MultiIndex.from_product([range(layers), labels.languages], names=["layer", "language"])
    table = index.to_frame(index=False)
    table.insert(0, "text", text)
    return table.assign(
        share=means["share"].ravel(),
        coverage=np.repeat(means["coverage"], languages),
        probability=means["probability"].ravel(),
        text_share=np.tile(means["text_share"], layers),
        documents=np.repeat(counted.sum(0), languages),
        empty=np.repeat((~counted).sum(0), languages),
    )


def _mean(rows: np.ndarray) -> np.ndarray:
    """Mean over rows without NaN; NaN where all are."""
    finite = np.isfinite(rows)
    with np.errstate(invalid="ignore"):
        return np.where(finite, rows, 0.0).sum(0) / finite.sum(0)
