"""The tasks of lm-evaluation-harness on a TransformerLens model, changed or not.

Needs the optional extra `tasks`: `pip install "lsn-lens[tasks]"`.
"""

from typing import Any

from lsn_lens.generation.continuations import Pair, fit, score
from lsn_lens.generation.sampling import generate
from lsn_lens.model import structure
from lsn_lens.model.entry import check_model
from lsn_lens.model.structure import Model
from lsn_lens.text.prompts import prompt_ids

try:
    from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import (  # pyright: ignore[reportMissingImports]
        get_rolling_token_windows,
        make_disjoint_window,
    )
except ImportError as error:
    raise ImportError(f'lm-evaluation-harness is needed ({error}): pip install "lsn-lens[tasks]".') from error


class HarnessModel(TemplateLM):
    """A HookedTransformer or TransformerBridge as a model of lm-evaluation-harness.

    Hooks on the model fire, so inside `with lsn.intervene(...)` the tasks run on the changed model:
    `lm_eval.simple_evaluate(model=HarnessModel(model), tasks=["belebele_fra_Latn"])`.

    Context and continuation are split as in lm-evaluation-harness for Hugging Face models (spaces at the end of a
    context are moved to what follows, and as many tokens as the context has alone are not scored), not as
    `evaluate_items` does.

    Args:
        model: A HookedTransformer or TransformerBridge.
        batch_size: Requests at once.
        add_bos: Begin texts with the tokenizer's beginning token (or its end token, if it has no other). For Hugging
            Face models lm-evaluation-harness leaves that to the tokenizer: many add one, GPT-2's and Qwen's do not.
        truncate: Drop the beginning of contexts that are too long to score, as lm-evaluation-harness does; by default
            that is an error. A too long prompt to continue is always an error.
        max_gen_toks: Maximum of new tokens for tasks without a limit.
        progress: Show progress bars.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int = 16,
        add_bos: bool = True,
        truncate: bool = False,
        max_gen_toks: int = 256,
        progress: bool = True,
    ) -> None:
        check_model(model)
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model, model.tokenizer, batch_size
        self.add_bos, self.truncate, self.max_gen_toks, self.progress = add_bos, truncate, max_gen_toks, progress
        self._device = structure.device_of(model)

    @property
    def eot_token_id(self) -> int:
        """The id of the tokenizer's end token."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token for an empty context: the beginning token, else the end token."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id

    @property
    def max_length(self) -> int:
        """The number of tokens of the model's context."""
        return self.model.cfg.n_ctx

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name for caches of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a beginning token that the text already spells (chat templates) is not doubled."""
        begins = self.add_bos if add_special_tokens is None else add_special_tokens
        return prompt_ids(self.tokenizer, string, "bos" if begins else "none")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text, by the tokenizer's template."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = []
        for texts, context, continuation in requests:
            pair = Pair(context, continuation, f"request {str(texts)[:80]}")
            pairs += fit([pair], self.max_length, truncate=self.truncate)[0]
        scores = score(self.model, pairs, batch_size=self.batch_size, progress=self.progress)
        answers = [(each.log_probability, each.greedy) for each in scores]
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:  # a part of a longer text
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the context's length. Each token of the text is scored once.

        The first token follows the beginning token, which is not scored.
        """
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    self.tok_encode(request.args[0], add_special_tokens=False),
                    self.prefix_token_id,
                    self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        scored = iter(self._loglikelihood_tokens([window for each in windows for window in each]))
        totals = [sum(next(scored)[0] for _ in each) for each in windows]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts until a stop string, the end token or the most tokens; greedily, or at a temperature."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(self._settings(request.args[1])), []).append(place)
        texts: dict[int, str] = {}
        for places in groups.values():
            settings = self._settings(requests[places[0]].args[1])
            prompts = [requests[place].args[0] for place in places]
            written = generate(self.model, prompts, batch=self.batch_size, progress=self.progress, **settings)
            texts.update(zip(places, written["text"], strict=True))
        for place, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[place])
        return [texts[place] for place in range(len(requests))]

    def _settings(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The arguments of `generate` for a task's generation settings."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(asked, self.max_gen_toks))
        sampled, temperature = given.pop("do_sample"), given.pop("temperature", 1.0)
        until, tokens = given.pop("until"), given.pop("max_gen_toks")
        if given:
            raise ValueError(
                f"generation settings {given} are not supported: expected until, do_sample, temperature and a number "
                "of tokens."
            )
        return {
            "tokens": tokens,
            "temperature": temperature if sampled else 0.0,
            "stop": [text for text in until if text],
            "separator": "bos" if self.add_bos else "none",
        }
