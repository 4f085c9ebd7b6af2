# SPDX-License-Identifier: Apache-2.0
"""The command line: what each command prints and writes, and every exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="networks to quantize are made with PyTorch")

import intonly  # noqa: E402
from intonly.artifact.container import seal, unseal  # noqa: E402
from intonly.cli import EXIT_CODES, app, exit_code  # noqa: E402
from intonly.core.errors import (  # noqa: E402
    ArtifactError,
    DataError,
    InfeasibleBudgetError,
    InvalidGraphError,
    RecipeError,
    UnsupportedOpError,
    VerificationError,
)
from tests.small_nets import TORCH_FACTORY, images, save_onnx  # noqa: E402

NETS = "nets_of_the_command_line_tests"
RAW = ("--input-type", "uint8", "--mean", "127,121,110.5", "--std", "60")
X = images(24)
Y = np.arange(24) % 5


def fill(folder: Path) -> None:
    """Write models and data, as a user has them, to a folder."""
    (folder / f"{NETS}.py").write_text(TORCH_FACTORY, encoding="utf-8")
    np.savez(folder / "data.npz", x=X, y=Y)
    np.savez(folder / "reals.npz", x=(X.astype(np.float32) - 120) / 60)
    np.savez(folder / "bare.npz", x=X)
    np.save(folder / "x.npy", X[:7])
    save_onnx(folder / "net.onnx")
    save_onnx(folder / "open.onnx", side=None)
    save_onnx(folder / "post.onnx", post=True)
    save_onnx(folder / "odd.onnx", odd=True)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """Return the bytes of an artifact made from the factory."""
    folder = tmp_path_factory.mktemp("artifact")
    fill(folder)
    spec = intonly.InputSpec(dtype="uint8", mean=(127.0, 121.0, 110.5), std=(60.0,))
    sys.path.insert(0, str(folder))
    try:
        intonly.quantize(f"{NETS}:make", "w8a8", folder / "data.npz", inputs=spec).save(folder / "net.intonly")
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop(NETS, None)
    return (folder / "net.intonly").read_bytes()


@pytest.fixture
def here(tmp_path, monkeypatch, artifact):
    """Return the current folder, filled; modules of it are importable for this test only."""
    fill(tmp_path)
    (tmp_path / "net.intonly").write_bytes(artifact)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    sys.modules.pop(NETS, None)


def intonly_(*arguments: object, code: int = 0):
    """Run the command line in this process; return what it printed, after checking the exit code."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    return result


def printed(*arguments: object, code: int = 0) -> dict:
    """Run a command with --json; return the one object it prints."""
    result = intonly_(*arguments, "--json", code=code)
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


# -- quantize -----------------------------------------------------------------------------------------------------


def test_quantize_says_what_it_made(here):
    """The JSON of `quantize` would not describe the file that it wrote."""
    facts = printed("quantize", f"{NETS}:make", "-o", "q.intonly", "--data", "data.npz", *RAW)
    assert (facts["out"], facts["layers"]) == ("q.intonly", 3)
    assert facts["bytes"] == (here / "q.intonly").stat().st_size
    assert facts["seconds"] > 0
    assert facts["certificate"]["accumulators"] >= 3
    assert facts["certificate"]["least_headroom_bits"] > 0
    assert facts["certificate"]["float_values"] == 0
    assert intonly.verify(here / "q.intonly").ok


def test_quantize_options_reach_the_network(here):
    """A recipe file, samples, seed, output, layout or shape given on the command line would be ignored."""
    np.savez(here / "last.npz", x=X.transpose(0, 2, 3, 1))
    (here / "r.json").write_text('{"weight_bits": 4, "first_last_bits": null}', encoding="utf-8")
    options = ("--recipe", "r.json", "--samples", 9, "--seed", 5, "--output", "int8", "--layout", "nhwc", "--input-shape", "-1,3,8,8")
    result = intonly_("quantize", "open.onnx", "-o", "q.intonly", "--data", "last.npz", *options, *RAW)
    assert "bytes" in result.stdout
    assert "cannot overflow" in result.stdout
    q = intonly.load(here / "q.intonly")
    assert [rule.weight_bits for rule in q.plan.rules] == [4, 4]
    assert (q.plan.samples, q.plan.seed, q.plan.output) == (9, 5, "int8")
    assert q.artifact.note.extra["samples"] == "9"
    assert q.artifact.inputs[0].layout == "NHWC"
    assert q.artifact.inputs[0].mean == (127.0, 121.0, 110.5)
    assert q(X.transpose(0, 2, 3, 1)).dtype == np.int8


