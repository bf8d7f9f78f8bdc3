"""The sites of a model as a table: which tensor each site names, and on which basis."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Site:
    """A named tensor whose last axis (two axes where `heads`) counts the units of a basis.

    `hook` is the TransformerLens name inside a block; `activated` applies the model's activation
    function to the hooked tensor, since TransformerLens has no hook for act(gate).
    """

    name: str
    basis: str
    hook: str
    heads: bool = False
    activated: bool = False

    def hook_name(self, layer: int) -> str:
        """The full hook name in one layer."""
        return f"blocks.{layer}.{self.hook}"


SITES: dict[str, Site] = {
    site.name: site
    for site in (
        Site("mlp_pre", "mlp", "mlp.hook_pre"),  # gate (or the only) projection, before the activation
        Site("mlp_act", "mlp", "mlp.hook_pre", activated=True),  # act(gate)
        Site("mlp_up", "mlp", "mlp.hook_pre_linear"),  # up projection; gated models only
        Site("mlp_post", "mlp", "mlp.hook_post"),  # input of the down projection
        Site("q", "q", "attn.hook_q", heads=True),
        Site("k", "k", "attn.hook_k", heads=True),
        Site("v", "v", "attn.hook_v", heads=True),
        Site("pattern", "pattern", "attn.hook_pattern"),  # [batch head query key]: no units, nothing to write
        Site("z", "z", "attn.hook_z", heads=True),
        Site("attn_out", "attn_out", "hook_attn_out"),
        Site("mlp_out", "mlp_out", "hook_mlp_out"),
        Site("resid_pre", "resid", "hook_resid_pre"),  # read only, like the next: the input of the block
        Site("resid_mid", "resid", "hook_resid_mid"),  # before the MLP; blocks whose halves run in parallel have none
        Site("resid_post", "resid", "hook_resid_post"),
    )
}

WRITE_SITE: dict[str, str] = {
    # basis -> the site at which an intervention on its units acts
    "mlp": "mlp_post",
    "mlp_pre": "mlp_pre",  # the projections' outputs are units of separate bases
    "mlp_up": "mlp_up",
    "q": "q",
    "k": "k",
    "v": "v",
    "z": "z",
    "attn_out": "attn_out",
    "mlp_out": "mlp_out",
    "resid": "resid_post",
}


def get_site(name: str) -> Site:
    """The site with this name.

    Raises:
        KeyError: An unknown site; the message lists all sites.
    """
    if name not in SITES:
        raise KeyError(f"unknown site {name!r}; the sites are {list(SITES)}.")
    return SITES[name]


def flat(acts: Any, site: Site) -> Any:
    """`[batch pos head d_head]` to `[batch pos unit]` where the site has heads."""
    return acts.flatten(-2) if site.heads else acts


def widths_of(cfg: Any) -> dict[str, int]:
    """Units per layer on each writable basis, from a model's configuration.

    `model.structure.site_width` measures the real width of a tensor, which is checked wherever a set is used.
    """
    heads, shared = cfg.n_heads, getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    known: dict[str, Any] = {"mlp": cfg.d_mlp, "mlp_pre": cfg.d_mlp, "mlp_up": cfg.d_mlp}
    known |= {"q": heads * cfg.d_head, "z": heads * cfg.d_head, "k": shared * cfg.d_head, "v": shared * cfg.d_head}
    return {basis: known.get(basis, cfg.d_model) for basis in WRITE_SITE}
