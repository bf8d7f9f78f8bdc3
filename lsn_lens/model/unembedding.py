"""The loss of tokens without the logits of a batch: for scored tokens only, a part of the vocabulary at a time."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import cross_entropy, linear, pad

from lsn_lens.model import forward, hooks
from lsn_lens.model.probing import device_of, is_bridge, probe_ids, vocabulary_size
from lsn_lens.model.structure import Model

# tokens, and bytes of their logits in float32: on a CPU they stay in the cache; a GPU wants large products
PART = {"cpu": (512, 4 << 20)}
PART_ELSEWHERE = (4096, 256 << 20)
FULL = 512 << 20  # bytes of the logits of one forward pass, for a model whose logits cannot be made in parts
COPIES = 3  # tensors of the size of the logits, in float32, that a loss or its gradient holds at its peak
ULPS, HALF_ULPS = 64, 2  # by which losses from parts may differ, in units of the largest logit's precision

Part = tuple[slice, int, Tensor]  # which positions, the first token of the vocabulary, their logits
Look = Callable[[slice, int, Tensor], None]

_exact: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()


class _Given(Module):
    """Stands in for a model's body: returns an output that is already there."""

    def __init__(self, body: Module, decoder: Module | None, output: Any):
        super().__init__()
        self.__dict__["stands_for"] = body, decoder, output

    def __getattr__(self, name: str) -> Any:
        body, decoder, _ = self.__dict__["stands_for"]
        found = getattr(body, name)
        return self if found is decoder else found  # OPT calls the decoder inside its body

    def forward(self, *args: Any, **settings: Any) -> Any:
        return self.stands_for[2]


class _Some(Module):
    """Stands in for an unembedding: gives the logits of some tokens of the vocabulary."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.__dict__.update(weight=weight, bias=bias)  # some heads look at their dtype

    def forward(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self.__dict__["weight"], self.__dict__["bias"])


@dataclass(frozen=True, eq=False)
class _Head:
    """What a model does after its body. Its own forward runs, so all that scales or caps logits does too.

    Attributes:
        owner: The module whose forward calls the body and the unembedding.
        body: The name of the body in it; None if the owner can be called with hidden states.
        name: The name of the unembedding in it.
        weight: The unembedding's weights `[d_vocab d_model]`.
        bias: Its bias.
    """

    owner: Module
    body: str | None
    name: str
    weight: Tensor
    bias: Tensor | None

    def outside(self) -> Iterator[Module]:
        """The modules whose hooks would not fire, or not once."""
        yield self.owner
        for name, child in self.owner.named_children():
            if name in ("ln_final", "unembed") if self.body is None else name != self.body:
                yield from child.modules()

    def logits(self, output: Any, hidden: Tensor, first: int, last: int) -> Tensor:
        """Logits `[token last-first]` of hidden states, for the tokens `first` to `last` of the vocabulary.

        `output` is what the body returned.
        """
        modules, bias = self.owner._modules, None if self.bias is None else self.bias[first:last]
        stand_ins: dict[str, Module] = {self.name: _Some(self.weight[first:last], bias)}
        if self.body is not None:
            given = type(output)(**{**output, "last_hidden_state": hidden[None]})
            stand_ins[self.body] = _Given(modules[self.body], _decoder(self.owner), given)  # type: ignore[arg-type]
        before = {name: modules[name] for name in stand_ins}
        try:
            modules.update(stand_ins)
            if self.body is None:
                return self.owner(hidden[None], start_at_layer=len(modules["blocks"]), return_type="logits")[0]  # type: ignore[arg-type]
            ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
            return self.owner(ids, use_cache=False).logits[0]
        finally:
            modules.update(before)


def _decoder(hf_model: Any) -> Module | None:
    return hf_model.get_decoder() if hasattr(hf_model, "get_decoder") else None


def _head(model: Model) -> _Head | None:
    """A model's head, where its forward calls a plain linear unembedding on the output of one module."""
    if not is_bridge(model):
        return _Head(model, None, "unembed", model.unembed.W_U.T, model.unembed.b_U)
    owner, body = model.original_model, forward.body_of(model.original_model)
    names = {id(child): name for name, child in owner.named_children()}
    unembedding = owner.get_output_embeddings() if hasattr(owner, "get_output_embeddings") else None
    plain = unembedding if unembedding is None else unembedding._modules.get("_original_component", unembedding)
    moved = type(plain) is not Linear or "forward" in vars(plain)  # accelerate loads such weights in its forward
    if plain is None or moved or id(body) not in names or id(unembedding) not in names:
        return None
    bias = plain.bias if plain.bias is not None and bool(plain.bias.any()) else None  # TransformerLens adds zeros
    return _Head(owner, names[id(body)], names[id(unembedding)], plain.weight, bias)


