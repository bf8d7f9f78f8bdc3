"""Accept a model: its logits must equal Hugging Face's, with every padding.

The compared forward passes are the ones used later: that of `collect`, and that of `generate`.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lsn_lens.model import forward
from lsn_lens.model.checkpoints import in_short
from lsn_lens.model.mlps import has_experts
from lsn_lens.model.probing import device_of, probe_ids
from lsn_lens.model.structure import HALF_TOLERANCE, TOLERANCE, Model

HALF_ATTENTION = 0.03  # largest difference of two attentions in half precision, relative to the layer's update
PREFIX = 5  # tokens of a text that are also read alone
LONGEST, SHORTER = 24, 8  # tokens of the two texts, more where a sparse attention picks some of many
TRY = "This version of TransformerLens computes another function; try the other backend or a newer version."


@dataclass(frozen=True)
class Reference:
    """Results of the plain Hugging Face model.

    Attributes:
        source: The model's name.
        rows: Ids of two texts, one longer than the other.
        logits: Logits of each text alone.
        padded: Largest change of these logits by padding on the "left" and on the "right", in standard deviations of
            the logits.
        routes: Whether tokens choose experts: in half precision, rounding alone changes some choices.
    """

    source: str
    rows: list[Tensor]
    logits: list[Tensor]
    padded: Mapping[str, float]
    routes: bool

    @property
    def allowed(self) -> float:
        """Largest difference that rounding explains, in standard deviations of the logits."""
        return TOLERANCE.get(self.logits[0].dtype, HALF_TOLERANCE)


@torch.no_grad()
def reference_of(hf_model: Any, source: str) -> Reference:
    """Run the plain Hugging Face model, and check that it is a decoder with correct eager attention.

    Raises:
        ValueError: One of these checks fails, or the logits have NaN.
    """
    device = hf_model.device
    rows = [ids.to(device) for ids in _texts(hf_model)]
    try:
        logits = [hf_model(ids[None]).logits[0] for ids in rows]
        if not all(bool(each.isfinite().all()) for each in logits):
            raise ValueError(f"it gives NaN or infinite logits as {hf_model.dtype}; try torch.float32")
        _check_reads_forward(hf_model, rows[0], logits[0])
        _check_attention(hf_model, rows[0])
        routes = has_experts(hf_model)
        padded = {side: _changed_by_padding(hf_model, rows, logits, side, routes) for side in ("left", "right")}
    except Exception as error:  # whatever a Hugging Face model raises
        said = str(error) if isinstance(error, ValueError) else in_short(error)
        raise ValueError(f"{source!r} ({type(hf_model).__name__}) as the plain Hugging Face model: {said}.") from error
    return Reference(source, rows, logits, padded, routes)


@torch.no_grad()
def check(model: Model, reference: Reference) -> None:
    """Check that logits equal Hugging Face's, without and with padding, for every forward pass used later.

    Raises:
        ValueError: Logits differ, or a forward pass fails.
    """
    what = f"{reference.source!r} as {type(model).__name__}"
    try:
        for side, how, given in _ways(model, reference):
            for i, expected in enumerate(reference.logits):
                difference = _distance(given[i].to(expected.device), expected, reference.routes)
                if not difference <= reference.allowed:
                    raise ValueError(_differs(side, how, difference, reference))
        _check_beside_padding(model, reference)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    except Exception as error:  # whatever a wrapped model raises
        raise ValueError(
            f"{what} cannot be run ({in_short(error)}): try a newer version of TransformerLens."
        ) from error


def _texts(hf_model: Any) -> list[Tensor]:
    """Ids of two texts within the context."""
    config = hf_model.config.get_text_config()
    picked = getattr(config, "index_topk", None) or 0  # from fewer tokens, sparse attention picks all
    context = getattr(config, "max_position_embeddings", None) or LONGEST + picked
    scaling = getattr(config, "rope_parameters", None) or {}
    if scaling.get("rope_type") in ("longrope", "dynamic"):  # beyond it, all positions are coded in another way
        context = min(context, scaling.get("original_max_position_embeddings") or context)
    lengths = [min(length + picked, context - cut) for length, cut in ((LONGEST, 0), (SHORTER, 1))]
    return probe_ids(len(hf_model.get_input_embeddings().weight), *(max(1, length) for length in lengths))


def _ways(model: Model, reference: Reference) -> Iterator[tuple[str, str, list[Tensor]]]:
    """For each forward pass: the side of the padding, a description, and the logits of each row without padding."""
    device = device_of(model)
    for side in ("right", "left"):
        ids, mask = (each.to(device) for each in padded_batch(reference.rows, side))
        logits = model(ids, attention_mask=mask, return_type="logits")
        yield side, "", [logits[i][mask[i].bool()] for i in range(len(ids))]
    yield (
        "no",
        " as statistics are collected",
        [forward.logits(model, row[None].to(device))[0] for row in reference.rows],
    )


def _forwards(model: Model) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager[Any]]]]:
    """The forward passes of `collect` and evaluation: with all hooks, and without unneeded hooks."""
    yield "as statistics are collected", contextlib.nullcontext
    if forward.lean_is_exact(model, ()):  # then it equals the model without padding
        yield "as statistics are collected without hooks", lambda: forward.lean(model, ())


def _check_beside_padding(model: Model, reference: Reference) -> None:
    """Check that the last hidden states and the logits of a text do not change with padding."""
    ids, mask = (each.to(device_of(model)) for each in padded_batch(reference.rows, "right"))
    for how, context in _forwards(model):
        for what, run in (("hidden states", forward.hidden_states), ("logits", forward.logits)):
            with context():
                together = run(model, ids, mask)
                alone = [run(model, row[None].to(ids.device), None)[0] for row in reference.rows]
            for i, each in enumerate(alone):
                difference = _distance(together[i, : len(each)], each, reference.routes)
                if not difference <= reference.allowed:
                    raise ValueError(
                        f"beside padding on the right, {how}, the {what} of a text differ by {difference:.2g} of "
                        "their standard deviation from those of the text alone; texts cannot be read side by side"
                    )


def _differs(side: str, how: str, difference: float, reference: Reference) -> str:
    said = (
        f"with {side} padding{how}, logits differ from Hugging Face's by {difference:.2g} of their standard deviation, "
        f"at most {reference.allowed:g} is allowed. "
    )
    own = reference.padded.get(side, 0.0)
    if not own <= reference.allowed:
        return said + (
            f"So do those of the plain Hugging Face model ({own:.2g}): its result for a text depends on the padding, "
            "so texts cannot be read side by side."
        )
    return said + TRY


def _check_reads_forward(hf_model: Any, ids: Tensor, logits: Tensor) -> None:
    """Check that the model is a decoder: the result for a token does not depend on later tokens."""
    difference = _distance(hf_model(ids[None, :PREFIX]).logits[0], logits[:PREFIX])
    if not difference <= TOLERANCE.get(logits.dtype, HALF_TOLERANCE):
        raise ValueError(
            f"the tokens after a text change its logits for the text, by {difference:.2g} of their standard "
            "deviation: it is an encoder or reads both ways, not the causal language model that was expected"
        )


def _check_attention(hf_model: Any, ids: Tensor) -> None:
    """Check that eager attention, which hooks need, equals the model's default attention.

    Every layer gets the same input in both, so that neither rounding nor a choice of experts adds up over layers.
    """
    if not getattr(hf_model, "_supports_sdpa", False):
        return
    config = hf_model.config
    eager = _layer_by_layer(hf_model, ids)
    try:
        config._attn_implementation = "sdpa"
        default = _layer_by_layer(hf_model, ids, [given for given, _ in eager])
    finally:
        config._attn_implementation = "eager"
    for layer, ((given, made), (_, other)) in enumerate(zip(eager, default, strict=True)):
        change, error = (
            (each - base).float().square().mean(-1).sqrt() for each, base in ((made, given), (other, made))
        )
        difference = float((error / change.clamp_min(torch.finfo(torch.float32).tiny)).median())  # over tokens
        if not difference <= TOLERANCE.get(made.dtype, HALF_ATTENTION):
            raise ValueError(
                "its eager attention, which hooks need, and its default attention (sdpa) differ: in layer "
                f"{layer}, by {difference:.2g} of the layer's update. Results would not hold for the default model"
            )


def _layer_by_layer(hf_model: Any, ids: Tensor, given: list[Tensor] | None = None) -> list[tuple[Tensor, Tensor]]:
    """Input and output of each layer for a text; with `given`, the layers' outputs for these inputs."""
    count = hf_model.config.get_text_config().num_hidden_layers
    lists = (each for each in hf_model.modules() if isinstance(each, nn.ModuleList) and len(each) == count)
    seen: dict[int, list[Tensor]] = {}

    def before(layer: int, args: Any, kwargs: Any) -> Any:
        own = args[0] if args else kwargs["hidden_states"]
        seen[layer] = [own if given is None else given[layer]]
        return ((seen[layer][0], *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": seen[layer][0]})

    def after(layer: int, made: Any) -> None:
        seen[layer].append(made[0] if isinstance(made, tuple) else made)

    with contextlib.ExitStack() as stack:
        for i, layer in enumerate(next(lists, ())):
            pre = layer.register_forward_pre_hook(
                lambda _, args, kwargs, i=i: before(i, args, kwargs), with_kwargs=True
            )
            post = layer.register_forward_hook(lambda _, args, made, i=i: after(i, made))
            stack.callback(pre.remove)
            stack.callback(post.remove)
        hf_model(ids[None])
    return [(seen[i][0], seen[i][1]) for i in sorted(seen)]


def _changed_by_padding(hf_model: Any, rows: list[Tensor], alone: list[Tensor], side: str, routes: bool) -> float:
    """Largest change of the plain model's logits for a text, computed in one batch of both texts."""
    ids, mask = (each.to(hf_model.device) for each in padded_batch(rows, side))
    given = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in inspect.signature(hf_model.forward).parameters:
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    logits = hf_model(**given).logits
    return max(_distance(logits[i][mask[i].bool()], each, routes) for i, each in enumerate(alone))


def padded_batch(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask `[row pos]` of texts of different lengths, padded on one side."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, place], mask[i, place] = row.cpu(), 1
    return ids, mask


def _distance(values: Tensor, reference: Tensor, routes: bool = False) -> float:
    """Largest difference, in standard deviations of the reference; NaN if a value is NaN.

    In half precision, where single numbers are noisy, it is the root mean square; for models whose tokens choose
    experts, that of the median token.
    """
    error = (values - reference).float()
    if reference.dtype in TOLERANCE:
        size = error.abs().max()
    else:
        squares = error.square().mean(-1)
        size = (squares.median() if routes else squares.mean()).sqrt()
    return float(size / reference.float().std())
