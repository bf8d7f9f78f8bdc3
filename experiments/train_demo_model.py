"""Train the small multilingual Llama-type model that the package embeds, on any text.

    python experiments/train_demo_model.py --corpus FOLDER --out runs/demo-model

writes a Hugging Face checkpoint (fp16), its byte-level BPE tokenizer and `training.json` with the
validation loss and bits per byte of each language. `checkpoint-*` folders hold the intermediate
models; a run that was killed goes on from the last one when the same command is given again.
"""

import itertools
import json
import math
import shlex
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from lsn_lens.studies.experiment import run_cli  # before torch, whose idle threads it lets sleep

# isort: split
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from lsn_lens.text import load_corpora

END = "<|endoftext|>"


def train_tokenizer(texts: dict[str, list[str]], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over equal amounts (in bytes) of each language."""
    budget = min(sum(len(text.encode()) for text in each) for each in texts.values())
    sample = []
    for each in texts.values():
        sizes = itertools.accumulate(len(text.encode()) for text in each)
        sample.append([text for text, size in zip(each, sizes, strict=True) if size <= budget])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator(itertools.chain(*sample), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, unk_token=END)


def encode(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """One flat stream; every document begins with the end-of-text token."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return np.fromiter(itertools.chain.from_iterable([tokenizer.bos_token_id, *each] for each in ids), np.int64)


class Blocks(torch.utils.data.Dataset):
    """Blocks of the languages in turn; each epoch over a language cuts at a new offset and shuffles."""

    def __init__(self, streams: list[np.ndarray], length: int, count: int, seed: int, shuffle: bool = True):
        self.streams, self.length, self.count, self.seed, self.shuffle = streams, length, count, seed, shuffle
        self.order = lru_cache(maxsize=4 * len(streams))(self._order)

    def __len__(self) -> int:
        return self.count

    def _order(self, language: int, epoch: int) -> np.ndarray:
        blocks = len(self.streams[language]) // self.length - self.shuffle
        if not self.shuffle:
            return np.arange(blocks) * self.length
        random = np.random.default_rng([self.seed, language, epoch])
        return random.permutation(blocks) * self.length + random.integers(self.length)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        turn, language = divmod(index, len(self.streams))
        blocks = len(self.streams[language]) // self.length - self.shuffle
        start = self.order(language, turn // blocks)[turn % blocks]
        ids = torch.from_numpy(self.streams[language][start : start + self.length])
        return {"input_ids": ids, "labels": ids}


class InOrderTrainer(Trainer):
    """A `Trainer` that takes the training blocks as they come: `Blocks` has shuffled them."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(range(len(self.train_dataset)))  # pyright: ignore[reportArgumentType]


def add_dropout(model: Any, share: float) -> None:
    """Dropout on what attention and MLP write, in training only; leaves the saved model plain."""

    def drop(module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        dropped = torch.nn.functional.dropout(first, share, training=module.training)
        return (dropped, *output[1:]) if isinstance(output, tuple) else dropped

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def last_checkpoint(out: Path) -> str | None:
    """The newest checkpoint that was written whole: its trainer state is written last."""
    whole = [state.parent for state in out.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def train(
    corpus: str,
    out: Path,
    languages: list[str] | None = None,
    files: str = "*",
    limit: int | None = None,
    validation: float = 0.02,
    repeat: dict[str, int] | None = None,
    tokens: int = 20_000_000,
    layers: int = 6,
    d_model: int = 192,
    d_mlp: int = 768,
    heads: int = 6,
    vocabulary: int = 8192,
    block: int = 128,
    batch: int = 32,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    dropout: float = 0.0,
    warmup: int = 200,
    checkpoints: int = 8,
    seed: int = 0,
    bf16: bool = False,
    compile: bool = False,
) -> None:
    """Train a model and write it.

    Args:
        corpus: Folder of `<language>.jsonl[.gz]` (or .txt, .parquet) files, or a preset such as "wikipedia".
        out: Folder for the model, its tokenizer, checkpoints and `training.json`.
        languages: Which languages; all that a folder has by default.
        files: Glob that picks files of the folder, for example "*.train.jsonl.gz".
        limit: At most this many documents per language.
        validation: Share of the documents held out for validation.
        repeat: Times that documents of a `source` (a field of the records) are repeated, for example {"news": 4}.
        tokens: Training tokens, equal parts of all languages.
        layers: Blocks of the model.
        d_model: Width of the residual stream.
        d_mlp: Neurons of one MLP.
        heads: Attention heads.
        vocabulary: Tokens of the tokenizer.
        block: Tokens of one training block, and the context that the model declares.
        batch: Blocks of one step.
        learning_rate: Peak of a cosine schedule that ends at 5 %.
        weight_decay: On the matrices.
        dropout: On what attention and MLP write, in training.
        warmup: Steps of linear warm-up.
        checkpoints: Intermediate models to keep.
        seed: Of weights and data order.
        bf16: Autocast to bfloat16: for GPUs, and CPUs that have its instructions (slower on those that lack them).
        compile: Use torch.compile, which pays off in long runs.
    """
    set_seed(seed)
    corpora = load_corpora(corpus, languages, hold_out=validation, files=files)
    held = {label: list(itertools.islice(each.hold_out, limit)) for label, each in corpora.items()}
    texts = {label: list(itertools.islice(each.find, limit)) for label, each in corpora.items()}
    tokenizer = train_tokenizer(texts, vocabulary)
    if repeat:
        sources = load_corpora(corpus, languages, hold_out=validation, files=files, column="source")
        for label, each in texts.items():
            kinds = itertools.islice(sources[label].find, limit)
            texts[label] = [text for text, kind in zip(each, kinds, strict=True) for _ in range(repeat.get(kind, 1))]
    random = np.random.default_rng(seed)
    streams = {
        label: encode([each[i] for i in random.permutation(len(each))], tokenizer) for label, each in texts.items()
    }
    held_streams = {label: encode(each, tokenizer) for label, each in held.items()}

    end: Any = tokenizer.bos_token_id
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=d_model, intermediate_size=d_mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=block,
        tie_word_embeddings=True, bos_token_id=end, eos_token_id=end,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    if dropout:
        add_dropout(model, dropout)
    steps = math.ceil(tokens / (block * batch))
    validation_blocks: dict[str, Any] = {
        label: Blocks([stream], block, len(stream) // block, seed, shuffle=False)
        for label, stream in held_streams.items()
    }
    trainer = InOrderTrainer(
        model,
        TrainingArguments(
            output_dir=str(out), max_steps=steps, per_device_train_batch_size=batch, per_device_eval_batch_size=64,
            learning_rate=learning_rate, weight_decay=weight_decay, adam_beta2=0.95, max_grad_norm=1.0,
            warmup_steps=warmup, lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.05},
            save_steps=max(1, steps // checkpoints), eval_strategy="steps", eval_steps=max(1, steps // checkpoints),
            logging_steps=max(1, steps // 50), bf16=bf16, torch_compile=compile, seed=seed,
            use_cpu=not torch.cuda.is_available(), report_to="none",
        ),
        train_dataset=Blocks(list(streams.values()), block, steps * batch, seed),
        eval_dataset=validation_blocks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last_checkpoint(out))

    losses = {label: trainer.evaluate(each)["eval_loss"] for label, each in validation_blocks.items()}
    scored = {
        label: sum(len(text.encode()) for text in each) / len(held_streams[label]) for label, each in held.items()
    }
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "corpus": {label: {"source": each.source, "tokens": len(streams[label])} for label, each in corpora.items()},
        "tokens": steps * batch * block,
        "seed": seed,
        "validation_nll_per_token": losses,
        "validation_bits_per_byte": {label: loss / math.log(2) / scored[label] for label, loss in losses.items()},
        "history": [entry for entry in trainer.state.log_history if any("loss" in key for key in entry)],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "training.json").write_text(json.dumps(report, indent=1))
    model.config.use_cache = True  # the trainer switches it off
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    run_cli(train)
