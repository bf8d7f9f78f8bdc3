"""Train a small Llama-type model on one language and then on a second, and keep its checkpoints.

    python experiments/train_growth_model.py --corpus FOLDER --first en --second de --out runs/growth-model

writes `checkpoint-<step>` folders with a tokenizer each, for `experiments/growth.py`, and `training.json`. Checkpoints
lie densest after the switch. A run that was killed goes on from the last one when the same command is given again.
"""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_demo_model import Blocks, InOrderTrainer, encode, last_checkpoint, train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback, TrainingArguments, set_seed

from lsn_lens.text import load_corpora


class SaveAt(TrainerCallback):
    """Save at these steps alone."""

    def __init__(self, steps: list[int]):
        self.steps = set(steps)

    def on_step_end(self, args, state, control, **kwargs):
        """Ask the trainer to save, or not."""
        control.should_save = state.global_step in self.steps


def save_steps(first: int, second: int, before: int, after: int) -> list[int]:
    """Steps to save at: evenly up to the switch, then in growing distances, the first after 1 % of the second part."""
    even = [round(first * (place + 1) / before) for place in range(before)]
    growing = np.geomspace(max(1, second // 100), second, after)
    return sorted({*even, *(first + round(each) for each in growing)})


def train(
    corpus: str,
    first: str,
    second: str,
    out: Path,
    files: str = "*",
    hold_out: float = 1 / 3,
    first_steps: int = 1200,
    second_steps: int = 1200,
    before: int = 4,
    after: int = 12,
    layers: int = 4,
    d_model: int = 64,
    d_mlp: int = 256,
    heads: int = 4,
    vocabulary: int = 1024,
    block: int = 128,
    batch: int = 16,
    learning_rate: float = 2e-3,
    warmup: int = 50,
    seed: int = 0,
) -> None:
    """Train a model on one language, then on a second one alone, and write checkpoints.

    Args:
        corpus: "demo", a folder of `<language>.jsonl[.gz]` (or .txt, .parquet) files, or a preset such as "wikipedia".
        first: Language of the first part of the training.
        second: Language of the second part; the tokenizer is made of equal parts of both.
        out: Folder for the checkpoints and `training.json`.
        files: Glob that picks files of the folder, for example "*.train.jsonl.gz".
        hold_out: Share of the documents that is not trained on, the same as when measuring: `load_corpora`.
        first_steps: Steps on the first language.
        second_steps: Steps on the second language.
        before: Checkpoints up to the switch, the last one at the switch.
        after: Checkpoints after the switch.
        layers: Blocks of the model.
        d_model: Width of the residual stream.
        d_mlp: Neurons of one MLP.
        heads: Attention heads.
        vocabulary: Tokens of the tokenizer.
        block: Tokens of one training block, and the context that the model declares.
        batch: Blocks of one step.
        learning_rate: Constant after the warm-up, so that only the text changes at the switch.
        warmup: Steps of linear warm-up.
        seed: Of weights and data order.
    """
    set_seed(seed)
    corpora = load_corpora(corpus, [first, second], hold_out=hold_out, files=files)
    texts = {label: list(each.find) for label, each in corpora.items()}
    tokenizer = train_tokenizer(texts, vocabulary)
    random = np.random.default_rng(seed)
    streams = {label: encode([each[i] for i in random.permutation(len(each))], tokenizer)
               for label, each in texts.items()}  # fmt: skip
    end: Any = tokenizer.bos_token_id
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=d_model, intermediate_size=d_mlp, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=block,
        tie_word_embeddings=True, bos_token_id=end, eos_token_id=end,
    ))  # fmt: skip
    parts = [Blocks([streams[label]], block, count * batch, seed)
             for label, count in ((first, first_steps), (second, second_steps))]  # fmt: skip
    total = first_steps + second_steps
    trainer = InOrderTrainer(
        model,
        TrainingArguments(
            output_dir=str(out), max_steps=total, per_device_train_batch_size=batch, learning_rate=learning_rate,
            weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, warmup_steps=warmup,
            lr_scheduler_type="constant_with_warmup", save_strategy="no", logging_steps=max(1, total // 50), seed=seed,
            use_cpu=not torch.cuda.is_available(), report_to="none",
        ),
        train_dataset=torch.utils.data.ConcatDataset(parts),
        processing_class=tokenizer,
        callbacks=[SaveAt(save_steps(first_steps, second_steps, before, after))],
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    report = {
        "command": shlex.join(["python", *sys.argv]),
        "parameters": model.num_parameters(),
        "switch": first_steps,
        "tokens_per_step": batch * block,
        "corpus": {label: {"source": each.source, "tokens": len(streams[label])} for label, each in corpora.items()},
        "random_guess": math.log(len(tokenizer)),
        "history": [entry for entry in trainer.state.log_history if "loss" in entry],
    }
    (out / "training.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    from lsn_lens.studies.experiment import run_cli

    run_cli(train)
