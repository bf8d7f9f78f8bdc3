"""Sets in files of this package and of others: round trips, what a schema allows, and what is refused."""

import json
import pickle
import re
from dataclasses import replace

import jsonschema
import pandas as pd
import pytest
import torch
from conftest import D_MLP, D_MODEL, LAYERS, SENTENCES
from hypothesis import given, settings
from hypothesis import strategies as st

import lsn_lens as lsn
from lsn_lens.interventions import load_control_vector, save_control_vector
from lsn_lens.neurons import IMPORTERS, exchange, import_set, plnd_set, read_scores
from lsn_lens.neurons.scores import NeuronScores
from lsn_lens.neurons.sets import NeuronSet

LABELS = ("en", "sr-Latn", "latin-1")
SHAPES = {"mlp": (LAYERS, D_MLP), "q": (LAYERS, D_MODEL)}


def made(seed=0, labels=LABELS, bases=("mlp", "q"), share=0.2):
    generator = torch.Generator().manual_seed(seed)
    masks = {basis: torch.rand(len(labels), *SHAPES[basis], generator=generator) < share for basis in bases}
    return NeuronSet(
        labels, masks, "Lape(rate=0.01, at_least=0, name='x', none=None)", {"asked": 3, "part": {"a": [1]}}
    )


@pytest.fixture(scope="module")
def model(load):
    return load("llama")


def changed(tmp_path, change):
    """A file of `made()` whose document was changed."""
    path = made().save(tmp_path / "set.json")
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


# the exchange format


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1))
def test_a_set_comes_back_as_it_was(tmp_path_factory, seed, share):
    found = made(seed, share=share)
    again = NeuronSet.load(found.save(tmp_path_factory.mktemp("x") / "set.json"))
    assert again == found and again.method == found.method and again.notes == found.notes and again.origin == {}


def test_the_document_fits_the_schema_by_another_reading_and_says_what_it_is_of(model, tmp_path):
    corpora = lsn.load_corpora(
        {"en": [f"{i} {SENTENCES[0]}" for i in range(3)], "de": [f"{i} {SENTENCES[1]}" for i in range(3)]}
    )
    run = lsn.collect(model, corpora, ["lape"], progress=False)
    found, scores = lsn.detect(run, "lape", rate=0.1), lsn.score(run, "lape", rate=0.1)
    path = found.save(tmp_path / "set.json", scores=scores)
    document = json.loads(path.read_text())
    jsonschema.Draft202012Validator.check_schema(json.loads(exchange.SCHEMA.read_text()))
    jsonschema.validate(document, json.loads(exchange.SCHEMA.read_text()))
    again = NeuronSet.load(path, model)
    assert again == found and again.origin == found.origin and again.notes == found.notes
    assert document["model"]["weights_hash"] == found.origin["fingerprint"]
    assert document["text_hash"] == found.origin["text"] and "torch" in document["library_versions"]
    assert document["method"]["name"] == "Lape" and document["method"]["parameters"]["rate"] == 0.1
    assert document["bases"]["mlp"] == {"layers": LAYERS, "units": D_MLP, "site": "mlp_post"}
    by_hand = [[i for i in range(D_MLP) if found.masks["mlp"][1, layer, i]] for layer in range(LAYERS)]
    assert document["units"]["de"]["mlp"] == by_hand
    table = read_scores(path)
    assert list(table["score"]) == [
        pytest.approx(float(scores.values["mlp"][found.languages.index(row.language), row.layer, row.unit]))
        for row in table.itertuples()
    ]
    assert len(table) == found.counts().sum() > 0


def test_tags_are_those_that_labels_are_and_others_are_kept(tmp_path):
    document = json.loads(made().save(tmp_path / "set.json").read_text())
    assert [each["bcp47"] for each in document["languages"]] == ["en", "sr-Latn", None]
    path = changed(tmp_path, lambda x: x["languages"][2].update(bcp47="la"))
    again = json.loads(NeuronSet.load(path).save(tmp_path / "again.json").read_text())
    assert again["languages"][2]["bcp47"] == "la"
    assert exchange.tag_of("xx") is None and exchange.tag_of("zh_Hant_TW") == "zh-Hant-TW"