def test_float_input_is_the_default(here):
    """Without --input-type an artifact would not take reals."""
    intonly_("quantize", "net.onnx", "-o", "q.intonly", "--data", "reals.npz")
    assert intonly.load(here / "q.intonly").artifact.inputs[0].dtype == "float32"


def test_int8_and_named_shape(here):
    """--input-type int8 or a shape with the name of its input would not be understood."""
    np.savez(here / "signed.npz", input=(X.astype(np.int16) - 128).astype(np.int8))
    shape = ("--input-shape", "input:2,3,8,8")
    intonly_("quantize", "open.onnx", "-o", "q.intonly", "--data", "signed.npz", "--input-type", "int8", "--std", "60", *shape)
    q = intonly.load(here / "q.intonly")
    assert q.artifact.inputs[0].dtype == "int8"
    assert q.graph.values["input"].shape[0] == 2


def test_image_folder_with_resize_and_crop(here):
    """A folder of images would not be framed by --resize and --crop, or evaluation would not find its labels."""
    image = pytest.importorskip("PIL.Image", reason="image files are read with Pillow")
    for k in range(5):
        (here / "pictures" / str(k)).mkdir(parents=True)
        for i in range(4):
            pixels = X[(5 * i + k) % len(X)].transpose(1, 2, 0).repeat(3, axis=0).repeat(2, axis=1)
            image.fromarray(np.ascontiguousarray(pixels)).save(here / "pictures" / str(k) / f"{i}.png")
    intonly_("quantize", "net.onnx", "-o", "q.intonly", "--data", "pictures", "--resize", 10, "--crop", 8, *RAW)
    q = intonly.load(here / "q.intonly")
    assert (q.artifact.inputs[0].resize, q.artifact.inputs[0].crop) == (10, (8, 8))
    facts = printed("eval", "q.intonly", "--data", "pictures", "--against", "net.onnx")
    assert facts["n"] == 20
    assert facts["top1"] is not None
    assert facts["sqnr_db"] > 25


def test_cut_is_announced(here):
    """A user would not learn that post-processing was cut away, or how to ask for it."""
    result = intonly_("quantize", "post.onnx", "-o", "q.intonly", "--data", "reals.npz", code=5)
    assert "topk" in result.stderr
    assert not (here / "q.intonly").exists()
    result = intonly_("quantize", "post.onnx", "-o", "q.intonly", "--data", "reals.npz", "--outputs", "auto")
    assert "cut at logits" in result.stderr
    assert printed("info", "q.intonly")["cut"] == ["logits"]
    intonly_("quantize", "post.onnx", "-o", "q.intonly", "--data", "reals.npz", "--outputs", "f,logits")
    assert [port["name"] for port in printed("info", "q.intonly")["outputs"]] == ["f", "logits"]


@pytest.mark.parametrize(
    ("options", "hinted"),
    [(RAW, False), (("--input-type", "uint8"), True), (("--input-type", "uint8", "--mean", "0.5", "--std", "0.2"), True)],
)
def test_hint_about_normalization(here, options, hinted):
    """Forgotten or wrongly scaled normalization of images, the most common mistake, would pass without a word."""
    result = intonly_("quantize", "net.onnx", "-o", "q.intonly", "--data", "bare.npz", *options)
    assert ("hint" in result.stderr) == hinted
    assert "hint" not in result.stdout


def test_a_module_can_be_traced_with_a_shape(here):
    """A factory whose data do not fit its trace would have no way to say what it is traced with."""
    options = ("--data", "data.npz", "--input-shape", "2,3,8,8", *RAW)
    intonly_("quantize", f"{NETS}:make", "-o", "q.intonly", *options)
    assert intonly.load(here / "q.intonly")(X).shape == (24, 5)


# -- eval ---------------------------------------------------------------------------------------------------------


def test_eval_of_an_artifact(here):
    """`eval` would report other numbers than `evaluate`, or more than one JSON object."""
    facts = printed("eval", "net.intonly", "--data", "data.npz", "--against", f"{NETS}:make", "--score", "sqnr")
    y = intonly.load(here / "net.intonly")(X)
    assert facts["n"] == 24
    assert facts["top1"] == pytest.approx(100 * (y.argmax(1) == Y).mean())
    assert facts["sqnr_db"] == facts["score"] > 30
    assert facts["agreement"] >= 90
    text = intonly_("eval", "net.intonly", "--data", "bare.npz", "--against", f"{NETS}:make").stdout
    assert "no class numbers" in text
    assert "dB" in text


