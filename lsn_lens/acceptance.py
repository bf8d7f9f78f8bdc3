"""What a model must do before it is handed out: compute what Hugging Face computes, whatever the padding.

What is compared is what is measured later: the forward pass that `collect` runs as well as the one that `generate` runs.
"""

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lsn_lens import forward
from lsn_lens.checkpoints import in_short
from lsn_lens.models import HALF_TOLERANCE, TOLERANCE, Model, device_of, probe_ids

PREFIX = 5  # tokens of a text that are read alone, too
LONGEST = 24  # tokens of the first text; the second has a third of them
TRY = "This version of TransformerLens computes another function; try the other backend or a newer version."


@dataclass(frozen=True)
class Reference:
    """What the plain Hugging Face model gives.

    Attributes:
        source: The model's name.
        rows: Ids of two texts, one longer than the other.
        logits: Of each text alone.
        padded_left: Largest difference of its own logits under left padding, in their standard deviations.
    """

    source: str
    rows: list[Tensor]
    logits: list[Tensor]
    padded_left: float

    @property
    def allowed(self) -> float:
        """Largest difference that is rounding, in standard deviations of the logits."""
        return TOLERANCE.get(self.logits[0].dtype, HALF_TOLERANCE)


@torch.no_grad()
def reference_of(hf_model: Any, source: str) -> Reference:
    """Run the plain Hugging Face model, and see that it is a decoder whose attention is sound.

    Raises:
        ValueError: It is not, or gives NaN.
    """
    device = hf_model.device
    rows = [ids.to(device) for ids in _texts(hf_model)]
    try:
        logits = [hf_model(ids[None]).logits[0] for ids in rows]
        if not all(bool(each.isfinite().all()) for each in logits):
            raise ValueError(f"it gives NaN or infinite logits as {hf_model.dtype}; try torch.float32")
        _check_reads_forward(hf_model, rows[0], logits[0])
        _check_attention(hf_model, rows[0], logits[0])
        padded = hf_model(**_left_padded(hf_model, rows)).logits
    except Exception as error:  # whatever a Hugging Face model raises
        said = str(error) if isinstance(error, ValueError) else in_short(error)
        raise ValueError(f"{source!r} ({type(hf_model).__name__}) as the plain Hugging Face model: {said}.") from error
    ends = [padded[i, -len(row) :] for i, row in enumerate(rows)]
    return Reference(source, rows, logits, max(map(_distance, ends, logits)))


@torch.no_grad()
def check(model: Model, reference: Reference) -> None:
    """A model's logits equal Hugging Face's, alone and under padding, by every way that they are computed later.

    Raises:
        ValueError: They do not, or one of the ways fails.
    """
    what = f"{reference.source!r} as {type(model).__name__}"
    try:
        for how, given in _ways(model, reference):
            for i, expected in enumerate(reference.logits):
                difference = _distance(given[i].to(expected.device), expected)
                if not difference <= reference.allowed:
                    raise ValueError(_differs(how, difference, reference))
        _check_hidden_states(model, reference)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:  # whatever a wrapped model raises
        raise ValueError(f"{what} cannot be run: {in_short(error)}. {TRY}") from error


