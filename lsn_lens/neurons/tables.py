"""Tables of units in CSV files, as rows of language, basis, layer and unit."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from lsn_lens import files

EXPERTISE, UNIT = ("ap", "layer", "unit", "concept"), ("language", "layer", "unit")  # columns
MODULES = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "attn_out", "out_proj": "attn_out", "gate_proj": "mlp_pre",
    "up_proj": "mlp_up", "down_proj": "mlp_out", "fc1": "mlp_pre", "fc2": "mlp_out", "dense": "attn_out",
    "dense_h_to_4h": "mlp_pre", "dense_4h_to_h": "mlp_out",
}  # fmt: skip  # last part of a Linear's name -> basis of its outputs


def unit_rows(path: Path) -> tuple[pd.DataFrame, str]:
    """The rows of a plain table, on the basis mlp where it names none; and what found them, with the file's name.

    Raises:
        ValueError: Missing columns, or units of several methods.
    """
    words: Any = dict.fromkeys(("language", "basis", "method"), str)
    frame: Any = pd.read_csv(path, keep_default_na=False, dtype=words)  # NA, nan, true and 01 are labels
    if lacking := [each for each in UNIT if each not in frame]:
        raise ValueError(f"{path} has no columns {lacking}: expected {list(UNIT)}, and basis where it is not mlp.")
    methods = list(dict.fromkeys(frame.get("method", [])))
    if len(methods) > 1:
        raise ValueError(f"{path} has the units of {methods}: keep the rows of one method.")
    return frame.assign(basis=frame.get("basis", "mlp")), ", ".join([*map(str, methods), f"table, {path.name}"])


def expertise_rows(path: Path, count: int | None) -> pd.DataFrame:
    """The rows of a table of expertise; of a table of all units, `count` of each concept, half from the top.

    Raises:
        ValueError: Missing columns, a precision that is NaN, more units asked for than there are, an unknown module.
    """
    missing: Any = {"ap": ["", "nan", "NaN", "NA"]}  # as a concept, nan and NA are labels
    frame: Any = pd.read_csv(path, dtype={"concept": str}, keep_default_na=False, na_values=missing)
    if lacking := [each for each in EXPERTISE if each not in frame]:
        raise ValueError(f"{path} has no columns {lacking}: expected a table of expertise, with {list(EXPERTISE)}.")
    if frame["ap"].isna().any():
        raise ValueError(f"{path}: the average precision of {int(frame['ap'].isna().sum())} units is NaN.")
    if count is not None:
        half = files.whole_number(count, "count", least=2) // 2
        order = frame.sort_values("ap", ascending=False, kind="stable")
        each = {label: order[order["concept"] == label] for label in dict.fromkeys(frame["concept"])}
        if few := {label: len(own) for label, own in each.items() if len(own) < 2 * half}:
            raise ValueError(f"{path} has {few} units, count={count} asks for more.")
        frame = pd.concat([frame[:0], *(end for own in each.values() for end in (own[:half], own[::-1][:half]))])
    layers, bases = zip(*(_place(path, str(name)) for name in frame["layer"]), strict=True) if len(frame) else ((), ())
    return pd.DataFrame({"language": frame["concept"], "basis": bases, "layer": layers, "unit": frame["unit"]})


def _place(path: Path, name: str) -> tuple[int, str]:
    """Layer number and basis of a Linear by its name, such as that of an up projection."""
    number, module = re.search(r"\.(\d+)\.", name), name.partition(":")[0].rsplit(".", 1)[-1]
    if number is None or module not in MODULES:
        raise ValueError(f"{path}: layer {name!r} is no module with a known basis; these are {list(MODULES)}.")
    return int(number[1]), MODULES[module]
