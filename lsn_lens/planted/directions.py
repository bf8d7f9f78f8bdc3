"""Directions in an MLP's input: the tokens on their positive side, and weights that respond to them."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PENALTY = 1e-4  # of squared weights, in units where a direction's mean square over tokens is 1
STEPS = 60


def separate(
    acts: Float[Tensor, "token d_model"], inside: Bool[Tensor, "token concept"], known: Bool[Tensor, "token concept"]
) -> Float[Tensor, "concept d_model"]:
    """Per concept, a direction that is positive on the tokens inside and negative outside, without an intercept.

    Logistic regression; inside and outside have equal weight, unknown tokens have none.
    """
    size = acts.square().mean().sqrt()
    rows = acts / size
    sides = [(inside & known).float(), (~inside & known).float()]
    share = sum(side / side.sum(0).clamp(min=1) for side in sides) / 2
    weights = torch.zeros(inside.shape[1], acts.shape[1], requires_grad=True)
    target = inside.float()
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = rows @ weights.T
        errors = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        total = (errors * share).sum() + PENALTY * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(loss)
    return weights.detach() / size


def answer(
    acts: Float[Tensor, "token d_model"],
    gate: Float[Tensor, "token"],
    wanted: Float[Tensor, "token"],
    ridge: float = 1e-7,
) -> Float[Tensor, "d_model"]:
    """The direction whose product with `gate` is closest to each token's target, by least squares."""
    rows = (acts * gate[:, None]).double()
    square = rows.T @ rows
    square += ridge * square.diagonal().mean() * torch.eye(len(square), dtype=torch.double)
    return torch.linalg.solve(square, rows.T @ wanted.double()).float()


def half_height(
    acts: Float[Tensor, "token d_model"],
    inside: Bool[Tensor, "token concept"],
    known: Bool[Tensor, "token concept"],
    new: Float[Tensor, "new d_model"],
) -> Bool[Tensor, "new concept"]:
    """Where the direction that is closest to 1 inside and 0 outside is at least half of its mean inside."""
    columns = []
    for mine, sure in zip(inside.T, known.T, strict=True):
        row = answer(acts, sure.float(), mine.float())
        columns.append(new @ row > (acts @ row)[mine & sure].mean() / 2)
    return torch.stack(columns, 1)


def both_sides(acts: Float[Tensor, "token d_model"], inside: Bool[Tensor, "token"]) -> Float[Tensor, "d_model"]:
    """The direction that is closest to 1 inside and to -1 outside; both sides count the same."""
    share = torch.where(inside, 1 / inside.sum(), 1 / (~inside).sum().clamp(min=1)).sqrt()
    return answer(acts, share, torch.where(inside, 1.0, -1.0) * share)


def at_rates(
    acts: Float[Tensor, "token d_model"], language: Int[Tensor, "token"], rates: Sequence[float], seed: torch.Generator
) -> Float[Tensor, "d_model"]:
    """A random direction that is positive on the given share of each language's tokens."""
    drawn = torch.randn(acts.shape[1], generator=seed)
    found = drawn / (acts @ drawn).std()
    masks = [language == place for place in range(len(rates))]
    marks = torch.stack([answer(acts, torch.ones(len(acts)), mask.float()) for mask in masks])
    for _ in range(3):  # the thresholds are not exact, so the rest is corrected again
        value = acts @ found
        lifts = [torch.quantile(value[mask], 1 - rate) for mask, rate in zip(masks, rates, strict=True)]
        found = found - torch.stack(lifts) @ marks
    return found