def test_eval_of_a_float_model(here):
    """A float model would be evaluated without the normalization given, or on all samples."""
    facts = printed("eval", f"{NETS}:make", "--data", "data.npz", "--samples", 10, *RAW)
    assert facts["n"] == 10
    assert facts["agreement"] is None
    both = printed("eval", f"{NETS}:make", "--data", "data.npz", "--against", "net.intonly", *RAW)
    assert both["sqnr_db"] > 30
    same = printed("eval", "net.onnx", "--data", "data.npz", "--against", "net.onnx", *RAW)
    assert same["sqnr_db"] == "inf"


def test_eval_with_a_score_of_the_users_own(here):
    """A score from a module in the current folder would not be found, or its result lost."""
    assert printed("eval", "net.intonly", "--data", "data.npz", "--score", f"{NETS}:total")["score"] == Y.sum()
    assert f"{NETS}:total  24" in intonly_("eval", "net.intonly", "--data", "bare.npz", "--score", f"{NETS}:total").stdout


# -- run, verify, info --------------------------------------------------------------------------------------------


def test_run_writes_integers_and_says_what_they_mean(here):
    """`run` would write other integers than the network answers, or a scale that does not belong to them."""
    facts = printed("run", "net.intonly", "--input", "x.npy", "-o", "y.npy")
    q = intonly.load(here / "net.intonly")
    y = np.load(here / "y.npy")
    assert y.dtype == np.int32
    assert np.array_equal(y, q(X[:7]))
    out = facts["outputs"][0]
    assert (out["shape"], out["dtype"], out["scale"]) == ([7, 5], "int32", q.artifact.outputs[0].scale)
    intonly_("run", "net.intonly", "--input", "bare.npz", "-o", "y.npz", "--float")
    with np.load(here / "y.npz") as file:
        reals = file[q.artifact.outputs[0].name]
    assert np.allclose(reals, (q(X).astype(float) - out["zero_point"]) * out["scale"])
    assert [p.name for p in here.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("backend", ["interpreter", "torch"])
def test_run_on_another_backend(here, backend):
    """--backend would change the answer, or not be known."""
    intonly_("run", "net.intonly", "--input", "x.npy", "-o", "y.npy", "--backend", backend)
    assert np.array_equal(np.load(here / "y.npy"), intonly.load(here / "net.intonly")(X[:7]))


def test_run_of_several_outputs(here):
    """Several outputs would be squeezed into one array."""
    intonly_("quantize", "net.onnx", "-o", "two.intonly", "--data", "bare.npz", "--outputs", "f,logits", *RAW)
    intonly_("run", "two.intonly", "--input", "x.npy", "-o", "y.npy", code=2)
    intonly_("run", "two.intonly", "--input", "x.npy", "-o", "y.npz")
    with np.load(here / "y.npz") as file:
        assert {k: file[k].shape for k in file.files} == {"f": (7, 4), "logits": (7, 5)}


def test_verify_a_good_file(here):
    """A good artifact would not be called good."""
    facts = printed("verify", "net.intonly")
    assert facts["ok"] is True
    assert facts["failures"] == []
    assert facts["certificate"]["graph_digest"]
    assert "verified" in intonly_("verify", "net.intonly").stdout


def tampered(folder: Path, section: str, change) -> None:
    """Change one section of net.intonly, and seal it again as if nothing had happened."""
    metadata, tensors = unseal((folder / "net.intonly").read_bytes())
    data = json.loads(metadata[section])
    change(data)
    metadata[section] = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    (folder / "net.intonly").write_bytes(seal(metadata, tensors))


def smaller_accumulator(certificate):
    """State a smaller limit than is true."""
    certificate["layers"][1][3] -= 1


def other_answer(golden):
    """State another answer to the golden inputs."""
    golden["outputs"][0][2] = "0" * 64


@pytest.mark.parametrize(("section", "change"), [("certificate", smaller_accumulator), ("golden", other_answer)])
def test_verify_a_file_that_lies(here, section, change):
    """A file with a false certificate or wrong answers would verify; exit code 4 and the layer are what CI relies on."""
    tampered(here, section, change)
    facts = printed("verify", "net.intonly", code=4)
    assert facts["ok"] is False
    assert facts["failures"][0]["origin"]
    result = intonly_("verify", "net.intonly", code=4)
    assert facts["failures"][0]["origin"] in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [("verify",), ("info",), ("run", "--input", "x.npy", "-o", "y.npy"), ("eval", "--data", "data.npz")])
