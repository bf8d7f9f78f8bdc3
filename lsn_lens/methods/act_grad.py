"""Activation times gradient: neurons whose effect on the loss, to first order, is concentrated on few languages."""

from dataclasses import dataclass, replace

import torch

from lsn_lens.methods.base import check_at_least, check_languages, check_shares
from lsn_lens.methods.selection import score_by_entropy, select_lowest_entropy
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.statistics.needs import Statistic
from lsn_lens.statistics.sums import Statistics


@dataclass(frozen=True)
class ActGrad:
    """Mean of |activation times gradient|, with LAPE's selection rule.

    With a the neuron's value (the down projection's input) at a token and L the summed next-token loss of the
    document or block, the neuron's value for a language is the mean of |a dL/da| over its tokens: to first order, the
    change of L when a is set to zero. This value replaces LAPE's probability to fire.

    Attributes:
        rate: Share of all neurons to choose.
        filter_share: Order statistic that a neuron must exceed in some language.
        bar_share: Order statistic that a language must exceed to own a neuron.
        at_least: Raise the rate until every language has this many neurons; 0 keeps the rate.
        control: Label of a corpus in the run (neutral text, code, a matched task) whose value is subtracted from
            every language's, down to 0 at the lowest; the control then has no neurons. None: no subtraction.

    Source: attribution fed to LAPE, and the subtraction of a control task, as described for released code of two
    projects (kinit, CULNIG); the combination, next-token loss in place of a task's, and the defaults are ours.
    """

    rate: float = 0.01
    filter_share: float = 0.95
    bar_share: float = 0.95
    at_least: int = 0
    control: str | None = None

    def __post_init__(self) -> None:
        check_shares(rate=self.rate, filter_share=self.filter_share, bar_share=self.bar_share)
        check_at_least(self.at_least)

    def statistics(self) -> tuple[Statistic, ...]:
        """Sums of |activation times gradient|, which take a backward pass."""
        return (Statistic("mlp_post", "act_grad"),)

    def score(self, statistics: Statistics) -> NeuronScores:
        """`ln K` minus the entropy of the means; -inf for the control."""
        values = statistics.get("mlp_post.act_grad") / statistics.tokens[..., None].double()
        languages = statistics.languages
        if self.control is None:
            return score_by_entropy(statistics, values, self.filter_share, self.bar_share, repr(self))
        if self.control not in languages:
            raise KeyError(f"no control {self.control!r}; the run has {list(languages)}.")
        place = languages.index(self.control)
        kept = [i for i in range(len(languages)) if i != place]
        rest = replace(statistics, languages=tuple(languages[i] for i in kept))
        check_languages(rest.languages)
        less = (values[kept] - values[place]).clamp_min(0)
        scores = score_by_entropy(rest, less, self.filter_share, self.bar_share, repr(self))
        whole = torch.full_like(values, -torch.inf)
        whole[kept] = scores.values["mlp"]
        return replace(scores, languages=languages, values={"mlp": whole})

    def select(self, scores: NeuronScores) -> NeuronSet:
        """The lowest entropies over all layers; a neuron may belong to several languages."""
        return select_lowest_entropy(scores, self.rate, self.at_least)
