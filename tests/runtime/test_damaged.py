"""Damaged files of models end no worker: each is refused with a sentence, or served."""

import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import catboost as cb
import lightgbm as lgb
import numpy as np
import pandas as pd
import pytest
import xgboost as xgb

from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import by_format, ubjson, xgboost_document
from pilotage_runtime.loaders.base import LoadOptions
from pilotage_runtime.trial import Limits, Trials
from tests.runtime.conftest import ROOT, Servers
from tests.runtime.test_tabular import CAT, NUMBERS, TARGET, THREE, THREE_CLASSES, TREES, refusal

SEED = 20
# As the loader does, but without the trial: told before each file, so that a death says which one it was.
ONE_AFTER_ANOTHER = """
import os, sys
from pathlib import Path
import numpy as np
from pilotage_runtime.failure import StartFailure
from pilotage_runtime.formats import ModelFile
from pilotage_runtime.loaders import by_format
from pilotage_runtime.loaders.base import LoadOptions

# Libraries print on what they find.
told = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
form = sys.argv[1]
for path in sys.stdin.read().splitlines():
    print(path, end=" ", flush=True, file=told)
    try:
        model = by_format.build(ModelFile(Path(path), form), LoadOptions(threads=1))
        contract = model.contract()
        shape = (100, contract.inputs[0].shape[1])
        rows = np.random.default_rng(7).normal(size=shape) * 10
        rows[0], rows[1] = 0, np.nan
        names = [spec.name for spec in contract.outputs]
        model.run({"X": rows.astype(contract.inputs[0].dtype)}, names)
        print("served", flush=True, file=told)
    except StartFailure:
        print("refused", flush=True, file=told)
    except Exception:
        print("failed", flush=True, file=told)
"""


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Change, remove or repeat a few bytes, or cut the file."""
    changed, way = bytearray(content), chance.randrange(6)
    if way == 0:
        return content[: chance.randrange(len(content) // 2, len(content))]
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(len(changed))
        match way:
            case 1:
                changed[at] = chance.randrange(256)
            case 2:
                changed[at] ^= 1 << chance.randrange(8)
            case 3:
                changed[at : at + 4] = chance.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)])
            case 4:
                del changed[at : at + chance.choice([1, 4, 8])]
            case _:
                changed[at:at] = changed[at : at + chance.choice([1, 4, 9])]
    return bytes(changed)


def outcomes(form: str, paths: list[Path]) -> dict[Path, str]:
    """Load and ask each in a process that is started anew where a file has ended it."""
    found: dict[Path, str] = {}
    while left := [path for path in paths if path not in found]:
        done = subprocess.run(
            [sys.executable, "-c", ONE_AFTER_ANOTHER, form],
            input="\n".join(map(str, left)),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
        )
        for line in done.stdout.splitlines():
            path, _, outcome = line.partition(" ")
            found[Path(path)] = outcome or f"died: {done.returncode}"
        assert done.returncode <= 0, done.stderr[-2000:]
    return found


def tables() -> tuple[pd.DataFrame, np.ndarray]:
    chance = np.random.default_rng(7)
    table = pd.DataFrame(chance.normal(size=(300, 3)), columns=list("abc"))
    table["kind"] = pd.Categorical(np.array(["red", "green", "blue"] * 100))
    table["code"] = pd.Categorical(np.arange(300) % 17)
    return table, table["a"].to_numpy() + np.arange(300) % 17


def boosters() -> dict[str, xgb.Booster]:
    """One of each kind that XGBoost writes differently."""
    table, target = tables()
    rows = np.random.default_rng(7).normal(size=(300, 4))
    number = rows[:, 0] + rows[:, 1] ** 2
    kind = (number > 0).astype(int) + (number > 1)
    plain, classes = xgb.DMatrix(rows, number), xgb.DMatrix(rows, kind)
    both = xgb.DMatrix(rows, np.stack((number, -number), axis=1))
    categories = xgb.DMatrix(table, target, enable_categorical=True)
    stated: dict[str, tuple[dict[str, Any], xgb.DMatrix, int]] = {
        "numbers": ({}, plain, 5),
        "pruned": ({"gamma": 5, "tree_method": "exact"}, plain, 5),
        "by loss": ({"grow_policy": "lossguide", "max_leaves": 7}, plain, 5),
        "dart": ({"booster": "dart", "rate_drop": 0.3}, plain, 5),
        "linear": ({"booster": "gblinear"}, plain, 5),
        "forest": ({"num_parallel_tree": 3, "subsample": 0.7}, plain, 3),
        "two targets": ({}, both, 3),
        "vector leaves": ({"multi_strategy": "multi_output_tree"}, both, 3),
        "classes": ({"objective": "multi:softprob", "num_class": 3}, classes, 3),
        "categories": ({"max_cat_to_onehot": 4}, categories, 4),
        "one leaf": ({"gamma": 1e9}, plain, 2),
        "no tree": ({}, plain, 0),
    }
    return {
        name: xgb.train({"nthread": 1, **parameters}, data, rounds)
        for name, (parameters, data, rounds) in stated.items()
    }


@pytest.fixture(scope="module")
def trained() -> dict[str, xgb.Booster]:
    return boosters()


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_what_xgboost_writes_passes_its_vetting(trained: dict[str, xgb.Booster], form: str) -> None:
    for booster in trained.values():
        xgboost_document.vet(bytes(booster.save_raw(form)))


def test_what_an_older_xgboost_wrote_passes_too(trained: dict[str, xgb.Booster]) -> None:
    document = json.loads(trained["numbers"].save_raw("json"))
    # Before 1.6
    del document["learner"]["gradient_booster"]["model"]["gbtree_model_param"]["num_parallel_tree"]
    xgboost_document.vet(json.dumps(document).encode())


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_no_damage_to_an_xgboost_file_gets_through_to_xgboost(
    trained: dict[str, xgb.Booster], form: str, tmp_path: Path
) -> None:
    wholes = [bytes(one.save_raw(form)) for name, one in trained.items() if name != "linear"]
    survives("XGBoost", wholes, 330, tmp_path)


def test_no_damage_to_a_lightgbm_file_gets_through_to_lightgbm(tmp_path: Path) -> None:
    whole = lgb.LGBMClassifier(**TREES, verbose=-1).fit(THREE, THREE_CLASSES).booster_.model_to_string()
    survives("LightGBM", [whole.encode()], 300, tmp_path)


def survives(form: str, wholes: list[bytes], count: int, folder: Path) -> None:
    print("seed", SEED)
    chance = random.Random(SEED)
    paths = [folder / f"{at}.model" for at in range(count)]
    for at, path in enumerate(paths):
        path.write_bytes(damaged(wholes[at % len(wholes)], chance))
    found = outcomes(form, paths)
    told = Counter(found.values())
    assert told["refused"], told
    assert set(told) <= {"refused", "served", "failed"}, {
        path: one for path, one in found.items() if one.startswith("died")
    }


@pytest.fixture(scope="module")
def of_catboost(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Damaged files by what they do to CatBoost, of which a few in a thousand end it."""
    print("seed", SEED)
    folder, chance = tmp_path_factory.mktemp("catboost"), random.Random(SEED)
    trained = cb.CatBoostClassifier(**CAT).fit(THREE, THREE_CLASSES)
    # Else no two files are alike, and the seed is worth nothing.
    for varying in ("model_guid", "train_finish_time"):
        trained.get_metadata()[varying] = "0"
    trained.save_model(str(folder / "whole"))
    whole = (folder / "whole").read_bytes()
    found = defaultdict[str, list[Path]](list)
    for first in range(0, 5000, 500):
        paths = [folder / f"{at}.cbm" for at in range(first, first + 500)]
        for path in paths:
            path.write_bytes(damaged(whole, chance))
        for path, outcome in outcomes("CatBoost", paths).items():
            found[outcome.partition(":")[0]].append(path)
        # What an earlier file did to the memory of the same process may have ended it.
        found["died"] = [path for path in found["died"] if dies_alone(path)]
        if found["died"]:
            return found
    raise AssertionError("no file ends CatBoost any more: is the trial still needed?")