def has_parts(model: Model) -> bool:
    """Whether logits can be made in parts: no hook is in the way, and a few tokens get the losses of all logits."""
    return _usable_head(model) is not None


def _usable_head(model: Model) -> _Head | None:
    forward.refresh(model)
    head = _head(model)
    if head is None or hooks.is_everywhere() or any(map(hooks.put_on, head.outside())):
        return None
    if model not in _exact:
        with hooks.set_aside(model):
            _exact[model] = _is_exact(model, _head(model))
    return head if _exact[model] else None


@torch.no_grad()
def _is_exact(model: Model, head: _Head | None) -> bool:
    if head is None:
        return False
    ids = torch.stack(probe_ids(vocabulary_size(model), 8, 8)).to(device_of(model))
    at, targets = pad(torch.ones_like(ids[:, 1:], dtype=torch.bool), (0, 1)), ids[:, 1:].flatten()
    logits = forward.logits(model, ids)[:, :-1].flatten(0, 1).float()
    found = _nats(_parts(model, head, ids, None, at, 5, logits.shape[-1] // 3 + 1), targets)
    expected = cross_entropy(logits, targets, reduction="none")
    ulps = HALF_ULPS if forward.is_half(model) else ULPS
    allowed = ulps * torch.finfo(next(model.parameters()).dtype).eps * logits[logits.isfinite()].abs().max()
    return bool((found - expected).abs().max() <= allowed)


def bytes_for_gradient(model: Model, tokens: int) -> int:
    """Most bytes of logits that `forward_for_gradient` holds for so many tokens, where it makes them in parts."""
    each = COPIES * 4 * vocabulary_size(model)
    return min(each * tokens, max(each, FULL))


def tokens_at_once(model: Model) -> int | None:
    """The number of tokens per forward pass whose logits need little memory; None where logits are made in parts."""
    return None if has_parts(model) else max(1, FULL // (4 * vocabulary_size(model)))


def next_token_losses(
    model: Model, ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"] | None,
    scored: Bool[Tensor, "batch target"],
) -> Float[Tensor, "token"]:  # fmt: skip
    """`token_losses` of the scored tokens after the first of each row."""
    return token_losses(model, ids, mask, pad(scored, (0, 1)), ids[:, 1:][scored])


@torch.no_grad()
def token_losses(
    model: Model,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"] | None,
    at: Bool[Tensor, "batch pos"],
    targets: Int[Tensor, "token"],
    look: Look | None = None,
) -> Float[Tensor, "token"]:
    """Nats of the tokens that follow some positions, row by row, in float64.

    Only these positions have logits, for a part of the vocabulary at a time. The model's own code scales or caps them.
    If the unembedding, the model itself or (HookedTransformer) the final norm has hooks, or if the head works in
    another way, all logits are made at once, with the same losses. Works inside `lean`.

    Args:
        model: A HookedTransformer or TransformerBridge.
        ids: Rows of tokens.
        mask: 0 for padding, which must be on the right.
        at: The positions.
        targets: The token after each of them.
        look: Called with each part of the logits: a slice of the positions, the part's first token of the vocabulary,
            and the logits `[position token]`, which it must not keep.
    """
    if (head := _usable_head(model)) is not None:
        tokens, size = PART.get(ids.device.type, PART_ELSEWHERE)
        parts = _parts(model, head, ids, mask, at, tokens, max(1, size // (4 * tokens)))
    else:
        parts = _rows(forward.logits(model, ids, mask), at)
    return _nats(parts, targets, look)


def forward_for_gradient(
    model: Model,
    ids: Int[Tensor, "batch pos"],
    mask: Int[Tensor, "batch pos"] | None,
    at: Bool[Tensor, "batch pos"],
    targets: Int[Tensor, "token"],
) -> tuple[Float[Tensor, "batch pos _"], Callable[[], Float[Tensor, ""]]]:
    """Forward pass, and the backward pass of the summed loss of the tokens that follow some positions.

    The arguments are those of `token_losses`. Only these positions have logits, as many at a time as `FULL` bytes hold;
    where the head works in another way, all logits are made at once.

    Returns:
        The hidden states (all logits where these are made at once), and the function that runs the backward pass and
        returns the loss in nats.
    """
    if (head := _usable_head(model)) is None:
        logits = forward.logits(model, ids, mask)
        return logits.detach(), partial(_backward, logits[at], targets)
    output = forward.body_output(model, ids, mask)
    hidden = output if head.body is None else output.last_hidden_state
    return hidden.detach(), partial(_backward_in_parts, head, output, hidden[at], targets)


def _backward(logits: Tensor, targets: Tensor) -> Tensor:
    loss = cross_entropy(logits.float(), targets, reduction="sum")
    loss.backward()
    return loss.detach()


def _backward_in_parts(head: _Head, output: Any, states: Tensor, targets: Tensor) -> Tensor:
    """The gradient with respect to the hidden states, some of them at a time; then that of the blocks."""
    size = len(head.weight)
    gradients, total = torch.zeros_like(states), torch.zeros((), device=states.device)
    for start in range(0, len(states), step := max(1, FULL // (COPIES * 4 * size))):
        some = slice(start, start + step)
        leaf = states[some].detach().requires_grad_()
        loss = cross_entropy(head.logits(output, leaf, 0, size).float(), targets[some], reduction="sum")
        (gradients[some],) = torch.autograd.grad(loss, leaf)
        total += loss.detach()
    states.backward(gradients)
    return total


def _parts(
    model: Model, head: _Head, ids: Tensor, mask: Tensor | None, at: Tensor, tokens: int, width: int
) -> Iterator[Part]:
    """The logits of `tokens` positions and `width` tokens of the vocabulary at a time."""
    output = forward.body_output(model, ids, mask)
    states = (output if head.body is None else output.last_hidden_state)[at]
    size = len(head.weight)
    for start in range(0, len(states), tokens):
        stop = min(start + tokens, len(states))
        for first in range(0, size, width):
            yield slice(start, stop), first, head.logits(output, states[start:stop], first, min(first + width, size))


def _rows(logits: Tensor, at: Tensor) -> Iterator[Part]:
    """All logits, one row at a time."""
    start = 0
    for row, those in zip(logits, at, strict=True):
        stop = start + int(those.sum())
        yield slice(start, stop), 0, row[those]
        start = stop


def _nats(parts: Iterable[Part], targets: Tensor, look: Look | None = None) -> Tensor:
    """Negative log-probabilities of the targets, from the log-sum-exp of all parts, which are changed in place."""
    total = torch.full(targets.shape, -torch.inf, dtype=torch.float64, device=targets.device)
    own = total.clone()
    for tokens, first, logits in parts:
        if look is not None:
            look(tokens, first, logits)  # before they are changed in place
        values, place = logits.float(), (targets[tokens] - first)[:, None]
        here = (place >= 0) & (place < values.shape[1])
        own[tokens] = torch.where(here, values.gather(1, place * here).double(), own[tokens, None])[:, 0]
        top = values.amax(1, keepdim=True)
        top = top.masked_fill(top == -torch.inf, 0.0)  # none of these tokens can come
        added = values.sub_(top).exp_().sum(1, keepdim=True).double().log() + top.double()
        total[tokens] = torch.logaddexp(total[tokens], added[:, 0])
    return total - own