def test_a_set_refuses_a_model_with_another_hash_and_for_model_carries_it_over(model, load, tmp_path):
    other = load("llama_mha")
    path = replace(made(), origin=lsn.neurons.identity.origin_of(model)).save(tmp_path / "set.json")
    assert NeuronSet.load(path, model) == made()
    with pytest.raises(ValueError, match="found on another model"):
        NeuronSet.load(path, other)
    carried = NeuronSet.load(path).for_model(other)
    assert NeuronSet.load(carried.save(tmp_path / "carried.json"), other) == made()


WRONG = {
    "version": (lambda x: x.update(version=2), r"version 2 of the schema; this lsn_lens reads version 1"),
    "format": (lambda x: x.update(format="other"), "format 'other'"),
    "beyond": (lambda x: x["units"]["en"]["mlp"][0].append(D_MLP), f"unit {D_MLP}, but the units are 0 to"),
    "negative": (lambda x: x["units"]["en"]["mlp"][0].append(-1), "minimum"),
    "truth": (lambda x: x["units"]["en"]["mlp"].__setitem__(0, [0.5]), "integer"),
    "twice": (lambda x: x["units"]["en"]["mlp"].__setitem__(0, [1, 1]), "unique"),
    "layers": (lambda x: x["units"]["en"]["mlp"].pop(), "1 layers of basis 'mlp', expected 2"),
    "languages": (lambda x: x["languages"].pop(), "units of .*, but the languages"),
    "missing": (lambda x: x.pop("model"), "'model' is a required property"),
    "unknown": (lambda x: x.update(more=1), "'more' was unexpected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_schema_or_the_bases_do_not_allow_is_refused(name, tmp_path):
    change, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        NeuronSet.load(changed(tmp_path, change))


def test_what_json_cannot_hold_leaves_no_file(tmp_path):
    for found in (replace(made(), notes={"x": torch.ones(1)}), replace(made(), notes={"x": float("nan")})):
        with pytest.raises(ValueError, match=r"save it as \.safetensors"):
            found.save(tmp_path / "set.json")
    scores = NeuronScores(("en",), {"mlp": torch.zeros(1, LAYERS, D_MLP)}, "x")
    with pytest.raises(KeyError, match="latin-1"):
        made(bases=("mlp",)).save(tmp_path / "set.json", scores=scores)
    with pytest.raises(ValueError, match=r"to \.json alone"):
        made().save(tmp_path / "set", scores=scores)
    assert not list(tmp_path.iterdir())


# other tools' files; each is written here as that tool's code does


def write_lists(path, found):
    torch.save([[layer.nonzero()[:, 0] for layer in each] for each in found.masks["mlp"]], path)


def write_dln(path, found):
    mask = found.masks["mlp"]
    neurons = [
        {"layer": layer, "neuron": unit, "cost": 0.1,
         "cluster": [label for label, own in zip(found.languages, mask[:, layer, unit], strict=True) if own]}
        for layer, unit in mask.any(0).nonzero().tolist()
    ]  # fmt: skip
    path.write_text(json.dumps(
        {"model": "m", "languages": list(found.languages), "pct": 1.0, "tau": 0.2, "neurons": neurons}
    ))  # fmt: skip


def write_kinit(path, found):
    names = {"mlp": "mlp_over_threshold_rate", "q": "attn_q_proj_over_threshold_rate"}
    results = {names[basis]: {"selected_mask": mask} for basis, mask in found.masks.items()}
    torch.save({"method": "LAPE", "languages": list(found.languages), "params": {"top_rate": 0.01},
                "results": results}, path)  # fmt: skip


def write_expertise(path, found):
    names = {"mlp_up": "model.layers.{}.mlp.up_proj:0", "q": "model.layers.{}.self_attn.q_proj:0"}
    frame = found.to_frame()
    layers = [names[row.basis].format(row.layer) for row in frame.itertuples()]
    table = {"ap": 0.9, "layer": layers, "unit": frame["unit"], "concept": frame["language"], "group": "sense"}
    pd.DataFrame(table).to_csv(path, index=False)


def as_up(found):
    return NeuronSet(found.languages, {"mlp_up": found.masks["mlp"], "q": found.masks["q"]})


FORMATS = {
    "lape": ("x.pth", write_lists, made(bases=("mlp",)), {"languages": LABELS}),
    "entropy_lambda": ("mask.Llama", write_lists, made(1, bases=("mlp",)), {"languages": LABELS}),
    "clas_bench": ("x", write_lists, made(2, tuple(lsn.neurons.importing.CLAS_BENCH.split()), ("mlp",)), {}),
    "dln": ("populations.json", write_dln, made(3, bases=("mlp",)), {}),
    "kinit": ("lape_selected_neurons.pt", write_kinit, made(4), {}),
    "expertise": ("expertise_limited_20_both.csv", write_expertise, as_up(made(5)), {}),
    "table": ("x.csv", lambda path, found: found.to_frame().to_csv(path, index=False), made(7), {}),
    "lsn_lens": ("x.json", lambda path, found: found.save(path), made(6), {}),
}


def test_every_importer_has_a_round_trip():
    assert set(FORMATS) == set(IMPORTERS)


@pytest.mark.parametrize("name", FORMATS)
def test_what_another_tool_wrote_is_read(name, model, tmp_path):
    file, write, found, options = FORMATS[name]
    write(tmp_path / file, found)
    shapes = {basis: tuple(mask.shape[1:]) for basis, mask in found.masks.items()}
    ambiguous = name in ("lape", "entropy_lambda", "clas_bench")
    for where in (model, shapes):
        asked = {"format": name} if ambiguous else {}
        assert import_set(tmp_path / file, where, **asked, **options) == found
    if ambiguous:
        with pytest.raises(ValueError, match="look the same"):
            import_set(tmp_path / file, model, **options)
    wide = {basis: (layers, width // 2) for basis, (layers, width) in shapes.items()}
    with pytest.raises(ValueError):
        import_set(tmp_path / file, wide, format=name, **options)
    deep = {basis: (layers + 1, width) for basis, (layers, width) in shapes.items()}
    if name not in ("dln", "expertise", "table"):  # these list units, and no layers
        with pytest.raises(ValueError):
            import_set(tmp_path / file, deep, format=name, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"unit": None}, "has no columns ['unit']"),
        ({"method": ["a", "b"]}, "has the units of ['a', 'b']"),
        ({"language": ["en", "NA"]}, None),
        ({"language": ["nan", "nan "]}, None),
        ({"language": ["true", "false"]}, None),
        ({"language": ["01", "1e2"]}, None),
    ],
)
def test_a_table_of_units_is_read_or_refused_in_words(change, words, tmp_path):
    frame = pd.DataFrame({"language": ["en", "de"], "layer": [0, 1], "unit": [3, 2], **change})
    frame.dropna(axis=1).to_csv(tmp_path / "x.csv", index=False)
    if words is None:
        assert import_set(tmp_path / "x.csv", {"mlp": (2, 4)}).languages == tuple(change["language"])
    else:
        with pytest.raises(ValueError, match=re.escape(words)):
            import_set(tmp_path / "x.csv", {"mlp": (2, 4)})


def test_a_mask_by_language_says_how_to_give_it(tmp_path):
    torch.save({"en": [torch.tensor([1])], "de": [torch.tensor([0])]}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"it has \['en', 'de'\]. Masks by language: save a list"):
        import_set(tmp_path / "x.pth", {"mlp": (1, 4)})


def test_lists_can_be_written_and_read_again(model, tmp_path):
    found = made(bases=("mlp",))
    found.to_lape_file(tmp_path / "x.pth")
    assert import_set(tmp_path / "x.pth", model, format="lape", languages=LABELS) == found


def test_a_table_of_all_units_takes_a_count(tmp_path):
    values = torch.rand(2, LAYERS * D_MLP, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    paths = []
    for label, each in zip(("en", "de"), values.tolist(), strict=True):
        layers = [f"model.layers.{place // D_MLP}.mlp.gate_proj:0" for place in range(len(each))]
        units = [place % D_MLP for place in range(len(each))]
        paths.append(tmp_path / f"{label}.csv")
        pd.DataFrame({"ap": each, "layer": layers, "unit": units, "concept": label}).to_csv(paths[-1], index=False)
    shapes = {"mlp_pre": (LAYERS, D_MLP)}
    found = import_set(paths, shapes, count=6)
    for own, each in zip(found.masks["mlp_pre"], values, strict=True):
        order = sorted(range(len(each)), key=lambda place: float(each[place]))
        assert set(own.flatten().nonzero()[:, 0].tolist()) == {*order[:3], *order[-3:]}
    both = pd.concat([pd.read_csv(path) for path in paths]).sort_values("unit", kind="stable")
    for labels in (("en", "de"), ("nan", "NA")):
        both["concept"] = both["concept"].replace(dict(zip(("en", "de"), labels, strict=True)))
        both.to_csv(tmp_path / "both.csv", index=False)
        together = import_set(tmp_path / "both.csv", shapes, count=6)
        assert together.languages == labels and torch.equal(together.masks["mlp_pre"], found.masks["mlp_pre"])
    with pytest.raises(ValueError, match="give count="):
        import_set(paths, shapes)
    with pytest.raises(ValueError, match="asks for more"):
        import_set(paths, shapes, count=1000)


def test_labels_and_a_count_that_a_set_does_not_take_are_refused(model, tmp_path):
    path = made().save(tmp_path / "set.safetensors")
    assert import_set(path, SHAPES, languages=LABELS[::-1]) == made()
    with pytest.raises(ValueError, match=r"has the languages \['en', .* but \['en', 'fr', 'ja'\] were named"):
        import_set(path, SHAPES, languages=("en", "fr", "ja"))
    with pytest.raises(ValueError, match=r"count=3: .* of the format 'lsn_lens', which has chosen units"):
        import_set(path, SHAPES, count=3)


def test_plnd_dictionaries_count_keys_by_query_heads(model):
    size, group = model.cfg.d_head, 2  # four query heads share two of keys
    given = {"en": ({0: {1}}, {0: {2}}, {1: {5}}, {0: {2 * size + 3, 3 * size + 3}}, {0: {size - 1}}), "de": [{}] * 5}
    found = plnd_set(given, model)
    at = {basis: mask[0].nonzero().tolist() for basis, mask in found.masks.items()}
    assert at == {"mlp": [[0, 1], [0, 2]], "q": [[1, 5]], "k": [[0, size * 2 // group + 3]], "v": [[0, size - 1]]}
    assert not found["de"].counts().sum()
    with pytest.raises(ValueError, match="4 dictionaries"):
        plnd_set({"en": [{}] * 4}, model)


def bad(path, name):
    mask = made(bases=("mlp",)).masks["mlp"]
    if name == "count":
        write_lists(path, made(labels=LABELS[:2], bases=("mlp",)))
    elif name == "NaN":
        torch.save([[torch.full((D_MLP,), torch.nan)] * LAYERS] * 3, path)
    elif name == "beyond":
        torch.save([[torch.tensor([D_MLP])] * LAYERS] * 3, path)
    elif name == "pickle":
        path.write_bytes(pickle.dumps({"a": jsonschema.Draft202012Validator}))
    elif name == "object":
        torch.save([[NeuronSet(("en",), {"mlp": mask[:1]})]], path)
    else:
        path.write_bytes(b"")


BAD = {
    "count": "has 2 languages, but 3 were named", "NaN": "with NaN", "beyond": f"indices from {D_MLP}",
    "pickle": "no file of torch.save|other than tensors", "object": "other than tensors", "empty": "is empty",
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_their_words(name, model, tmp_path):
    bad(tmp_path / "x.pth", name)
    with pytest.raises(ValueError, match=BAD[name]):
        import_set(tmp_path / "x.pth", model, format="lape", languages=LABELS)


def test_what_does_not_fit_is_refused(model, tmp_path):
    write_kinit(tmp_path / "x.pt", made())
    with pytest.raises(ValueError, match="were named"):
        import_set(tmp_path / "x.pt", model, languages=("en", "de"))
    with pytest.raises(ValueError, match="expected one of"):
        import_set(tmp_path / "x.pt", model, format="other")
    write_lists(tmp_path / "x.pth", made(bases=("mlp",)))
    with pytest.raises(ValueError, match="names no languages"):
        import_set(tmp_path / "x.pth", model, format="lape")
    torch.save({"languages": ["en"], "params": {}, "results": {"mlp_rate": {}}}, tmp_path / "z.pt")
    with pytest.raises(ValueError, match="without selected_mask"):
        import_set(tmp_path / "z.pt", model)
    for neuron in ({"layer": 0, "neuron": 1, "cluster": "en"}, {"layer": 0, "neuron": 1}, "0"):
        told = {"model": "m", "languages": ["en", "de"], "pct": 1.0, "tau": 0.2, "neurons": [neuron]}
        (tmp_path / "populations.json").write_text(json.dumps(told))
        with pytest.raises(ValueError, match=r"populations\.json: .* is no neuron of populations\.json"):
            import_set(tmp_path / "populations.json", model)
    (tmp_path / "x.csv").write_text("ap,layer,unit,concept\n0.5,transformer.h.0.query_key_value:0,1,en\n")
    with pytest.raises(ValueError, match="no module with a known basis"):
        import_set(tmp_path / "x.csv", model)
    (tmp_path / "y.csv").write_text("ap,layer,unit,concept\n,model.layers.0.fc1:0,1,en\n")
    with pytest.raises(ValueError, match="is NaN"):
        import_set(tmp_path / "y.csv", model)


# control vectors


def steering(at=1, action=None):
    mask = torch.zeros(1, LAYERS, D_MODEL, dtype=torch.bool)
    mask[0, at, 3:] = True
    values = torch.randn(LAYERS, D_MODEL, generator=torch.Generator().manual_seed(1))
    return lsn.Intervention("up", ((NeuronSet(("all",), {"resid": mask}), action or lsn.add({"resid": values})),))


def test_a_control_vector_is_what_the_intervention_adds(model, tmp_path):
    gguf = pytest.importorskip("gguf")
    path = save_control_vector(steering(), tmp_path / "x.gguf", "llama")
    reader = gguf.GGUFReader(path)
    (tensor,) = reader.tensors
    assert tensor.name == "direction.1" and tensor.tensor_type == gguf.GGMLQuantizationType.F32
    assert reader.get_field("general.architecture").contents() == "controlvector"
    ids = torch.arange(8)[None]
    added = torch.tensor(tensor.data)
    keep = lambda acts, hook: acts + added  # noqa: E731
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", keep)]):
        expected = model(ids)
    for what in (steering(), load_control_vector(path, LAYERS)):
        with lsn.intervene(model, what):
            assert torch.allclose(model(ids), expected, atol=1e-5)
    assert not torch.allclose(model(ids), expected, atol=1e-2)
    with pytest.raises(ValueError, match="the layers 1 to 0"):
        load_control_vector(path, 1)


@pytest.mark.parametrize(
    "what",
    [
        steering(0), steering(action=lsn.zero), steering(action=lsn.scale(2.0)), steering(action=lsn.set_to(1.0)),
        steering(action=lsn.add(1.0).at("last")), lsn.Intervention("none"),
        lsn.Intervention("mlp", ((made(bases=("mlp",)), lsn.add(1.0)),)),
    ],
)  # fmt: skip
def test_what_is_no_control_vector_is_refused(what, tmp_path):
    pytest.importorskip("gguf")
    with pytest.raises(lsn.DoesNotApply):
        save_control_vector(what, tmp_path / "x.gguf", "llama")
    assert not list(tmp_path.iterdir())
