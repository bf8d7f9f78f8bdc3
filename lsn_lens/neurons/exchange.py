"""Files of sets: safetensors, and the exchange format, a JSON document that a JSON schema describes."""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jsonschema import Draft202012Validator
from torch import Tensor

from lsn_lens import files
from lsn_lens.neurons.sites import WRITE_SITE
from lsn_lens.neurons.units import Mask

KIND = "neurons"  # in the header of a safetensors file
FORMAT, VERSION = "lsn_lens.unit_set", 1
SCHEMA = Path(__file__).with_name("unit_set.schema.json")
BCP47 = "bcp47"  # the note with the tags that labels do not tell
MODEL = {"model": "name", "revision": "revision", "fingerprint": "weights_hash"}  # key of an origin -> of the document
REST = {"text": "text_hash", "versions": "library_versions"}
Parts = tuple[Sequence[str], Mapping[str, Mask], str, Mapping[str, Any], Mapping[str, Any]]
ISO_639_1 = (
    "aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo "
    "es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka "
    "kg ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng "
    "nl nn no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su "
    "sv sw ta te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu"
)
CODES = frozenset(ISO_639_1.split())
TAG = re.compile(r"([a-z]{2})([-_][A-Z][a-z]{3})?([-_][A-Z]{2})?")


def tag_of(label: str) -> str | None:
    """The BCP 47 tag that a label is: an ISO 639-1 code, also with a script and a region; else None."""
    found = TAG.fullmatch(label)
    return label.replace("_", "-") if found and found[1] in CODES else None


