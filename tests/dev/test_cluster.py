from __future__ import annotations

import pytest

from pilotage_dev import cluster, machine
from pilotage_dev.errors import StackError


def test_without_docker_the_local_stack_is_chosen_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_docker_answers", lambda: False)
    monkeypatch.setattr(machine, "shortcoming", lambda: None)
    chosen = cluster.choose_cluster()
    assert chosen.choice is cluster.Choice.LOCAL
    assert chosen.why == "the local stack, because no Docker engine answers"
    assert cluster.cluster(chosen.choice).gateway_url == "http://127.0.0.1:8088"


def test_with_docker_kind_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_docker_answers", lambda: True)
    monkeypatch.setattr(cluster.shutil, "which", lambda _: "/usr/local/bin/kind")
    chosen = cluster.choose_cluster()
    assert chosen.choice is cluster.Choice.KIND
    assert "a Docker engine answers" in chosen.why


def test_docker_without_kind_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_docker_answers", lambda: True)
    monkeypatch.setattr(cluster.shutil, "which", lambda _: None)
    with pytest.raises(StackError, match=r"kind is not installed: see https://kind"):
        cluster.choose_cluster()


def test_an_unknown_system_is_one_sentence_that_says_what_to_get(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_docker_answers", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda _: None)
    with pytest.raises(
        StackError, match="on Debian or Ubuntu, which this system is not: start a Docker engine"
    ):
        cluster.choose_cluster()


def test_without_root_the_sentence_says_sudo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    with pytest.raises(StackError, match="needs root: run the same command with sudo"):
        machine.require_root()