def dies_alone(path: Path) -> bool:
    return all(outcomes("CatBoost", [path])[path].startswith("died") for _ in range(2))


def test_whatever_ends_catboost_ends_the_trial_and_not_this_process(
    of_catboost: dict[str, list[Path]],
) -> None:
    for path in of_catboost["died"][:2]:
        _, message = refusal(lambda path=path: load(path))
        assert message.startswith(f"{path.name} crashes catboost (SIG"), message
    assert refusal(lambda: load(of_catboost["refused"][0]))[1].startswith("catboost refuses")
    load(of_catboost["served"][0]).close()


def load(path: Path, trials: Trials | None = None, **content: Any) -> Any:
    return by_format.load(ModelFile(path, "CatBoost", **content), LoadOptions(threads=1), trials)


STAND_IN = """
import os, signal, time

class CatBoostError(Exception):
    pass

class CatBoost:
    def load_model(self, blob):
        match blob:
            case b"abort":
                os.abort()
            case b"loop":
                while True:
                    pass
            case b"sleep":
                time.sleep(1000)
            case b"memory":
                bytearray(2**40)
            case b"print":
                print("noise", flush=True)
            case b"exit":
                os._exit(3)
            case b"kill":
                os.kill(os.getpid(), signal.SIGKILL)
        raise CatBoostError(blob.decode())
"""