def _texts(hf_model: Any) -> list[Tensor]:
    """Ids of two texts within the context."""
    config = hf_model.config.get_text_config()
    # longer than what a sparse attention picks: below that it has nothing to pick, and cannot pick padding
    longest = LONGEST + (getattr(config, "index_topk", None) or 0)
    longest = min(longest, getattr(config, "max_position_embeddings", None) or longest)
    return probe_ids(len(hf_model.get_input_embeddings().weight), longest, max(1, longest // 3))


def _ways(model: Model, reference: Reference) -> Iterator[tuple[str, list[Tensor]]]:
    """How, and the logits of each row without its padding."""
    device = device_of(model)
    for side in ("right", "left"):
        ids, mask = (each.to(device) for each in padded_batch(reference.rows, side))
        logits = model(ids, attention_mask=mask, return_type="logits")
        yield f"with {side} padding", [logits[i][mask[i].bool()] for i in range(len(ids))]
    ids, mask = (each.to(device) for each in padded_batch(reference.rows, "right"))
    for how, context in _forwards(model):
        with context:
            logits = forward.logits(model, ids, mask)
        yield f"with right padding, {how}", [logits[i][mask[i].bool()] for i in range(len(ids))]


def _forwards(model: Model) -> Iterator[tuple[str, contextlib.AbstractContextManager[Any]]]:
    """The forward passes of `collect` and evaluation: with every hook, and without those that nobody needs."""
    yield "as statistics are collected", contextlib.nullcontext()
    if forward.lean_is_exact(model, ()):
        yield "as statistics are collected without hooks", forward.lean(model, ())


def _check_hidden_states(model: Model, reference: Reference) -> None:
    """The last hidden states of a text are the same alone and beside padding."""
    ids, mask = (each.to(device_of(model)) for each in padded_batch(reference.rows, "right"))
    for how, context in _forwards(model):
        with context:
            together = forward.hidden_states(model, ids, mask)
            for i, row in enumerate(reference.rows):
                alone = forward.hidden_states(model, row[None].to(ids.device), None)[0]
                difference = _distance(together[i, : len(row)], alone)
                if not difference <= reference.allowed:
                    raise ValueError(
                        f"beside padding on the right, {how}, the last hidden states of a text differ by "
                        f"{difference:.2g} of their standard deviation from those of the text alone; documents could "
                        "not be read side by side"
                    )


def _differs(how: str, difference: float, reference: Reference) -> str:
    said = (
        f"{how}, logits differ from Hugging Face's by {difference:.2g} of their standard deviation, at most "
        f"{reference.allowed:g} is allowed. "
    )
    if "left" in how and not reference.padded_left <= reference.allowed:
        return said + (
            f"So do those of the plain Hugging Face model ({reference.padded_left:.2g}): what it computes depends on "
            "the padding before a text, so it cannot write several texts at once."
        )
    return said + TRY


def _check_reads_forward(hf_model: Any, ids: Tensor, logits: Tensor) -> None:
    """What a decoder makes of a token does not depend on the tokens after it."""
    difference = _distance(hf_model(ids[None, :PREFIX]).logits[0], logits[:PREFIX])
    if not difference <= TOLERANCE.get(logits.dtype, HALF_TOLERANCE):
        raise ValueError(
            f"the tokens after a text change what it makes of the text, by {difference:.2g} of the logits' standard "
            "deviation: it is an encoder or reads both ways, not the causal language model that was expected"
        )


def _check_attention(hf_model: Any, ids: Tensor, logits: Tensor) -> None:
    """Eager attention, which hooks need, is what the model has by default: else one of the two is wrong."""
    config = hf_model.config
    if not getattr(hf_model, "_supports_sdpa", False):
        return
    try:
        config._attn_implementation = "sdpa"
        default = hf_model(ids[None]).logits[0]
    finally:
        config._attn_implementation = "eager"
    # rounding adds up over many layers in half precision, in single numbers above all: compare their spread
    is_half = logits.dtype not in TOLERANCE
    difference = _spread(default, logits) if is_half else _distance(default, logits)
    if not difference <= TOLERANCE.get(logits.dtype, HALF_TOLERANCE):
        raise ValueError(
            f"its eager attention, which hooks need, and its default one (sdpa) differ, by {difference:.2g} of the "
            "logits' standard deviation: what is measured would not be the model that others run"
        )


def _left_padded(hf_model: Any, rows: list[Tensor]) -> dict[str, Tensor]:
    """Two texts side by side, as `forward.step` gives them."""
    ids, mask = (each.to(hf_model.device) for each in padded_batch(rows, "left"))
    given = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(hf_model.forward).parameters:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    return given


def padded_batch(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask `[row pos]` of texts of different length."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, place], mask[i, place] = row.cpu(), 1
    return ids, mask


def _distance(values: Tensor, reference: Tensor) -> float:
    """Largest difference, in standard deviations of the reference; NaN where there is NaN."""
    return float((values - reference).float().abs().max() / reference.float().std())


def _spread(values: Tensor, reference: Tensor) -> float:
    """Typical difference, in standard deviations of the reference."""
    return float((values - reference).float().square().mean().sqrt() / reference.float().std())
