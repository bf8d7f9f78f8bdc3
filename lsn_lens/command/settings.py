"""The settings of the subcommands. Nothing slow is imported before a setting needs it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lsn_lens.studies.experiment import Collected, Corpus, Loaded, Settings, Weights
from lsn_lens.studies.settings.audit import AuditSettings, EffectSettings
from lsn_lens.studies.settings.steering import SteeringSettings


@dataclass(frozen=True)
class Cut:
    """How text is cut into batches to find units.

    Attributes:
        kind: Packed blocks, or one row per document; by default documents where all fit, else blocks.
        length: Tokens of a block; by default chosen from the model's context and the amount of text.
        separator: What each document begins with.
        max_tokens: Tokens per language at most when finding units; by default all.
    """

    kind: Literal["blocks", "documents"] | None = None
    length: int | None = None
    separator: Literal["bos", "eos", "none"] = "bos"
    max_tokens: int | None = None


@dataclass(frozen=True)
class GivenSet:
    """The file of a set.

    Attributes:
        sets: The file with the units, as `lsn-lens find` writes it or another tool; for tables of expertise one per
            language, as en.csv,fr.csv.
        format: lsn_lens, lape, clas_bench, entropy_lambda, dln, table, expertise or kinit; by default told by the file.
        labels: Languages in the file's order, as en,fr, for the formats that name none (lape, entropy_lambda).
        count: For a table of expertise with all units: units per language to take.
    """

    sets: tuple[Path, ...] = ()
    format: str | None = None
    labels: tuple[str, ...] | None = None
    count: int | None = None


@dataclass(frozen=True)
class CompareConfig(Cut, Settings):
    """Compare methods that find language-specific neurons.

    Attributes:
        methods: Names of methods, as lape,lave; all by default, without those that the model and the text are not
            made for, which the report names with the reason.
        rate: Share of all units to choose, for methods that choose a share.
        at_least: Raise the rate to the smallest that gives every language this many neurons by the first method with a
            count per rate (lape); 0 keeps the rate.
        control_seeds: Random sets per method and language, as many units in each layer, as active in the language;
            three times as many where none of them reaches the loss increase. Below 19 no p-value reaches 0.05.
        ablation: Value to set units to: "other languages' mean", "dataset mean" or "zero".
        replicates: Bootstrap draws, to see how stable each method's sets are; 0 for none.
        permutations: Of labels, to see what each method finds where there is nothing to find; 0 for none.
        without_draws: Methods left out of these two, because each draw takes them seconds.
        controls: Slow checks that run the model, by their names in `lsn_lens.Checks`: "changed_text" (romanised, words
            shuffled), "ablations" (all kinds), "off_target" (numbers, code, repetition). None by default: several more
            passes each.
        evaluation_tokens: Tokens per language at most when measuring each method on all languages; null for all.
        control_tokens: The same for random sets, measured on their own language only, and for sets of equal size.
        sizes: Units per language at which methods are compared: shares of all units of a kind, or whole numbers; [] for
            none.
        size_seeds: Random sets per method, language and size.
    """

    out: Path = Path("runs/demo-all")
    methods: tuple[str, ...] | None = None
    rate: float = 0.01
    at_least: int = 10
    control_seeds: int = 39
    ablation: Literal["other languages' mean", "dataset mean", "zero"] = "other languages' mean"
    replicates: int = 100
    permutations: int = 99
    without_draws: tuple[str, ...] = ("average_precision",)
    controls: tuple[str, ...] = ()
    evaluation_tokens: int | None = 1024
    control_tokens: int = 128
    sizes: tuple[float | int, ...] = (0.001, 0.003, 0.01)
    size_seeds: int = 3

    def __post_init__(self) -> None:
        from lsn_lens.comparison.checks import CHECKS

        check_methods(self.methods)
        slow = list(dict.fromkeys(row.option for row in CHECKS if row.needs_model))
        strange = [name for name in self.controls if name not in slow]
        if strange:
            raise ValueError(f"unknown controls {strange}; name some of {slow}.")
        if self.control_seeds < 2:
            raise ValueError("expected at least two control seeds: a result without a control is no evidence.")


@dataclass(frozen=True)
class DemoConfig(CompareConfig):
    """A first result: four methods on the embedded model and text."""

    out: Path = Path("runs/demo")
    methods: tuple[str, ...] | None = ("lape", "lave", "dln", "diffmean")


@dataclass(frozen=True)
class FindConfig(Cut, Collected):
    """Find units with one or several methods.

    Attributes:
        methods: Names of methods, as lape,plnd.
        parameters: Hyper-parameters by method, as --parameters.lape.rate 0.02; by default the methods' own.
    """

    out: Path = Path("runs/found")
    methods: tuple[str, ...] = ("lape",)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from lsn_lens.methods.catalogue import named

        check_methods(self.methods)
        if strange := [name for name in self.parameters if name not in self.methods]:
            raise ValueError(f"parameters for {strange}, but the methods are {list(self.methods)}.")
        named(self.methods, self.parameters)


@dataclass(frozen=True)
class DeactivateConfig(EffectSettings, GivenSet, Collected):
    """Switch the units of a set off, beside matched random units.

    Attributes:
        action: Value to set units to: zero; their mean over all languages ("mean") or over the other languages ("other
            mean"); values of single tokens of the other languages ("resample"); half of their value ("half").
        tokens: For "resample": tokens of the other languages to draw from.
        seed: For "resample": seed of these tokens' order.
    """

    out: Path = Path("runs/deactivated")
    action: Literal["zero", "mean", "other mean", "resample", "half"] = "zero"  # type: ignore[assignment]
    tokens: int = 256
    seed: int = 0


@dataclass(frozen=True)
class AuditConfig(AuditSettings, GivenSet, Settings):
    """Audit of a set of units.

    Attributes:
        method: The method that found the units, to find units again on changed text.
    """

    method: str | None = None
    out: Path = Path("runs/audit")


@dataclass(frozen=True)
class SteeringConfig(SteeringSettings, Settings):
    """Steer a model from every language to every other, and switch each language off."""

    out: Path = Path("runs/steer")


@dataclass(frozen=True)
class SteerConfig(GivenSet, SteeringConfig):
    """Steer a model from every language to every other, and switch each language off.

    Attributes:
        prompt: A text to continue, in place of the study: without steering, steered to the language `to`, and with a
            random counterpart.
        to: For `prompt`: the language to steer to.
        strength: For `prompt`: how far, in multiples of the difference of means; with `sets`, the factor of the
            language's mean, to which its units are set.
    """

    prompt: str | None = None
    to: str | None = None
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.prompt is None) != (self.to is None) or (self.sets and self.prompt is None):
            raise ValueError(
                f"prompt={self.prompt!r}, to={self.to!r}: give a text to continue and the language to steer to, or "
                "neither and no set, for the whole study."
            )


@dataclass(frozen=True)
class InspectConfig(Cut, GivenSet, Collected):
    """Look at one unit, or at the units of a set.

    Attributes:
        unit: Kind of unit, layer and unit, as mlp.5.12; in place of a set.
        units: Units of a set at most, of each language in turn.
        methods: Methods whose scores are shown, as lape,plnd.
        random: Random units beside which the effect is measured.
        evaluation_tokens: Tokens per language at most when measuring the effect; null for all.
    """

    out: Path = Path("runs/pages")
    unit: str | None = None
    units: int = 30
    methods: tuple[str, ...] = ("lape",)
    random: int = 19
    evaluation_tokens: int | None = 2048

    def __post_init__(self) -> None:
        check_methods(self.methods)
        if (self.unit is None) == (not self.sets):
            raise ValueError(f"unit={self.unit!r}, sets={self.sets}: give either --unit mlp.5.12 or --sets FILE.")
        if self.unit is not None and self.place is None:
            raise ValueError(f"unit={self.unit!r}: expected basis, layer and unit, as mlp.5.12.")

    @property
    def place(self) -> tuple[str, int, int] | None:
        """The unit as basis, layer and number; None if it is not written so."""
        basis, *numbers = (self.unit or "").split(".")
        known = basis and len(numbers) == 2 and all(each.isdecimal() for each in numbers)
        return (basis, int(numbers[0]), int(numbers[1])) if known else None


@dataclass(frozen=True)
class PlanConfig(Cut, Corpus, Weights):
    """Memory and disk that a collection will take, before anything is loaded.

    Attributes:
        methods: Names of methods, as lape,plnd.
        documents: Documents per language, for methods that keep values of single documents.
    """

    methods: tuple[str, ...] = ("lape",)
    documents: int = 1000

    def __post_init__(self) -> None:
        check_methods(self.methods)


@dataclass(frozen=True)
class StatusConfig:
    """How far a run is.

    Attributes:
        run: The folder of a run, or the output folder that has it as `run`.
    """

    run: Path


@dataclass(frozen=True)
class MergeConfig:
    """One run from several on the same model and text.

    Attributes:
        runs: Folders of runs, or output folders that have them as `run`, as runs/a,runs/b: parts of one run, or runs
            of different methods.
        out: A new folder.
    """

    runs: tuple[Path, ...]
    out: Path = Path("runs/merged")


@dataclass(frozen=True)
class ExportConfig(GivenSet, Loaded):
    """Write a set for other tools, or a model without its units.

    Attributes:
        out: Its ending chooses the format: .json (exchange), .safetensors, .csv, .pth (released LAPE masks), .py (a
            recipe that sets the units to zero, for another tool); a folder without ending: a checkpoint in which the
            units are set to zero.
        languages: Languages of the set, as en,fr; by default all.
        tool: For .py: what the recipe is for.
    """

    out: Path = Path("runs/export.json")
    languages: tuple[str, ...] | None = None
    tool: Literal["transformers", "nnsight", "pyvene"] = "transformers"


def check_methods(names: tuple[str, ...] | None) -> None:
    """Refuse unknown names of methods.

    Raises:
        ValueError: The message lists the methods.
    """
    from lsn_lens.methods.catalogue import METHODS

    if unknown := [name for name in names or () if name not in METHODS]:
        raise ValueError(f"unknown methods {unknown}; name some of {list(METHODS)}.")