def test_damaged_files_are_errors_of_their_own(here, command):
    """A damaged file would be confused with a failed verification or a wrong command line, or end in a traceback."""
    whole = bytearray((here / "net.intonly").read_bytes())
    whole[len(whole) // 2] ^= 1
    (here / "net.intonly").write_bytes(whole)
    result = intonly_(command[0], "net.intonly", *command[1:], code=1)
    assert "damaged" in result.stderr
    assert result.stdout == ""
    assert not (here / "y.npy").exists()


def test_info_shows_layers_and_interface(here):
    """`info` would leave out a layer, a width or what goes in and out."""
    facts = printed("info", "net.intonly")
    assert facts["bytes"] == (here / "net.intonly").stat().st_size
    names = [layer["name"] for layer in facts["layers"] if layer["weight_bits"]]
    assert names == ["conv1", "conv2", "fc"]
    assert facts["totals"]["macs"] == sum(layer["macs"] for layer in facts["layers"]) == 64 * 6 * 27 + 64 * 6 * 54 + 30
    assert facts["inputs"][0]["dtype"] == "uint8"
    text = intonly_("info", "net.intonly").stdout
    for shown in ("conv1", "conv2", "fc", "Nx8x8x6", str(facts["totals"]["macs"]), "uint8 (N, 3, 8, 8)", "real ="):
        assert shown in text


# -- exit codes ---------------------------------------------------------------------------------------------------

QUANTIZE = ("quantize", "net.onnx", "-o", "q.intonly", "--data", "reals.npz")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), ""),
        (("compress",), "compress"),
        (("quantize",), "MODEL"),
        (("quantize", "net.onnx", "-o", "q.intonly"), "--data"),
        (("quantize", "none.onnx", "-o", "q.intonly", "--data", "reals.npz"), "none.onnx"),
        (("quantize", "resnet", "-o", "q.intonly", "--data", "reals.npz"), "module:factory"),
        (("quantize", "no_module:make", "-o", "q.intonly", "--data", "reals.npz"), "no_module"),
        (("quantize", "net.intonly", "-o", "q.intonly", "--data", "data.npz"), "already"),
        (("quantize", "net.onnx", "-o", "q.bin", "--data", "reals.npz"), ".intonly"),
        (("quantize", "net.onnx", "-o", "no/q.intonly", "--data", "reals.npz"), "does not exist"),
        (("quantize", "net.onnx", "-o", "q.intonly", "--data", "no.npz"), "no.npz"),
        (("quantize", "net.onnx", "-o", "q.intonly", "--data", "x.npy"), "npz"),
        ((*QUANTIZE, "--recipe", "w3a3"), "w3a3"),
        ((*QUANTIZE, "--recipe", "bad.json"), "colour"),
        ((*QUANTIZE, "--recipe", "format.json"), "nf9"),
        ((*QUANTIZE, "--input-type", "uint16"), "uint16"),
        ((*QUANTIZE, "--input-type", "uint8"), "uint8"),
        ((*QUANTIZE, "--mean", "a,b"), "--mean"),
        ((*QUANTIZE, "--mean", "1,2", "--std", "1,2,3"), "mean"),
        ((*QUANTIZE, "--crop", "8,8,8"), "--crop"),
        ((*QUANTIZE, "--crop", "0"), "--crop"),
        ((*QUANTIZE, "--samples", "0"), "--samples"),
        ((*QUANTIZE, "--input-shape", "a,b"), "--input-shape"),
        ((*QUANTIZE, "--input-shape", "image:1,3,8,8"), "image"),
        ((*QUANTIZE, "--input-shape", "1,3,8,8", "--input-shape", "2,3,8,8"), "names"),
        ((*QUANTIZE, "--outputs", "nothing"), "nothing"),
        (("eval", "net.intonly"), "--data"),
        (("eval", "net.intonly", "--data", "bare.npz"), "labels"),
        (("eval", "net.intonly", "--data", "data.npz", "--mean", "1"), "artifact"),
        (("eval", "net.intonly", "--data", "data.npz", "--score", "top5"), "top5"),
        (("eval", "net.intonly", "--data", "data.npz", "--score", "sqnr"), "against"),
        (("eval", "net.intonly", "--data", "data.npz", "--against", "none.onnx"), "none.onnx"),
        (("run", "none.intonly", "--input", "x.npy", "-o", "y.npy"), "none.intonly"),
        (("run", "net.intonly", "--input", "x.npy", "-o", "y.txt"), ".npy"),
        (("run", "net.intonly", "--input", "net.onnx", "-o", "y.npy"), "npz"),
        (("run", "net.intonly", "--input", "zip.npy", "-o", "y.npy"), "npz"),
        (("run", "net.intonly", "--input", "wide.npy", "-o", "y.npy"), "shape"),
        (("verify", "none.intonly"), "none.intonly"),
        (("info",), "ARTIFACT"),
    ],
)
def test_wrong_command_lines_give_2(here, arguments, said):
    """A mistake in the command line would look like another failure, or its message not name the mistake."""
    (here / "bad.json").write_text('{"colour": 4}', encoding="utf-8")
    (here / "format.json").write_text('{"rules": [{"match": "*", "weight_format": "nf9"}]}', encoding="utf-8")
    (here / "zip.npy").write_bytes((here / "data.npz").read_bytes())
    np.save(here / "wide.npy", np.zeros((1, 3, 9, 9), np.uint8))
    before = sorted(p.name for p in here.iterdir() if p.name != "__pycache__")
    result = intonly_(*arguments, code=2)
    assert said in " ".join(result.stderr.replace("│", " ").split()) or (not said and "Usage" in result.output)
    assert sorted(p.name for p in here.iterdir() if p.name != "__pycache__") == before


