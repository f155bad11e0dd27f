"""TorchScript and exported programs: torch's own answers, and nothing of the file runs as Python."""

import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pilotage_runtime.failure import Stage, StartFailure
from pilotage_runtime.formats import detect
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions, Model

OPTIONS = LoadOptions(threads=1)
ROWS = np.random.default_rng(7).normal(size=(5, 4)).astype(np.float32)
CONTRACT = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
}
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x), -1)


class Again(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        double = x * 2
        return {"first": double, "again": double, "third": double * 2, "last": double}


class Two(torch.nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": a + b, "product": a * b}


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(7)
    return Network().eval()


@pytest.fixture
def script(network: torch.nn.Module, tmp_path: Path) -> Path:
    torch.jit.script(network).save(tmp_path / "model.pt")
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT))
    return tmp_path


@pytest.fixture
def program(network: torch.nn.Module, tmp_path: Path) -> Path:
    rows = torch.export.Dim("rows")
    exported = torch.export.export(network, (torch.zeros(2, 4),), dynamic_shapes={"x": {0: rows}})
    torch.export.save(exported, tmp_path / "model.pt2")
    return tmp_path


def loaded(path: Path, options: LoadOptions = OPTIONS, **found: Any) -> Model:
    return by_format.load(detect(path, Stage.LOAD, **found), options)


def refusal(act: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(StartFailure) as failure:
        act()
    return failure.value.reason, failure.value.message


def answer(model: Model) -> np.ndarray:
    return model.run({"x": ROWS}, [model.contract().outputs[0].name])[0]


def expected(network: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return network(torch.from_numpy(ROWS)).numpy()


def test_torchscript_answers_as_torch_does(script: Path, network: torch.nn.Module) -> None:
    model = loaded(script)
    assert model.platform == "pytorch_torchscript"
    np.testing.assert_array_equal(answer(model), expected(network))
    read_only = ROWS.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(model.run({"x": read_only}, ["probabilities"])[0], expected(network))


def test_an_exported_program_brings_its_contract(program: Path, network: torch.nn.Module) -> None:
    model = loaded(program)
    contract = model.contract()
    assert [(spec.name, spec.datatype, spec.shape) for spec in contract.inputs] == [("x", "FP32", (-1, 4))]
    assert [(spec.datatype, spec.shape) for spec in contract.outputs] == [("FP32", (-1, 3))]
    np.testing.assert_array_equal(answer(model), expected(network))


def test_several_inputs_and_outputs_keep_their_names_and_order(tmp_path: Path) -> None:
    exported = torch.export.export(Two(), (torch.zeros(3), torch.zeros(3)))
    torch.export.save(exported, tmp_path / "model.pt2")
    model = loaded(tmp_path)
    first, second = (spec.name for spec in model.contract().outputs)
    given = {"b": np.array([4, 5, 6], np.float32), "a": np.array([1, 2, 3], np.float32)}
    assert [value.tolist() for value in model.run(given, [second, first])] == [[4, 10, 18], [5, 7, 9]]


class Sizes(torch.nn.Module):
    """Sizes that are worked out from the input's, buffers, a convolution, normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Sequential(
            torch.nn.Conv1d(1, 2, 3), torch.nn.BatchNorm1d(2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(4)
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        twice = torch.cat([x, x])
        return self.inner(twice[:, None, :]).flatten(1), twice[: x.shape[0] * 2 - 1].reshape(-1) + x.shape[
            0
        ] // 2


@pytest.mark.parametrize("names", [("product", "sum"), ("sum", "product"), ("total", "times")])
def test_a_dictionary_of_torchscript_is_read_by_its_names_where_the_contract_has_them(
    names: tuple[str, str], tmp_path: Path
) -> None:
    """Names of the contract's own are those of its places."""
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]])
    torch.jit.trace(Two(), (a, b), strict=False).save(tmp_path / "model.pt")
    spec = {"datatype": "FP32", "shape": [-1, 2]}
    stated = {
        "inputs": [{"name": name, **spec} for name in "ab"],
        "outputs": [{"name": name, **spec} for name in names],
    }
    (tmp_path / "contract.json").write_text(json.dumps(stated))
    first, second = loaded(tmp_path).run({"a": a.numpy(), "b": b.numpy()}, names)
    total, product = [[6.0, 9.0]], [[5.0, 14.0]]
    assert [first.tolist(), second.tolist()] == (
        [product, total] if names[0] == "product" else [total, product]
    )