@pytest.mark.parametrize(
    ("deed", "reason", "message"),
    [
        (b"abort", "InvalidModel", "m.cbm crashes catboost (SIGABRT)"),
        (b"loop", "InvalidModel", "m.cbm keeps catboost busy for more than 3 s of processor time"),
        (b"memory", "InvalidModel", "m.cbm takes more than 64 MiB to load"),
        (b"exit", "InvalidModel", "m.cbm ends catboost with exit status 3"),
        (b"print", "InvalidModel", "catboost refuses m.cbm: print"),
        (
            b"kill",
            "LoadFailed",
            "m.cbm was being tried with catboost when SIGKILL came, as it does without memory",
        ),
    ],
)
def test_how_the_trial_ended_is_said(
    deed: bytes, reason: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "catboost.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'runtime'}")
    trials = Trials(limits=Limits(cpu_seconds=3, memory_bytes=64 * 2**20))
    # The bytes come from memory, as those of an encrypted model: there is no such file.
    assert refusal(lambda: load(tmp_path / "m.cbm", trials, content=deed)) == (reason, message)


def test_a_trial_that_only_waits_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "catboost.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'runtime'}")
    monkeypatch.setattr("pilotage_runtime.trial._WALL_SECONDS_PER_CPU_SECOND", 1)
    trials = Trials(limits=Limits(cpu_seconds=2))
    reason, message = refusal(lambda: load(tmp_path / "m.cbm", trials, content=b"sleep"))
    assert (reason, message) == ("LoadFailed", "m.cbm keeps catboost busy for more than 2 s")


def test_workers_try_the_same_content_once(tmp_path: Path, serve: Servers) -> None:
    trained = cb.CatBoostRegressor(**CAT).fit(NUMBERS, TARGET)
    (tmp_path / "m").mkdir()
    trained.save_model(str(tmp_path / "m" / "model.cbm"))
    server = serve(tmp_path / "m", "m", workers=2)
    assert server.infer(row()).status_code == 200
    assert server.log().count('"model ready"') == 2
    assert server.log().count('"tried in a process of its own"') == 1


def test_one_model_that_crashes_its_library_does_not_stop_the_others(
    of_catboost: dict[str, list[Path]], tmp_path: Path, serve: Servers
) -> None:
    repository = tmp_path / "models"
    bad, good = repository / "bad" / "1", repository / "m" / "1"
    bad.mkdir(parents=True)
    good.mkdir(parents=True)
    (bad / "model.cbm").write_bytes(of_catboost["died"][0].read_bytes())
    xgb.XGBRegressor(**TREES).fit(NUMBERS, TARGET).save_model(good / "model.ubj")
    server = serve(repository, "m")
    assert server.infer(row()).status_code == 200
    listed = server.client.post("/v2/repository/index").json()
    assert {one["name"]: one["state"] for one in listed} == {"bad": "UNAVAILABLE", "m": "READY"}
    assert "model.cbm crashes catboost (SIG" in str(listed)


