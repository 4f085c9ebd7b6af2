# SPDX-License-Identifier: Apache-2.0
"""Records in Python and in JSON: the same checks, the same values, and mistakes named."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intonly.core.errors import ArtifactError, DataError, IntonlyError, RecipeError
from intonly.core.records import PRESETS, InputSpec, LayerRule, Note, OutputSpec, Recipe, from_json, recipe_of, to_json
from tests.strategies import LAW

FEW = settings(LAW, max_examples=80)
OBSERVERS = ("minmax", "moving_average", "percentile", "mse", "entropy")
BITS = st.integers(1, 8)
RULES = st.builds(
    LayerRule,
    st.text(max_size=5),
    weight_bits=st.none() | BITS,
    weight_format=st.sampled_from((None, "binary", "int4n")),
    weight_granularity=st.sampled_from((None, "channel", "tensor")),
    weight_observer=st.sampled_from((None, "minmax", "mse")),
    activation_bits=st.none() | BITS,
    activation_observer=st.sampled_from((None, *OBSERVERS)),
)
RECIPES = st.builds(
    Recipe,
    st.text(max_size=5),
    weight_bits=BITS,
    activation_bits=BITS,
    weight_format=st.sampled_from((None, "binary")),
    weight_granularity=st.sampled_from(("channel", "tensor")),
    weight_observer=st.sampled_from(("minmax", "mse")),
    activation_observer=st.sampled_from(OBSERVERS),
    activation_symmetric=st.booleans(),
    percentile=st.floats(50, 100, exclude_min=True),
    first_last_bits=st.none() | BITS,
    residual_bits=st.sampled_from((8, 16)),
    bias_correction=st.booleans(),
    reconstruction=st.sampled_from(["none", "layer", "block"]),
    reconstruction_steps=st.integers(1, 100_000),
    equalization=st.none() | st.booleans(),
    rounding=st.sampled_from(("nearest", "compensated")),
    output=st.sampled_from(("int32", "int8")),
    samples=st.integers(1, 10_000),
    seed=st.integers(0, 2**31),
    rules=st.lists(RULES, max_size=3).map(tuple),
)
REALS = st.floats(-1e6, 1e6)


@st.composite
def input_specs(draw):
    """Input specs with one number or one for each channel."""
    count = draw(st.integers(1, 4))
    return InputSpec(
        draw(st.text(max_size=4)),
        layout=draw(st.sampled_from(("", "NCHW", "NHWC", "NC"))),
        dtype=draw(st.sampled_from(("uint8", "int8", "float32"))),
        mean=tuple(draw(st.lists(REALS, min_size=count, max_size=count))),
        std=tuple(draw(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=1))) * draw(st.sampled_from((1, count))),
        resize=draw(st.none() | st.integers(1, 500)),
        crop=draw(st.none() | st.tuples(st.integers(1, 500), st.integers(1, 500))),
        scale=draw(st.none() | st.floats(1e-9, 1e9)),
        zero_point=draw(st.none() | st.integers(-128, 255)),
    )


def through_json(record):
    """Return the record after a trip through JSON text."""
    return from_json(type(record), json.loads(json.dumps(to_json(record), allow_nan=False)))


@FEW
@given(record=st.one_of(RECIPES, RULES, input_specs(), st.builds(OutputSpec, st.text(max_size=3), REALS, st.integers(-128, 255))))
def test_records_survive_json(record):
    """A stored plan or spec would read back as something else than was written."""
    assert through_json(record) == record
    assert type(through_json(record)) is type(record)


@FEW
@given(record=RECIPES)
def test_json_holds_what_was_chosen(record):
    """Files would repeat every default, or leave out something that is not one."""
    plain = Recipe()
    written = to_json(record)
    for f in fields(Recipe):
        assert (f.name in written) == (getattr(record, f.name) != getattr(plain, f.name))


def test_notes_survive_json():
    """Metadata of a file would be lost."""
    note = Note("net.onnx", ("a", "b"), {"samples": "32", "digest": "ab"})
    assert through_json(note) == note
    assert to_json(Note()) == {}


@pytest.mark.parametrize(
    ("kind", "data", "said"),
    [
        (Recipe, None, "Recipe: expected an object"),
        (Recipe, [1], "expected an object"),
        (Recipe, {"weigth_bits": 4}, "unknown key 'weigth_bits'; known are name, weight_bits"),
        (Recipe, {1: 2, "b": 3}, "unknown key"),
        (Recipe, {"weight_bits": "4"}, r"Recipe\.weight_bits: expected int, got '4'"),
        (Recipe, {"weight_bits": 4.0}, "weight_bits: expected int, got 4.0"),
        (Recipe, {"weight_bits": True}, "weight_bits: expected int, got True"),
        (Recipe, {"weight_bits": None}, "weight_bits: expected int, got None"),
        (Recipe, {"weight_bits": 0}, "weight_bits must be 1 to 8, got 0"),
        (Recipe, {"activation_bits": 9}, "activation_bits must be 1 to 8"),
        (Recipe, {"first_last_bits": 16}, "first_last_bits must be 1 to 8"),
        (Recipe, {"percentile": 50}, "percentile must be above 50"),
        (Recipe, {"percentile": math.nan}, "percentile must be above 50"),
        (Recipe, {"percentile": True}, "percentile: expected float"),
        (Recipe, {"samples": 0}, "samples must be 1 or more"),
        (Recipe, {"rounding": "stochastic"}, "must be one of nearest, compensated, got 'stochastic'"),
        (Recipe, {"residual_bits": 8.0}, "must be one of 8, 16"),
        (Recipe, {"equalization": 1}, "equalization: expected bool"),
        (Recipe, {"weight_granularity": ["channel"]}, "must be one of channel, tensor"),
        (Recipe, {"rules": {"match": "a"}}, "rules: expected a list"),
        (Recipe, {"rules": "ab"}, "rules: expected a list"),
        (Recipe, {"rules": [{"match": "a", "bits": 3}]}, r"Recipe\.rules\[0\]: unknown key 'bits'"),
        (Recipe, {"rules": [{"match": "a"}, {"weight_bits": 3}]}, r"rules\[1\]: key 'match' is missing"),
        (Recipe, {"rules": [{"match": "a", "activation_bits": 0}]}, "rule 'a': activation_bits must be 1 to 8"),
        (InputSpec, {"crop": [1, 2, 3]}, "crop: expected 2 entries, got 3"),
        (InputSpec, {"mean": 0.5}, "mean: expected a list"),
        (InputSpec, {"dtype": "float16"}, "must be one of uint8, int8, float32"),
        (Note, {"extra": {"a": 1}}, r"Note\.extra\.a: expected str, got 1"),
        (Note, {"extra": []}, "extra: expected an object"),
        (OutputSpec, {"name": "y"}, "key 'scale' is missing"),
    ],
)
def test_mistakes_in_json_are_named(kind, data, said):
    """A misspelt key or a wrong value in a file would be ignored, or end in a traceback."""
    with pytest.raises(RecipeError, match=said):
        from_json(kind, data)


def test_the_caller_chooses_the_error_and_the_place():
    """A damaged artifact would be reported as a mistake in a recipe."""
    with pytest.raises(ArtifactError, match=r"inputs\[0\]\.std\[1\]: expected float"):
        from_json(InputSpec, {"std": [1, "2"]}, error=ArtifactError, where="inputs[0]")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_bits": 2.5}, "weight_bits: expected int"),
        ({"weight_bits": "4"}, "weight_bits: expected int"),
        ({"rounding": "gptq"}, "rounding: must be one of"),
        ({"reconstruction": "network"}, "reconstruction: must be one of none, layer, block"),
        ({"reconstruction_steps": 0}, "reconstruction_steps must be 1 to 100,000, got 0"),
        ({"reconstruction_steps": 100_001}, "reconstruction_steps must be 1 to 100,000, got 100001"),
        ({"weight_granularity": "block"}, "weight_granularity: must be one of"),
        ({"bias_correction": 1}, "bias_correction: expected bool"),
        ({"rules": ({"match": "a", "bits": 2},)}, r"rules\[0\]: unknown key"),
        ({"rules": "conv1"}, "rules: expected a list"),
        ({"name": "mine", "output": "float"}, "'mine': output"),
    ],
)
def test_mistakes_in_python_are_named(options, said):
    """A recipe written in Python would be believed where the same JSON is refused."""
    with pytest.raises(RecipeError, match=said):
        Recipe(**options)
    with pytest.raises(RecipeError, match=r"rule 'a'.*weight_observer"):
        LayerRule("a", weight_observer="entropy")


def test_what_python_hands_in_becomes_plain():
    """Lists and NumPy numbers would not compare equal to what a file gives, or could not be written to one."""
    spec = InputSpec("x", mean=[np.float32(0.5), 1], std=np.array([2.0, 4.0]).tolist(), crop=[np.int64(8), 9])
    assert spec == InputSpec("x", mean=(0.5, 1.0), std=(2.0, 4.0), crop=(8, 9))
    assert {type(v) for v in (*spec.mean, *spec.std)} == {float}
    recipe = Recipe(weight_bits=np.int32(4), rules=[{"match": "a", "weight_bits": 2}, LayerRule("b")])
    assert recipe == Recipe(weight_bits=4, rules=(LayerRule("a", weight_bits=2), LayerRule("b")))
    assert through_json(spec) == spec
    assert through_json(recipe) == recipe


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.0, 1.0), "std": (1.0, 1.0, 1.0)},
        {"mean": ()},
        {"std": ()},
        {"std": (0.0,)},
        {"std": (1.0, -1.0)},
        {"std": (math.nan,)},
        {"std": (math.inf,)},
        {"mean": (math.nan,)},
        {"mean": (-math.inf,)},
        {"layout": "nchw"},
        {"layout": "NN"},
        {"layout": "CHW"},
        {"dtype": "float16"},
        {"scale": 0.0},
        {"scale": math.nan},
        {"resize": 0},
        {"crop": (0, 5)},
        {"crop": (5, -5)},
        {"crop": (5,)},
        {"mean": 0.5},
    ],
)
def test_impossible_inputs_are_refused(options):
    """A mean that is no number, or a standard deviation of 0, would reach every weight of the first layer."""
    with pytest.raises(DataError, match="input 'image'"):
        InputSpec("image", **options)


def test_mean_and_std_may_differ_in_number():
    """One std for all channels would have to be written once for each."""
    assert InputSpec(mean=(1.0, 2.0, 3.0), std=(2.0,)).std == (2.0,)
    assert InputSpec(mean=(1.0,), std=(2.0, 3.0)).mean == (1.0,)


def test_presets_are_what_their_names_say():
    """A preset would give other widths than its name."""
    for name, recipe in PRESETS.items():
        assert recipe.name == name == f"w{recipe.weight_bits}a{recipe.activation_bits}"
        assert recipe_of(name) is recipe
        assert recipe_of(recipe) is recipe


def test_recipes_come_from_files_and_mappings(tmp_path):
    """One of the ways to ask for a recipe would not work."""
    path = tmp_path / "mine.json"
    path.write_text('{"name": "mine", "weight_bits": 4, "rules": [{"match": "fc*", "weight_bits": 8}]}', encoding="utf-8")
    wanted = Recipe("mine", 4, rules=(LayerRule("fc*", weight_bits=8),))
    assert recipe_of(path) == recipe_of(str(path)) == recipe_of(to_json(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[1]", "expected an object"),
        ('{"weight_bits": 4, "weight_bits": 8}', "'weight_bits' twice"),
        ('{"rules": [{"match": "a", "match": "b"}]}', "'match' twice"),
        ('{"percentile": NaN}', "percentile"),
        ('{"bits": 4}', r"mine\.json: unknown key 'bits'"),
    ],
    ids=["cut", "deep", "list", "twice", "twice_in_rule", "nan", "unknown"],
)
def test_broken_recipe_files_are_named(tmp_path, text, said):
    """A damaged or ambiguous file would be read as something."""
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=said):
        recipe_of(path)


def test_what_is_no_recipe_is_refused(tmp_path):
    """Something else than a recipe would be replaced by a default."""
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe{")
    for asked in ("w3a3", "", None, 8, ["w8a8"], tmp_path / "none.json", tmp_path / "folder.json", tmp_path / "binary.json", tmp_path):
        with pytest.raises(RecipeError):
            recipe_of(asked)


@dataclass(frozen=True)
class Sample:
    """One field of every kind that records have."""

    number: float
    pair: tuple[int, str] = (1, "a")
    many: tuple[tuple[int, ...], ...] = ()
    either: int | str | None = None
    inner: LayerRule = field(default_factory=lambda: LayerRule("*"))


@FEW
@given(
    number=REALS,
    pair=st.tuples(st.integers(), st.text(max_size=3)),
    many=st.lists(st.lists(st.integers(), max_size=2).map(tuple), max_size=2).map(tuple),
    either=st.none() | st.integers() | st.text(max_size=3),
    inner=RULES,
)
def test_every_kind_of_field(number, pair, many, either, inner):
    """A new record with nested lists, alternatives or records in it would not read back."""
    sample = Sample(number, pair, many, either, inner)
    assert through_json(sample) == sample


@pytest.mark.parametrize("data", [{"number": "1"}, {"number": 1, "pair": [1]}, {"number": 1, "many": [1]}, {"number": 1, "either": 1.5}])
def test_every_kind_of_field_is_checked(data):
    """A wrong entry deep inside a record would pass."""
    with pytest.raises(IntonlyError, match=r"Sample\."):
        from_json(Sample, data)
