"""`make demo`: the whole story on a real cluster, and a table of what was seen."""

from __future__ import annotations

import argparse
import sys
import time

from rich.console import Console
from rich.table import Table

from demo import site as sites
from demo import story
from demo.story import Chapter
from pilotage_dev import gobuild
from pilotage_dev.cluster import choose_cluster
from pilotage_dev.cluster import cluster as cluster_of
from pilotage_dev.errors import StackError

console = Console(highlight=False, width=120)


def say(line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def main() -> int:
    """Tell the story; 0 if it went as it should."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    options = parser.parse_args()
    try:
        chosen = choose_cluster()
        say(f"cluster: {chosen.why}")
        cluster = cluster_of(chosen.choice)
        try:
            return _tell(sites.prepare(cluster, say), keep=options.keep)
        finally:
            if not options.keep:
                cluster.down()
    except StackError as error:
        say(str(error))
        return 1


def _tell(site: sites.Site, *, keep: bool) -> int:
    say("== Version 1 is the first and serves all traffic")
    site.apply(sites.example())
    site.ready(story.NAME)
    time.sleep(2)
    with story.load(site) as traffic:
        time.sleep(3)
        chapters = [
            story.change(
                site, traffic, "Version 2 takes over in steps", version="fraud/2", until="Stable", say=say
            ),
            story.change(
                site,
                traffic,
                "Version 3 fails half of its requests",
                version="fraud/bad-errors",
                until="RolledBack",
                say=say,
            ),
        ]
    good, bad = chapters
    _show(chapters)
    if keep:
        _next(site)
    went_well = good.failed == 0 and bad.failed > 0 and bad.seconds_to_revert is not None
    say(
        f"From the first bad answer to weight 0: {bad.seconds_to_revert:.1f} s."
        if went_well
        else "The story did not go as it should: see the table."
    )
    return 0 if went_well else 1


def _show(chapters: list[Chapter]) -> None:
    table = Table(title="What was seen", title_justify="left")
    for column in ("change", "after", "phase", "new version", "sent", "failed"):
        table.add_column(column, justify="left" if column in ("change", "phase") else "right")
    for chapter in chapters:
        for number, part in enumerate(chapter.stretches):
            title = "" if number else chapter.title
            weight, after = f"{part.weight}%", f"{part.began:.1f} s"
            table.add_row(title, after, part.phase, weight, str(part.sent), str(part.failed))
        table.add_row("", "", "in all", "", str(chapter.sent), str(chapter.failed), end_section=True)
    console.print(table)
    evidence = chapters[-1].status.get("rollback", {}).get("evidence", {})
    shown = Table(title="The rollback's evidence (status.rollback.evidence)", title_justify="left")
    shown.add_column("field")
    shown.add_column("value", overflow="fold")
    for name, value in evidence.items():
        shown.add_row(name, str(value))
    console.print(shown)


def _next(site: sites.Site) -> None:
    say(
        f"""Everything is still running. To try next:
  export KUBECONFIG={site.kubeconfig} PATH={gobuild.binary("kubectl").parent}:$PATH
  kubectl get mdep -n {sites.NAMESPACE}
  kubectl describe mdep {story.NAME} -n {sites.NAMESPACE}
  curl -H 'Host: {sites.HOST}' -H 'Content-Type: application/json' -d @{site.models}/requests/fraud.json \\
       {site.cluster.gateway_url}/v2/models/{story.NAME}/infer
  kubectl edit mdep {story.NAME} -n {sites.NAMESPACE}     (set spec.model.uri, or spec.rollout.canaryWeight)
  make down"""
    )


if __name__ == "__main__":
    sys.exit(main())
