"""The settings of the translation study."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TranslationSettings:
    """The sentences, prompts and units of `translation_study`.

    Attributes:
        source: Language to translate from; all others are targets.
        sentences: Hold-out sentences to translate.
        shots: Translated sentences in front, for the few-shot prompt; 0 leaves it out.
        counts: Units per language that average precision chooses, half by the highest and half by the lowest values.
        seeds: Random sets per count, with as many units in each layer.
        tokens: New tokens per translation, which ends before the first line break.
        longest: The most characters of a sentence; longer ones are passed over.
        chat: Prompts are a user's turns in the tokenizer's chat template; a text: after this system prompt.
        identifier: Language identifier: "py3langid" or "lingua".
        ruled_out: Languages that no text can be in.
        replicates: Bootstrap draws of sentences.
        max_tokens: Cap per language when finding units.
        check_parallel: Refuse documents of which some languages lack a record.

    Raises:
        ValueError: No sentence, count, seed or token.
    """

    source: str = "en"
    sentences: int = 50
    shots: int = 3
    counts: tuple[int, ...] = (100, 300)
    seeds: int = 1
    tokens: int = 64
    longest: int = 300
    chat: bool | str = False
    identifier: Literal["py3langid", "lingua"] = "py3langid"
    ruled_out: tuple[str, ...] = ()
    replicates: int = 1000
    max_tokens: int | None = None
    check_parallel: bool = True

    def __post_init__(self) -> None:
        for name in ("sentences", "shots", "seeds", "tokens", "longest"):
            least = int(name != "shots")
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}.")
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts={self.counts}: expected at least one count, of 1 unit or more.")