def method_parts(text: str) -> tuple[str, dict[str, Any] | None]:
    """Name and hyper-parameters of a method written as `Lape(rate=0.01, ...)`; without parameters the text itself."""
    try:
        call = ast.parse(text, mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and not call.args:
            return call.func.id, {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError):  # words, or a value that is no literal
        pass
    return text, None


def save(path: Path | str, parts: Parts, scores: Any | None = None) -> Path:
    """Write languages, masks, method, notes and origin of a set: as `.json`, or else as safetensors.

    Raises:
        ValueError: Scores for safetensors; errors of `write`.
    """
    if Path(path).suffix == ".json":
        return write(path, parts, scores)
    if scores is not None:
        raise ValueError(f"{path}: scores are written to .json alone; `NeuronScores.save` writes them all.")
    languages, masks, method, notes, origin = parts
    header = {"languages": languages, "method": method, "notes": dict(notes), "origin": dict(origin)}
    return files.save_tensors(path, masks, {"kind": KIND, **header})


def load(path: Path | str) -> Parts:
    """What `save` wrote.

    Raises:
        ValueError: A damaged file, one of another kind, format or version, or one that does not fit the schema.
    """
    if Path(path).suffix == ".json":
        return read(path)
    masks, header = files.load_tensors(path, KIND)
    return tuple(header["languages"]), masks, header["method"], header["notes"], header.get("origin", {})


def write(path: Path | str, parts: Parts, scores: Any | None = None) -> Path:
    """Write a set as JSON; with `scores` (`NeuronScores`), those of its units too.

    Raises:
        KeyError: Scores without a language or basis of the set.
        ValueError: Scores of another shape, or notes that JSON cannot hold.
    """
    path = Path(path)
    try:
        text = json.dumps(document_of(parts, scores), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the set's notes or origin hold what JSON cannot ({error}): save it as .safetensors."
        ) from None
    files.write_bytes(path, text.encode())
    return path


def document_of(parts: Parts, scores: Any | None = None) -> dict[str, Any]:
    """The document of a set, as plain data."""
    languages, masks, method, notes, origin = parts
    name, parameters = method_parts(method)
    tags = notes.get(BCP47, {})
    return _plain({
        "format": FORMAT, "version": VERSION,
        "model": {told: origin.get(key) for key, told in MODEL.items()},
        "text_hash": origin.get("text"), "library_versions": origin.get("versions", {}),
        "languages": [{"label": label, "bcp47": tags.get(label, tag_of(label))} for label in languages],
        "method": {"name": name, "parameters": parameters, "text": method},
        "bases": {
            basis: {"layers": mask.shape[1], "units": mask.shape[2], "site": WRITE_SITE.get(basis)}
            for basis, mask in masks.items()
        },
        "units": _by_layer(languages, masks, masks),
        "scores": None if scores is None else _by_layer(languages, masks, _aligned(languages, masks, scores)),
        "notes": {key: value for key, value in notes.items() if key != BCP47},
        "origin": {key: value for key, value in origin.items() if key not in (*MODEL, *REST)},
    })  # fmt: skip


def _by_layer(languages: Sequence[str], masks: Mapping[str, Mask], values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Label -> basis -> layer: the units of a mask, or, where `values` are scores, their scores."""

    def row(own: Tensor, given: Tensor) -> list[Any]:
        if given.dtype == torch.bool:
            return own.nonzero()[:, 0].tolist()
        return [x if torch.isfinite(torch.tensor(x)) else None for x in given[own].tolist()]

    return {
        label: {
            basis: [row(own, given) for own, given in zip(mask[place], values[basis][place], strict=True)]
            for basis, mask in masks.items()
        }
        for place, label in enumerate(languages)
    }


def _aligned(languages: Sequence[str], masks: Mapping[str, Mask], scores: Any) -> dict[str, Tensor]:
    lacking = [*(set(languages) - set(scores.languages)), *(set(masks) - set(scores.values))]
    if lacking:
        raise KeyError(f"the scores have no {lacking}; they have {list(scores.languages)} on {list(scores.values)}.")
    places = [list(scores.languages).index(label) for label in languages]
    values = {basis: scores.values[basis][places] for basis in masks}
    if odd := [basis for basis, mask in masks.items() if values[basis].shape != mask.shape]:
        raise ValueError(f"scores of {odd} have another shape than the set's masks: give those it was selected from.")
    return values


def _plain(value: Any) -> Any:
    """Mappings and sequences of all kinds as dictionaries and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


@cache
def validator() -> Draft202012Validator:
    """The validator of the schema file."""
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def read_document(path: Path | str) -> dict[str, Any]:
    """A document that fits the schema.

    Raises:
        ValueError: No JSON, another format or version, or a document that the schema does not allow.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is cut off or no JSON ({error}).") from None
    known = document.get("format") if isinstance(document, dict) else type(document).__name__
    if known != FORMAT:
        raise ValueError(f"{path} has the format {known!r}, expected {FORMAT!r}. Other tools' files: lsn.import_set.")
    if document.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {document.get('version')!r} of the schema; this lsn_lens reads version {VERSION}. "
            "Install the lsn_lens that wrote the file, or a newer one."
        )
    if error := min(validator().iter_errors(document), key=lambda each: list(map(str, each.path)), default=None):
        raise ValueError(f"{path} at {error.json_path}: {error.message[:200]}")
    return document


def read(path: Path | str) -> Parts:
    """Languages, masks, method, notes and origin from a file that `write` wrote.

    Raises:
        ValueError: A file that `read_document` refuses, or units that do not fit the bases.
    """
    document = read_document(path)
    labels = files.labels_of([each["label"] for each in document["languages"]])
    if set(document["units"]) != set(labels):
        raise ValueError(f"{path} has units of {list(document['units'])}, but the languages {list(labels)}.")
    masks = {basis: _mask(path, document, labels, basis) for basis in document["bases"]}
    notes, tags = dict(document["notes"]), {each["label"]: each["bcp47"] for each in document["languages"]}
    if own := {label: tag for label, tag in tags.items() if tag != tag_of(label)}:
        notes[BCP47] = own
    model = {key: document["model"][told] for key, told in MODEL.items()}
    origin = model if any(value is not None for value in model.values()) else {}
    origin |= {key: document[told] for key, told in REST.items() if document[told]}
    return labels, masks, document["method"]["text"], notes, origin | document["origin"]


def _mask(path: Path | str, document: Mapping[str, Any], labels: Sequence[str], basis: str) -> Mask:
    layers, width = (document["bases"][basis][key] for key in ("layers", "units"))
    mask = torch.zeros(len(labels), layers, width, dtype=torch.bool)
    for place, label in enumerate(labels):
        rows = document["units"][label].get(basis)
        if rows is None or len(rows) != layers:
            count = "no" if rows is None else len(rows)
            raise ValueError(f"{path}: {label!r} has {count} layers of basis {basis!r}, expected {layers}.")
        for layer, units in enumerate(rows):
            if units and max(units) >= width:
                raise ValueError(
                    f"{path}: {label!r}, basis {basis!r}, layer {layer} has unit {max(units)}, but the units are 0 to "
                    f"{width - 1}."
                )
            mask[place, layer, units] = True
    return mask


def read_scores(path: Path | str) -> pd.DataFrame:
    """The scores in an exchange file: one row per unit of each language, as `NeuronScores.to_frame` has them.

    Raises:
        ValueError: A file without scores, with scores of other units, or that `NeuronSet.load` refuses.
    """
    labels, masks, *_ = read(path)
    scores = read_document(path)["scores"]
    if scores is None:
        raise ValueError(f"{path} has no scores: write them with found.save(path, scores=lsn.score(run, method)).")
    rows = []
    for basis, mask in masks.items():
        for place, label in enumerate(labels):
            given = scores.get(label, {}).get(basis, [])
            if list(map(len, given)) != mask[place].sum(-1).tolist():
                raise ValueError(f"{path}: {label!r}, basis {basis!r} has not one score for each unit.")
            units = mask[place].nonzero().tolist()
            flat = [score for layer in given for score in layer]
            rows += [(label, basis, *unit, score) for unit, score in zip(units, flat, strict=True)]
    return pd.DataFrame(rows, columns=["language", "basis", "layer", "unit", "score"]).astype({"score": float})
