"""Train the weights of a set's units and nothing else, or the baselines: all weights, and LoRA."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from xxhash import xxh3_128

from lsn_lens.applications.finetuning.delta import Change, Delta, changed, hash_of, put_into
from lsn_lens.applications.finetuning.lora import Lora, adapted, check_peft, merged
from lsn_lens.applications.finetuning.places import entries_of, modules_of
from lsn_lens.applications.finetuning.rows import rows_of
from lsn_lens.applications.finetuning.settings import Training
from lsn_lens.applications.finetuning.training import Diverged, Trained, of_entries, train
from lsn_lens.files import write_bytes
from lsn_lens.model.entry import check_plain
from lsn_lens.model.structure import Model, device_of
from lsn_lens.model.weights import unwrapped
from lsn_lens.neurons.identity import origin_of
from lsn_lens.neurons.sets import NeuronSet
from lsn_lens.refusal import check_kind

FULL = "full"
ASKED, STATES, DELTA = "training.json", "states", "delta.safetensors"

Changes = Callable[[], Mapping[str, Change]]


@dataclass(frozen=True, eq=False)
class Finetuned:
    """The result of `finetune`.

    Attributes:
        model: A TransformerBridge with the trained weights. It shares the memory of all others with the base.
        delta: What changed; `delta.save(path)` writes it, `save_checkpoint(base, delta, folder)` a whole checkpoint.
    """

    model: Model
    delta: Delta


def finetune(
    model: Model,
    units: NeuronSet | Lora | Literal["full"],
    documents: Any,
    settings: Training | None = None,
    out: Path | str | None = None,
    *,
    progress: bool = True,
) -> Finetuned:
    """Train the weights that belong to the units of a set; all other weights stay bit for bit the same.

    A neuron's weights are its rows of the projections into the MLP, their biases, and its column of the projection out
    of the MLP. A unit of another basis is a row (with bias) or a column of one projection. The optimiser holds copies
    of these entries and nothing else, so neither weight decay nor momentum nor clipping reaches another weight. The
    model stays as it is. Dropout is off.

    Args:
        model: A TransformerBridge, without hooks.
        units: A set such as `found["fr"]` (the units of all its languages), `all_units(model)`, the word "full" for all
            weights of the model, or `Lora(parameters)`.
        documents: Texts, or a part of a corpus, as `corpora["fr"].find`.
        settings: How to train.
        out: A new folder. It holds states while the training runs, from which the same call goes on after an
            interruption, and the delta in the end, which the same call then reads.
        progress: Show progress bars.

    Returns:
        The trained model, and the delta.

    Raises:
        DoesNotApply: A HookedTransformer, whose weights are copies; units that no single weight matrix has.
        ValueError: An empty set, a set of another model, hooks on the model, too little text for one step, or a folder
            of another training.
        Diverged: The loss was not finite, or more than 3 nats above that of the first step; nothing is left in `out`.
        KeyError: A basis whose units have no weights of their own.
        ImportError: LoRA without the extra `lora`.
        FileExistsError: `out` has something else in it.

    Source: Zhao et al. 2024 (arXiv 2402.18815), section on fine-tuning. Its released code masks gradients after
    clipping, so that the gradient's norm includes frozen weights, and trains up, down, q, k and v, at most 100 units
    per matrix and layer; here the gate is trained too, and the number of units is the set's.
    """
    check_plain(model)
    settings = Training() if settings is None else settings
    check_kind("settings", settings, Training, "how to train, as Training(learning_rate=1e-3)")
    trained, changes, words = _made(model, units, settings)
    rows = rows_of(model, documents, settings, progress)
    hf_base = unwrapped(model)
    base = hash_of(hf_base)
    told = {
        **asdict(settings), "dtype": str(hf_base.dtype), "documents": rows.documents, "rows": len(rows),
        "text": rows.sha256, "trained": words, "entries": _hash(units), "base": base,
        **{name: version(name) for name in ("torch", "transformers")},
    }  # fmt: skip
    folder = None if out is None else Path(out)
    if folder is not None and _continued(folder, told):
        delta = Delta.load(folder / DELTA)
        return Finetuned(changed(model, delta), delta)
    try:
        states = folder and folder / STATES
        losses = train(trained, rows, settings, device_of(model), states, progress)
    except Diverged:
        if folder is not None:
            shutil.rmtree(folder)
        raise
    made = changes()
    put_into(hf_base, made)
    delta = Delta(
        changes=made, base=base, result=hash_of(hf_base), units=units if isinstance(units, NeuronSet) else None,
        trained=words, parameters=sum(each.numel() for each in trained.values), origin=origin_of(model), settings=told,
        losses=losses,
    )  # fmt: skip
    if folder is not None:
        delta.save(folder / DELTA)
        shutil.rmtree(folder / STATES, ignore_errors=True)
    return Finetuned(changed(model, delta), delta)


def _made(model: Model, units: NeuronSet | Lora | str, settings: Training) -> tuple[Trained, Changes, str]:
    """What is trained, a function that gives the changes afterwards, and what it is in words."""
    if isinstance(units, Lora):
        check_peft()
        names, hf_model = modules_of(model, units.bases), unwrapped(model)
        weights = dict(hf_model.named_parameters())  # PEFT merges in place: these must not be the base's own
        put_into(hf_model, {key: Change(weights[key].clone()) for key in (f"{name}.weight" for name in names)})
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            peft_model = adapted(hf_model, units, names, settings.seed)
        values = [each for each in peft_model.parameters() if each.requires_grad]
        words = f"LoRA of {len(values) // 2} projections"
        return Trained(values, peft_model, [True] * len(values)), lambda: merged(peft_model), words
    hf_model = unwrapped(model)
    if units == FULL:
        entries, words = {name: None for name, _ in hf_model.named_parameters()}, "all weights"
    else:
        check_kind("units", units, NeuronSet, "a NeuronSet, such as found['fr'], the word 'full', or Lora(parameters)")
        entries, words = entries_of(model, units), f"{len(units):,} units of {units.method or 'a set'}"  # type: ignore[arg-type]
    return *of_entries(hf_model, entries), words  # type: ignore[return-value]


def _hash(units: NeuronSet | Lora | str) -> str:
    """A hash of what is trained: the units, or the settings of LoRA."""
    digest = xxh3_128(b"" if isinstance(units, NeuronSet) else repr(units).encode())
    if isinstance(units, NeuronSet):
        for basis in sorted(units.masks):
            digest.update(basis.encode())
            digest.update(units.units(basis).contiguous().numpy().data)
    return digest.hexdigest()


def _continued(folder: Path, told: dict[str, Any]) -> bool:
    """Whether the folder has the finished training; otherwise the folder is made, or was left by an interruption.

    Raises:
        FileExistsError: The folder has something else in it.
        ValueError: The folder is of another training.
    """
    asked = folder / ASKED
    if not asked.is_file():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} is there already, and no training of finetune. Give a new folder.")
        write_bytes(asked, json.dumps(told, indent=1).encode())
    before = json.loads(asked.read_text(encoding="utf-8"))
    if other := {name: (before.get(name), told[name]) for name in told if before.get(name) != told[name]}:
        words = ", ".join(f"{name} was {one!r} and is {two!r}" for name, (one, two) in other.items())
        raise ValueError(f"{folder} holds another training: {words}. Give a new folder.")
    return (folder / DELTA).is_file()