def row() -> dict[str, Any]:
    return {"inputs": [{"name": "X", "datatype": "FP32", "shape": [1, 10], "data": [0] * 10}]}


def changed(document: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> bytes:
    copy = json.loads(json.dumps(document))
    change(copy)
    return json.dumps(copy).encode()


def trees(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["learner"]["gradient_booster"]["model"]["trees"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: trees(one)[0]["left_children"].__setitem__(0, 0), "children should be 1 to"),
        (
            lambda one: trees(one)[1]["right_children"].__setitem__(0, 10**6),
            "tree 1: children should be 1 to",
        ),
        (lambda one: trees(one)[0]["right_children"].__setitem__(0, 1), "lead back or together"),
        (lambda one: trees(one)[0]["split_indices"].__setitem__(0, 4), "split_indices should be 0 to 3"),
        (lambda one: trees(one)[0]["split_conditions"].pop(), "split_conditions should be"),
        (lambda one: trees(one)[0]["parents"].__setitem__(1, -5), "parents should be 0 to"),
        (lambda one: trees(one)[0]["split_type"].__setitem__(0, 1), "a split by categories has none"),
        (lambda one: trees(one)[0]["left_children"].__setitem__(0, "1"), "left_children should be numbers"),
        (lambda one: trees(one).pop(), "it should hold 5 trees"),
        (lambda one: one["learner"]["learner_model_param"].update(num_feature="99999999999"), "num_feature"),
        (lambda one: one["learner"].update(gradient_booster={"name": "gbdt"}), "'gbdt' is no booster"),
    ],
)
def test_an_xgboost_tree_that_leads_nowhere_is_refused_before_xgboost_sees_it(
    trained: dict[str, xgb.Booster], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    document = json.loads(trained["numbers"].save_raw("json"))
    with pytest.raises(ValueError, match=message):
        xgboost_document.vet(changed(document, change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "should follow"),
        (b"{L" + (2**62).to_bytes(8, "big"), "no length that can be"),
        (b"[$d#L" + (2**61).to_bytes(8, "big"), "should follow"),
        (b"[#L" + (10**6).to_bytes(8, "big"), "no length that can be"),
        (b"[#L" + (-1 % 2**64).to_bytes(8, "big"), "no length that can be"),
        (b"[$S#L" + bytes(8), "no type that XGBoost writes"),
        (b"[i\x01]", "no size"),
        (b"{}{", "1 more follow"),
        (b"{" + 2 * (b"L" + bytes(7) + b"\x01aT") + b"}", "twice"),
        ((b"[#L" + bytes(7) + b"\x01") * 100 + b"T", "nested more than 32 deep"),
        (b"SL" + bytes(7) + b"\x01\xff", "not UTF-8"),
    ],
)
def test_ubjson_that_lies_about_its_sizes_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ubjson.MalformedUBJSONError, match=message):
        ubjson.read(content)


def test_without_its_vetting_the_same_damage_ends_the_process(
    trained: dict[str, xgb.Booster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Break it on purpose: the files above are deadly, and it is the vetting that stops them."""
    whole, chance = bytes(trained["numbers"].save_raw("ubj")), random.Random(SEED)
    paths = [tmp_path / f"{at}.model" for at in range(60)]
    for path in paths:
        path.write_bytes(damaged(whole, chance))
    broken = ONE_AFTER_ANOTHER.replace(
        "form = ",
        "from pilotage_runtime.loaders import xgboost_document\nxgboost_document.vet = len\nform = ",
    )
    died = subprocess.run(
        [sys.executable, "-c", broken, "XGBoost"],
        input="\n".join(map(str, paths)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )
    assert died.returncode < 0, died.stdout[-500:]
