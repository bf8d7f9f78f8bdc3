"""What a neuron's weights say: the tokens that it promotes and reads, and the neurons that write alike."""

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from lsn_lens.model import hooks, structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.mlps import check_writes
from lsn_lens.model.structure import Model
from lsn_lens.refusal import DoesNotApply


@torch.no_grad()
def written_tokens(model: Model, layer: int, unit: int, *, count: int = 10, basis: str = "mlp") -> pd.DataFrame:
    """The tokens that a neuron's output weights promote and suppress directly, past all later layers.

    The weights pass the final norm's gain (and centring, if it centres), not its division by the size of the stream,
    which is equal for all tokens. The logit of a token changes in proportion to `weight` times the neuron's value: a
    neuron with a negative value promotes what is suppressed here.

    Args:
        model: A HookedTransformer or TransformerBridge.
        layer: Layer of the neuron.
        unit: Number of the neuron.
        count: Tokens on each side.
        basis: The neuron's basis; only those of "mlp" have output weights.

    Returns:
        One row per token, each side's strongest first: `side` ("promoted", "suppressed"), `token` (its text), `id`,
        `weight`, and `spread`, the standard deviation over the vocabulary.

    Raises:
        DoesNotApply: Another basis, or an MLP that adds something else than its units times their weights.

    Source: Geva et al. 2022 (arXiv 2203.14680) read what MLP neurons promote through the unembedding.
    """
    check_model(model)
    _check_basis(basis, "output")
    if structure.has_site(model, "resid_mid"):  # blocks whose halves run in parallel have no stream between them
        check_writes(model)
    logits = _past_final_norm(model, model.blocks[layer].mlp.W_out[unit]) @ model.W_U.detach().double().cpu()
    return _sides(model, logits, ("promoted", "suppressed"), count)


@torch.no_grad()
def read_tokens(model: Model, layer: int, unit: int, *, count: int = 10, basis: str = "mlp") -> pd.DataFrame:
    """The tokens whose embeddings a neuron's input weights (the gate's, in a gated MLP) read the most and the least.

    The product of the embedding and the weights, without norms, attention and earlier layers: the later the layer, the
    less it says.

    Takes the arguments of `written_tokens`, and returns its columns, with the sides "raises" and "lowers".

    Raises:
        DoesNotApply: Another basis.
    """
    check_model(model)
    _check_basis(basis, "input")
    mlp = model.blocks[layer].mlp
    weights = (mlp.W_gate if structure.is_gated(model) else mlp.W_in)[:, unit]
    return _sides(model, model.W_E.detach().double().cpu() @ weights.double().cpu(), ("raises", "lowers"), count)


@torch.no_grad()
def similar_neurons(model: Model, layer: int, unit: int, *, count: int = 10, basis: str = "mlp") -> pd.DataFrame:
    """The neurons of all layers whose output weights point most nearly in the same direction.

    Returns:
        One row per neuron, the most similar first: `basis`, `layer`, `unit`, `cosine` of the output weights, and
        `spread`, the standard deviation of the cosine over all neurons: what is usual.

    Raises:
        DoesNotApply: Another basis than "mlp".
    """
    check_model(model)
    _check_basis(basis, "output")

    def directions(of: int) -> Tensor:
        return torch.nn.functional.normalize(model.blocks[of].mlp.W_out.detach().double(), dim=-1)

    own = directions(layer)[unit]
    cosines = torch.stack([(directions(each) @ own).cpu() for each in range(model.cfg.n_layers)])
    cosines[layer, unit] = -torch.inf  # itself
    others = cosines[cosines.isfinite()]
    best = cosines.flatten().topk(min(count, len(others)))
    places = [(int(each) // cosines.shape[1], int(each) % cosines.shape[1]) for each in best.indices]
    rows = [("mlp", *place, value) for place, value in zip(places, best.values.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["basis", "layer", "unit", "cosine"]).assign(spread=float(others.std()))


def _check_basis(basis: str, side: str) -> None:
    if basis != "mlp":
        raise DoesNotApply(f"{side} weights are read for units of basis 'mlp' alone: this one is of basis {basis!r}.")


def _past_final_norm(model: Model, direction: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    """A direction after the gain of the final norm, and its centring if it centres, measured on inputs of size 1."""
    direction = direction.detach().double().cpu()
    norm = getattr(model, "ln_final", None)
    if norm is None:
        return direction
    weight = next(model.parameters())
    signs = torch.ones(1, 1, len(direction), dtype=weight.dtype, device=weight.device)
    signs[..., 1::2] = -1  # of mean 0, so that a norm that centres does not change it
    with hooks.set_aside(model):
        up, down, shifted = (norm(each).double().cpu().flatten() for each in (signs, -signs, signs + 1))
    gain = (up - down) / 2 * signs.double().cpu().flatten()
    centres = torch.allclose(shifted, up, rtol=1e-2, atol=1e-2 * float(up.abs().max()))
    return (direction - direction.mean() if centres else direction) * gain


def _sides(model: Model, values: Float[Tensor, "token"], names: tuple[str, str], count: int) -> pd.DataFrame:
    """The tokens with the highest and the lowest values."""
    frames = []
    for name, sign in zip(names, (1, -1), strict=True):
        ids = (sign * values).topk(min(count, len(values))).indices
        tokens = [model.tokenizer.decode([each]) for each in ids.tolist()]
        frames.append(pd.DataFrame({"side": name, "token": tokens, "id": ids.numpy(), "weight": values[ids].numpy()}))
    return pd.concat(frames, ignore_index=True).assign(spread=float(values.std()))