def test_unsupported_operators_give_5(here):
    """Operators that intonly does not know would not be listed by the user's names, or not all."""
    for model, name in (("odd.onnx", "strange"), (f"{NETS}:odd", "svd")):
        result = intonly_("quantize", model, "-o", "q.intonly", "--data", "reals.npz", code=5)
        assert name in result.stderr
        assert not (here / "q.intonly").exists()


def test_every_error_has_its_exit_code():
    """Scripts that branch on exit codes would take the wrong branch."""
    found = [
        exit_code(e) for e in (DataError("x"), RecipeError("x"), InfeasibleBudgetError("x"), VerificationError([]), UnsupportedOpError([]))
    ]
    assert found == [2, 2, 3, 4, 5]
    assert {exit_code(e) for e in (ArtifactError("x"), InvalidGraphError("x"), OSError("x"), KeyError("x"))} == {1}
    assert len({kind for kind, _ in EXIT_CODES}) == len(EXIT_CODES)


def test_unexpected_errors_are_one_message(here, monkeypatch):
    """A bug would end in a traceback, and --debug not show one."""

    def broken(*args, **options):
        raise KeyError("inner")

    monkeypatch.setattr("intonly.info.info", broken)
    result = intonly_("info", "net.intonly", code=1)
    assert "inner" in result.stderr
    assert "--debug" in result.stderr
    shown = CliRunner().invoke(app, ["--debug", "info", "net.intonly"])
    assert isinstance(shown.exception, KeyError)


def test_files_that_cannot_be_written(here):
    """A full or read-only disk would leave half a file, or a traceback."""
    (here / "y.npy").mkdir()
    result = intonly_("run", "net.intonly", "--input", "x.npy", "-o", "y.npy", code=1)
    assert "y.npy" in result.stderr
    assert [p.name for p in here.iterdir() if p.name.endswith(".part")] == []


def test_the_program_itself(here):
    """The installed program would not start, or not pass its exit code on."""
    code = "from intonly.cli import main; main()"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in (str(Path(intonly.__file__).parents[1]), os.environ.get("PYTHONPATH")) if p),
    }

    def started(*arguments):
        return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, check=False)

    version = started("--version")
    assert (version.returncode, version.stdout) == (0, f"intonly {intonly.__version__}\n")
    good = started("verify", "net.intonly", "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["ok"] is True
    assert good.stderr == ""
    tampered(here, "golden", other_answer)
    bad = started("verify", "net.intonly")
    assert bad.returncode == 4
    assert "Traceback" not in bad.stderr
    assert bad.stderr.startswith("error: ")
