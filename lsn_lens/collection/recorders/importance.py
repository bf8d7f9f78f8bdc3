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
from lsn_lens.statistics.importance import Importance
from lsn_lens.statistics.rotations import HeadNorm, Rotation
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
        """Norms of weights; for queries and keys the scale, norms and rotation, read from the model's own tensors."""
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
        """Units of q and k, one document at a time: their factors take more memory than all else."""
        found: dict[str, list[Tensor]] = {}
        for row, length in enumerate(acts.view.lengths.tolist()):
            q, k = (tensors[site][row, :length].float() for site in ("q", "k"))
            pattern = tensors["pattern"][row, :, :length, :length].float()
            first = int(self.need.skip_bos and acts.view.has_bos and length > 1)
            for basis, squares in self._changes(acts.layer, q, k, pattern, first).items():
                found.setdefault(basis, []).append(squares.flatten() / (length - first))
        for basis, each in found.items():
            values = torch.stack(each)
            self._add(basis, acts.layer, values if self.need.variant == "released" else values.sqrt())

    def _changes(self, layer: int, q: Tensor, k: Tensor, pattern: Tensor, first: int) -> dict[str, Tensor]:
        """Squared change of a document's pattern by each dimension of q and of k."""
        bases, per_key = [basis for basis in ("q", "k") if basis in self.need.bases], q.shape[1] // k.shape[1]
        k, rotation = k.repeat_interleave(per_key, dim=1), self._rotation(layer, len(q))
        norms = self._norms(layer)
        left, right, places, stretch = maths.delta_factors(q, k, rotation, self.need.rotary, bases, norms)
        released = self.need.variant == "released"  # the released code adds Delta to the scores without their scale
        scale = 1.0 if released else float(self.constants[f"{self.need.key}.scale"][layer])
        squares = maths.exact_change(pattern, left, right, scale, first, stretch)
        every = {basis: squares[:, units] for basis, units in places.items()}
        return {b: each.unflatten(0, (-1, per_key)).sum(1) if b == "k" else each for b, each in every.items()}

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

    def _rotation(self, layer: int, length: int) -> Rotation:
        """The rotation for a document of this length; some models encode positions of long texts differently."""
        border = self.constants.get(f"{self.need.key}.border")
        part = self.need.key if border is None or length > border else f"{self.need.key}.short"
        table = self.constants[f"{part}.table"][layer]
        return Rotation(*(self.constants[f"{part}.{name}"][table] for name in ("cos", "turn", "partner")))

    def _norms(self, layer: int) -> dict[str, HeadNorm]:
        """The norms that queries and keys pass before the rotation; empty where they pass none."""
        numbers = self.constants.get(f"{self.need.key}.norms.{layer}")
        return {} if numbers is None else {b: HeadNorm(x[:-1], x[-1]) for b, x in zip("qk", numbers, strict=True)}

    def _add(self, basis: str, layer: int, values: Tensor) -> None:
        """Merge the importances of documents, `[document unit]`."""
        name = f"{self.need.key}.{basis}"
        self.sums[f"{name}.sum"][layer] += values.double().sum(0)
        values = values[values.any(1)]
        if len(values):
            minimum, worst = (self.sums[f"{name}.{kind}"][layer] for kind in ("minimum", "rank.maximum"))
            torch.minimum(minimum, values.amin(0), out=minimum)
            torch.maximum(worst, maths.worst_first_ranks(values).amax(0), out=worst)


def heads_output(model: Model, layer: int) -> Tensor:
    """W_O as `[head d_head d_model]`."""
    w_o = model.blocks[layer].attn.W_O.detach()
    return w_o if w_o.ndim == 3 else w_o.unflatten(0, (model.cfg.n_heads, -1))


def value_heads(model: Model) -> int:
    """Number of key/value heads, which query heads may share."""
    return getattr(model.cfg, "n_key_value_heads", None) or model.cfg.n_heads
