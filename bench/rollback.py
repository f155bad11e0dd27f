"""How long a bad version keeps its traffic, on a real cluster.

    python -m bench.rollback [--runs 5] [--keep]

For an error-rate fault and a latency fault: seconds from the first bad answer that a client saw to weight 0 in the
routes (`status.rollback.trafficRevertedAt`), bad answers in all, and those that came after weight 0. The load is
50 requests/s through the gateway, the canary has 20 %, scrapes come every 5 s; the SLO has its default settings
(availability 99.9 %), and for the latency fault 250 ms for 99 %. A good version is rolled out once, first: it and the
rollbacks themselves must lose no request.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from demo import site as sites
from demo import story
from demo.site import Site
from pilotage_dev.cluster import choose_cluster
from pilotage_dev.cluster import cluster as cluster_of

FAULTS = {"errors": "fraud/bad-errors", "latency": "fraud/bad-latency"}
SLOW_SECONDS = 0.25


def main() -> int:
    """Measure, print a table, and fail if the target of the errors' median (15 s) is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5, help="runs of each fault (default 5)")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    options = parser.parse_args()
    cluster = cluster_of(choose_cluster().choice)
    try:
        return _measure(sites.prepare(cluster, print), options.runs)
    finally:
        if not options.keep:
            cluster.down()


def _measure(site: Site, runs: int) -> int:
    manifest = sites.example()
    manifest["spec"]["rollout"] |= {"steps": [{"weight": 20, "holdSeconds": 60}], "bakeSeconds": 10}
    site.apply(manifest)
    site.ready(story.NAME)
    rows: list[tuple[str, float, int, int]] = []
    with story.load(site, slow_after_seconds=SLOW_SECONDS) as traffic:
        time.sleep(3)
        good = story.change(site, traffic, "good", version="fraud/2", until="Stable", say=print)
        for fault, version in FAULTS.items():
            for run in range(1, runs + 1):
                # A new token re-arms the same content under a new revision.
                site.edit(story.NAME, {"rollout": {"retryToken": f"{fault}-{run}-{time.time():.0f}"}})
                bad = story.change(site, traffic, fault, version=version, until="RolledBack", say=print)
                seconds = bad.seconds_to_revert
                assert seconds is not None
                assert bad.first_bad is not None
                late = sum(map(traffic.bad, traffic.between(bad.first_bad + seconds + 1.0, bad.ended)))
                rows.append((fault, seconds, bad.failed, late))
                print(f"{fault} run {run}: weight 0 after {seconds:.1f} s, {bad.failed} bad answers")
                site.serve(story.NAME, "fraud/2")
                site.ready(story.NAME)
                time.sleep(5)
    print(f"\ngood rollout: {good.failed} of {good.sent} requests bad")
    print("fault     median s  (min to max)     bad answers        sent 1 s after weight 0 and bad")
    for fault in FAULTS:
        mine = [row for row in rows if row[0] == fault]
        seconds = [row[1] for row in mine]
        print(
            f"{fault:<9} {statistics.median(seconds):8.1f}  ({min(seconds):.1f} to {max(seconds):.1f})   "
            f"{[row[2] for row in mine]}   {[row[3] for row in mine]}"
        )
    errors = statistics.median(row[1] for row in rows if row[0] == "errors")
    return 0 if errors <= 15 and good.failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
