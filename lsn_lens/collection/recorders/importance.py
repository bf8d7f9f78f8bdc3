"""Recorder of PLND's importances, computed for every document and layer by the closed forms."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lsn_lens.collection.recorders.attention import PROBE, read_attention
from lsn_lens.collection.recorders.base import Acts, Recorder, missing_sites
from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.neurons.sites import SITES
from lsn_lens.refusal import DoesNotApply
from lsn_lens.statistics import importance as maths
from lsn_lens.statistics.importance import Importance, Rotation
from lsn_lens.text.plan import Plan


class Importances(Recorder):
    """Recorder of an `Importance`."""

    need: Importance

    @staticmethod
    def fit(model: Model, need: Importance, width: Callable[[str], int]) -> tuple[Any, dict[str, str]]:
        """The bases that the model has; queries and keys where the pattern is the softmax of their product."""
        reasons = {SITES[site].basis: why for site, why in missing_sites(need.sites, width).items()}
        pairs = [basis for basis in ("q", "k") if basis in need.bases and basis not in reasons]
        if pairs and structure.device_of(model).type != "meta":  # without values there is nothing to read
            try:
                read_attention(model, PROBE)
            except DoesNotApply as error:
                reasons |= dict.fromkeys(pairs, str(error))
        if not reasons:
            return need, {}
        fitted = need.without(reasons)
        return (fitted if need.optional and fitted.bases else None), reasons

    @staticmethod
    @torch.no_grad()
    def prepare(model: Model, need: Importance, widths: Mapping[str, int], plan: Plan) -> dict[str, Tensor]:
        """Norms of weights; for queries and keys the scale and the rotation, read from the model's own tensors."""
        made: dict[str, Tensor] = {}
        layers = range(model.cfg.n_layers)
        if "mlp" in need.bases:
            made["mlp_norm"] = torch.stack([model.blocks[i].mlp.W_out.detach().float().norm(dim=1) for i in layers])
        if {"v", "z"} & set(need.bases):
            made["gram"] = torch.stack(
                [maths.gram_of_heads(heads_output(model, i), value_heads(model)) for i in layers]
            )
        if {"q", "k"} & set(need.bases):
            made |= read_attention(model, plan.length)
            if plan.border is not None and plan.border < plan.length:
                short = read_attention(model, plan.border)
                made |= {f"short.{name}": value for name, value in short.items()}
                made["border"] = torch.tensor(plan.border)
        return {f"{need.key}.{name}": value.cpu() for name, value in made.items()}

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of the bases, and the attention pattern for queries and keys."""
        return (*((self._mlp_site,) if "mlp" in self.need.bases else ()), *self._attention_sites)

    @property
    def _mlp_site(self) -> str:
        if self.need.variant == "paper":
            return "mlp_post"
        return "mlp_up" if structure.is_gated(self.model) else "mlp_pre"

    @property
    def _attention_sites(self) -> tuple[str, ...]:
        bases = set(self.need.bases)
        return (("q", "k", "pattern") if {"q", "k"} & bases else ()) + (("z",) if {"v", "z"} & bases else ())

    def reset(self) -> None:
        """Start a new shard."""
        super().reset()
        self.held: dict[int, dict[str, Tensor]] = {}

    def see(self, acts: Acts) -> None:
        """Process MLP and values for all documents at once; queries and keys per document, once the pattern is seen."""
        if acts.site == self._mlp_site:
            self._mlp(acts)
        if acts.site == "z":
            self._outputs(acts)
        if acts.site in ("q", "k", "pattern") and {"q", "k"} & set(self.need.bases):
            held = self.held.setdefault(acts.layer, {})
            held[acts.site] = acts.raw.detach()
            if len(held) == 3:
                self._documents(acts, self.held.pop(acts.layer))

    def _documents(self, acts: Acts, tensors: dict[str, Tensor]) -> None:
        for row, length in enumerate(acts.view.lengths.tolist()):
            own = {
                site: (each[row, :, :length, :length] if site == "pattern" else each[row, :length]).float()
                for site, each in tensors.items()
            }
            first = int(self.need.skip_bos and acts.view.has_bos and length > 1)
            self._patterns(own, acts.layer, first)

    def _kept(self, acts: Acts) -> tuple[Tensor, Tensor]:
        """Values, with zeros at tokens that do not count, and the number of tokens that count per document."""
        keep = acts.view.keep_without_bos if self.need.skip_bos else acts.view.keep
        values = acts.raw.detach().float()
        return values * keep.view(*keep.shape, *[1] * (values.ndim - 2)), keep.sum(1)

    def _mlp(self, acts: Acts) -> None:
        values, tokens = self._kept(acts)
        if self.need.variant == "released":
            rows = values.abs().sum(1) / tokens[:, None]
        else:
            norm = self.constants[f"{self.need.key}.mlp_norm"][acts.layer]
            rows = (values.square().sum(1) / tokens[:, None]).sqrt() * norm
        self._add("mlp", acts.layer, rows)

    def _outputs(self, acts: Acts) -> None:
        """Units of v and z."""
        gram = self.constants[f"{self.need.key}.gram"][acts.layer]
        z, tokens = self._kept(acts)
        tokens = tokens[:, None, None]
        if self.need.variant == "released":
            each = z.abs().sum(1) / tokens
            values = {"z": each, "v": each.unflatten(1, (len(gram), -1)).sum(2)}
        else:
            norms = gram.diagonal(dim1=-2, dim2=-1).sqrt().transpose(1, 2).flatten(0, 1)  # [head d_head]
            values = {
                "z": (z.square().sum(1) / tokens).sqrt() * norms,
                "v": maths.value_change(z, gram) / tokens.sqrt(),
            }
        for basis in {"v", "z"} & set(self.need.bases):
            self._add(basis, acts.layer, values[basis].flatten(1))

    def _patterns(self, own: dict[str, Tensor], layer: int, first: int) -> None:
        """Units of q and k."""
        pattern, groups = own["pattern"], own["k"].shape[1]
        q, k = own["q"], own["k"].repeat_interleave(len(pattern) // groups, dim=1)
        pairs = dict(zip("qk", maths.delta_factors(q, k, self._rotation(layer, len(q)), self.need.rotary), strict=True))
        released = self.need.variant == "released"  # the released code adds Delta to the scores without their scale
        scale = 1.0 if released else float(self.constants[f"{self.need.key}.scale"][layer])
        tokens, known = max(1, len(q) - first), dict[int, Tensor]()  # after the rotation, q and k are one pair
        for basis in (each for each in "qk" if each in self.need.bases):
            pair, n_groups = pairs[basis], groups if basis == "k" else len(pattern)
            if _is_whole(self.need.exact, n_groups * q.shape[2]):
                if id(pair) not in known:
                    known[id(pair)] = _all_exact(pattern, pair, scale, first)
                squares, is_exact = _of_groups(known[id(pair)], n_groups), None
            else:
                squares, is_exact = _best_exact(pattern, pair, scale, n_groups, self.need.exact, first)
            values = squares / tokens if released else (squares / tokens).sqrt()
            self._add(basis, layer, values[None], None if is_exact is None else is_exact[None])

    def _rotation(self, layer: int, length: int) -> Rotation:
        """The rotation for a document of this length; some models encode positions of long texts differently."""
        border = self.constants.get(f"{self.need.key}.border")
        part = self.need.key if border is None or length > border else f"{self.need.key}.short"
        table = self.constants[f"{part}.table"][layer]
        return Rotation(*(self.constants[f"{part}.{name}"][table] for name in ("cos", "turn", "partner")))

    def _add(self, basis: str, layer: int, values: Tensor, is_exact: Tensor | None = None) -> None:
        """Merge the importances of documents, `[document unit]`."""
        name = f"{self.need.key}.{basis}"
        self.sums[f"{name}.sum"][layer] += values.double().sum(0)
        values = values[values.any(1)]
        if len(values):
            minimum, worst = (self.sums[f"{name}.{kind}"][layer] for kind in ("minimum", "rank.maximum"))
            torch.minimum(minimum, values.amin(0), out=minimum)
            torch.maximum(worst, maths.worst_first_ranks(values, is_exact).amax(0), out=worst)


def _is_whole(exact: int | float, units: int) -> bool:
    return maths.number_of(exact, units) >= units


def _all_exact(pattern: Tensor, pair: tuple[Tensor, Tensor], scale: float, first: int) -> Tensor:
    """Squared change by each dimension of each query head, `[head d_head]`."""
    heads, dims = torch.ones(pair[0].shape[1:3], dtype=torch.bool, device=pattern.device).nonzero(as_tuple=True)
    return maths.exact_change(pattern, *pair, heads, dims, scale, first).view(pair[0].shape[1:3])


def _of_groups(each: Tensor, groups: int) -> Tensor:
    """Sum over the query heads of a group."""
    return each.unflatten(0, (groups, -1)).sum(1).flatten()


def _best_exact(
    pattern: Tensor, pair: tuple[Tensor, Tensor], scale: float, groups: int, exact: int | float, first: int
) -> tuple[Tensor, Tensor]:
    """Squared change of each unit, exact for the largest first-order estimates; and the mask of exact units."""
    n_heads, d_head = len(pattern), pair[0].shape[2]
    squares = _of_groups(maths.first_order_change(pattern, *pair, first) * scale**2, groups)
    best = squares.argsort(descending=True, stable=True)[: maths.number_of(exact, len(squares))]
    per_group = n_heads // groups
    heads = (best // d_head)[:, None] * per_group + torch.arange(per_group, device=best.device)
    dims = (best % d_head)[:, None].expand_as(heads)
    change = maths.exact_change(pattern, *pair, heads.flatten(), dims.flatten(), scale, first)
    squares[best] = change.view(heads.shape).sum(1)
    is_exact = torch.zeros(len(squares), dtype=torch.bool, device=squares.device)
    is_exact[best] = True
    return squares, is_exact


def heads_output(model: Model, layer: int) -> Tensor:
    """W_O as `[head d_head d_model]`."""
    w_o = model.blocks[layer].attn.W_O.detach()
    return w_o if w_o.ndim == 3 else w_o.unflatten(0, (model.cfg.n_heads, -1))


def value_heads(model: Model) -> int:
    """Number of key/value heads, which query heads may share."""
    return getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
