"""The iptables rules of a node: KUBE-… from kubelet and kube-proxy, CNI-… from the network plugins."""

from __future__ import annotations

import re
import subprocess

from pilotage_dev.errors import StackError

COMMANDS = ("iptables", "ip6tables")
_CHAIN = re.compile(r"(KUBE|CNI)-[\w-]+")


def removal(saved: str) -> str:
    """Return the input for `iptables-restore --noflush` that undoes a node's rules and no others.

    `saved` is what `iptables-save` printed. The result is empty if there is nothing to remove.
    """
    script: list[str] = []
    table = ""
    rules: list[str] = []
    chains: list[str] = []
    for line in saved.splitlines():
        if line.startswith("*"):
            table, rules, chains = line, [], []
        elif line.startswith(":"):
            name = line[1:].split()[0]
            if _CHAIN.fullmatch(name):
                chains.append(name)
        elif line.startswith("-A "):
            _, chain, rest = line.split(" ", 2)
            target = re.search(r"(?:^| )-[jg] (\S+)", rest)
            if not _CHAIN.fullmatch(chain) and target and _CHAIN.fullmatch(target[1]):
                rules.append(f"-D {chain} {rest}")
        elif line == "COMMIT" and (rules or chains):
            flushes = [f"-F {name}" for name in chains]
            deletions = [f"-X {name}" for name in chains]
            script += [table, *rules, *flushes, *deletions, "COMMIT"]
    return "\n".join([*script, ""]) if script else ""


def present() -> bool:
    """Tell whether a node's rules are there, ours or another's."""
    return any(removal(_saved(command)) for command in COMMANDS)


def remove() -> None:
    """Remove a node's rules."""
    for command in COMMANDS:
        script = removal(_saved(command))
        if script:
            done = subprocess.run(
                [f"{command}-restore", "--noflush", "--wait"],
                input=script,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise StackError(
                    f"{command}-restore could not remove the node's rules: {done.stderr.strip()}"
                )


def _saved(command: str) -> str:
    try:
        return subprocess.run([f"{command}-save"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""  # not installed yet: then nobody has rules
