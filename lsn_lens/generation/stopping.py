"""The end of a generated text: end tokens, stop strings, and the text before them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lsn_lens.model import structure
from lsn_lens.model.structure import Model
from lsn_lens.text.prompts import special_tokens


class Ended(NamedTuple):
    """A text up to its ending.

    Attributes:
        text: The text before a stop string.
        ids: Token ids, without an end token, up to the last token of a stop string.
        by_token: Whether an end token ended it.
        by_string: Whether a stop string ended it.
    """

    text: str
    ids: list[int]
    by_token: bool
    by_string: bool


@dataclass(frozen=True)
class Endings:
    """The endings of a model's texts.

    Attributes:
        tokenizer: Of the model.
        tokens: Ids of end tokens, in ascending order.
        strings: Stop strings, except those that are one special token.
        names: The spellings of special tokens.
    """

    tokenizer: Any
    tokens: tuple[int, ...]
    strings: tuple[str, ...]
    names: frozenset[str]

    def apply(self, prompt: list[int], ids: list[int]) -> Ended:
        """The text that a prompt's new tokens make, up to the first ending."""
        count = next((place for place, token in enumerate(ids) if token in self.tokens), len(ids))
        kept = ids[:count]
        if self._before_stop(prompt, kept) is None:
            return Ended(self._written(prompt, kept), kept, count < len(ids), False)
        starts = (kept[:size] for size in range(1, len(kept) + 1))
        kept = next(start for start in starts if self._before_stop(prompt, start) is not None)
        return Ended(self._before_stop(prompt, kept) or "", kept, False, True)

    def _before_stop(self, prompt: list[int], ids: list[int]) -> str | None:
        """The text before the first stop string; None without a stop string. Strings may contain special tokens."""
        cuts = []
        for stop in self.strings:
            spelled = any(name in stop for name in self.names)
            before, found, _ = self._written(prompt, ids, spelled).partition(stop)
            for name in self.names if spelled else ():
                before = before.replace(name, "")
            cuts += [before] if found else []
        return min(cuts, key=len, default=None)

    def _written(self, prompt: list[int], ids: list[int], spelled: bool = False) -> str:
        """The text that ids add to a prompt: a token's text can depend on the tokens before it."""
        head, whole = (self.tokenizer.decode(each, skip_special_tokens=not spelled) for each in (prompt, prompt + ids))
        if whole.startswith(head):
            return whole[len(head) :]
        return whole[next((place for place, char in enumerate(whole) if char != head[place]), len(whole)) :]


def endings(model: Model, stop: Sequence[str]) -> Endings:
    """A model's end tokens: the tokenizer's, those of its generation configuration, and stop strings that are one."""
    tokenizer = model.tokenizer
    config = getattr(model.original_model if structure.is_bridge(model) else model, "generation_config", None)
    configured = getattr(config, "eos_token_id", None)
    ids = {name: token for token, name in special_tokens(tokenizer).items()}
    listed = [*(configured if isinstance(configured, list | tuple) else [configured]), *map(ids.get, stop)]
    tokens = {int(each) for each in (tokenizer.eos_token_id, *listed) if each is not None}
    strings = tuple(each for each in stop if each not in ids)
    return Endings(tokenizer, tuple(sorted(tokens)), strings, frozenset(ids))