def test_a_tensor_that_is_answered_twice_has_two_names(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(Again(), (torch.from_numpy(ROWS),)), tmp_path / "model.pt2")
    model = loaded(tmp_path)
    names = [spec.name for spec in model.contract().outputs]
    assert names == ["mul", "mul_2", "mul_1", "mul_3"]
    answers = model.run({"x": ROWS}, names)
    for answered, factor in zip(answers, (2, 2, 4, 2), strict=True):
        np.testing.assert_array_equal(answered, ROWS * factor)


def test_a_program_with_sizes_that_are_worked_out_passes_its_vetting(tmp_path: Path) -> None:
    network = Sizes().eval()
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(network, (torch.zeros(3, 4),), dynamic_shapes={"x": {0: rows}})
    torch.export.save(exported, tmp_path / "model.pt2")
    model = loaded(tmp_path)
    names = [spec.name for spec in model.contract().outputs]
    mine = model.run({"x": ROWS}, names)
    with torch.inference_mode():
        for value, wanted in zip(mine, network(torch.from_numpy(ROWS)), strict=True):
            np.testing.assert_allclose(value, wanted.numpy(), rtol=1e-6)


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["script", "program"])
def test_half_precision_answers_in_the_contracts_type(
    kind: str, precision: Any, request: pytest.FixtureRequest, network: torch.nn.Module
) -> None:
    folder = request.getfixturevalue(kind)
    value = answer(loaded(folder, LoadOptions(threads=1, precision=precision)))
    assert value.dtype == np.float32
    assert np.abs(value - expected(network)).max() > 0
    np.testing.assert_allclose(value, expected(network), atol=0.02)


def test_a_program_of_bfloat16_tensors_is_served(tmp_path: Path) -> None:
    given = (torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16))
    torch.export.save(torch.export.export(Two(), given), tmp_path / "model.pt2")
    model = loaded(tmp_path)
    contract = model.contract()
    assert {spec.datatype for spec in (*contract.inputs, *contract.outputs)} == {"BF16"}
    values = np.array([1, 2, 3], contract.inputs[0].dtype)
    total = model.run({"a": values, "b": values}, [contract.outputs[0].name])[0]
    assert (total.dtype, total.tolist()) == (values.dtype, [2, 4, 6])


@pytest.mark.parametrize("kind", ["script", "program"])
def test_without_a_gpu_cuda_is_refused_with_a_sentence(kind: str, request: pytest.FixtureRequest) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = request.getfixturevalue(kind)
    reason, message = refusal(lambda: loaded(folder, LoadOptions(threads=1, device="cuda")))
    assert (reason, "torch sees no GPU here" in message) == ("LoadFailed", True)


@pytest.mark.parametrize("kind", ["script", "program"])
def test_a_model_in_memory_needs_no_file(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    path = next(folder.glob("model.*"))
    before, held = answer(loaded(folder)), path.read_bytes()
    path.write_bytes(b"encrypted")
    assert answer(loaded(path, opened=lambda _: held)).tolist() == before.tolist()


def test_torchscript_without_a_contract_shows_one_to_write(script: Path) -> None:
    (script / "contract.json").unlink()
    reason, message = refusal(lambda: loaded(script))
    assert reason == "InvalidModel"
    assert '"inputs": [{"name": "x"' in message


def test_a_missing_torch_names_its_extra(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = detect(script, Stage.LOAD)
    monkeypatch.delitem(sys.modules, "pilotage_runtime.loaders.torch", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert refusal(lambda: by_format.load(found, OPTIONS))[1].endswith("pip install 'pilotage[torch]'")


class Weapon:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["state_dict", "module", "old state_dict", "safetensors", "weapon"])
def test_what_has_no_graph_is_refused_with_the_command_that_exports_it(
    network: torch.nn.Module, tmp_path: Path, kind: str
) -> None:
    path, fired = tmp_path / "model.pt", tmp_path / "fired"
    if kind == "safetensors":
        save_file(network.state_dict(), path)
    elif kind == "weapon":
        torch.save({"weights": Weapon(fired)}, path)
    elif kind == "module":
        torch.save(network, path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "state_dict")
    reason, message = refusal(lambda: loaded(path))
    assert reason == "UnknownFormat"
    assert "without the network's graph" in message
    assert "torch.export.save(torch.export.export(model" in message
    assert not fired.exists()


def changed(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Write an archive anew with some of its files changed."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def edited(name: str, change: Callable[[Any], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(members: dict[str, bytes]) -> None:
        document = json.loads(members[name])
        change(document)
        members[name] = json.dumps(document).encode()

    return apply


def hostile(fired: Path) -> dict[str, Callable[[dict[str, bytes]], None]]:
    weapon = io.BytesIO()
    torch.save(Weapon(fired), weapon)
    code = f"__import__('os').mkdir({str(fired)!r})"
    program, weights = "model/models/model.json", "model/data/weights/model_weights_config.json"

    def size(text: str) -> Callable[[Any], None]:
        def change(document: Any) -> None:
            sizes = document["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
            sizes[0]["as_expr"]["expr_str"] = text

        return change

    def pickled(members: dict[str, bytes]) -> None:
        edited(weights, lambda config: config["config"]["linear.bias"].update(use_pickle=True))(members)
        members["model/data/weights/weight_1"] = weapon.getvalue()

    return {
        "a size": edited(program, size(code)),
        "a size in disguise": edited(program, size(f"Symbol('s0').__class__.__base__ or {code}")),
        "a symbol's name": edited(program, size(f'Symbol("{code}", integer=True)')),
        "a guard": edited(program, lambda stated: stated.update(guards_code=[f"{code} is None"])),
        "a pickled weight": pickled,
        "a pickled sample": lambda members: members.update(
            {"model/data/sample_inputs/model.pt": weapon.getvalue()}
        ),
        "legacy weights": lambda members: members.update({"model/data/weights/model.pt": weapon.getvalue()}),
        "an operator": edited(
            program,
            lambda stated: stated["graph_module"]["graph"]["nodes"][0].update(target="torch.hub.load"),
        ),
        "a file as a tensor": edited(
            program,
            lambda stated: stated["graph_module"]["graph"]["nodes"][0].update(
                target="torch.ops.aten.from_file.default"
            ),
        ),
        "a tree": edited(
            program,
            lambda stated: stated["graph_module"]["module_call_graph"][0]["signature"].update(
                out_spec=json.dumps(
                    [1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}]
                )
            ),
        ),
    }


@pytest.mark.parametrize("where", list(hostile(Path("unused"))))
def test_nothing_of_an_exported_program_runs_as_python(program: Path, where: str) -> None:
    fired = program.parent / f"fired-{program.name}"
    changed(program / "model.pt2", hostile(fired)[where])
    if where in ("a guard", "a pickled sample", "legacy weights"):  # these are left out
        answer(loaded(program))
    else:
        assert refusal(lambda: loaded(program))[0] == "InvalidModel"
    assert not fired.exists()


def test_the_same_file_does_run_as_python_in_torch_itself(program: Path) -> None:
    """The control: a torch that has become safe would make the vetting needless."""
    fired = program / "fired"
    changed(program / "model.pt2", hostile(fired)["a size"])
    with pytest.raises(Exception):  # noqa: B017 - the size is no size after all
        torch.export.load(program / "model.pt2")
    assert fired.exists()


def test_machine_code_in_an_archive_is_refused(program: Path) -> None:
    changed(program / "model.pt2", lambda members: members.update({"model/data/aotinductor/model/m.so": b""}))
    assert "machine code" in refusal(lambda: loaded(program))[1]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ("torch.from_file('/etc/passwd', False, 9)", "reads or writes files"),
        ("torch.save(x, '/tmp/x')", "reads or writes files"),
        ("ops.c10d.broadcast(x)", "operators of 'c10d'"),
    ],
)
def test_torchscript_that_reaches_outside_is_refused(script: Path, call: str, sentence: str) -> None:
    def reach(members: dict[str, bytes]) -> None:
        name = "model/code/__torch__.py"
        name = name if name in members else next(name for name in members if name.endswith(".py"))
        members[name] += f"  def other(self, x: Tensor) -> Tensor:\n    return {call}\n".encode()

    changed(script / "model.pt", reach)
    reason, message = refusal(lambda: loaded(script))
    assert (reason, sentence in message) == ("InvalidModel", True), message


def test_torchscripts_own_pickle_makes_no_python_object(script: Path) -> None:
    fired = script / "fired"

    def arm(members: dict[str, bytes]) -> None:
        name = next(name for name in members if name.endswith("/data.pkl"))
        members[name] = pickle.dumps(Weapon(fired), protocol=2)

    changed(script / "model.pt", arm)
    assert refusal(lambda: loaded(script))[0] == "InvalidModel"
    assert not fired.exists()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_cut_archive_is_refused(script: Path, share: float) -> None:
    whole = (script / "model.pt").read_bytes()
    (script / "model.pt").write_bytes(whole[: int(len(whole) * share)])
    assert refusal(lambda: loaded(script))[0] == "InvalidModel"
