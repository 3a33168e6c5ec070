"""What a stage's `work` is given beside the parameters."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from self_reward.models.model import Job
from self_reward.rows import Row
from self_reward.run.checkout import Checkout
from self_reward.types import Json

R = TypeVar("R", bound=Row)

log = logging.getLogger("self_reward")


@dataclass(eq=False, kw_only=True)
class Run(Checkout):
    """A checkout with a place for outputs.

    `job`: the folder of partial results, which survives a kill, the shard, and the parameter `seed` made different for
    each stage and iteration, so that no two sample with the same random numbers; `counts`: numbers for the summary, the
    commit message and the manifest; `details`: anything else for the manifest.
    """

    job: Job
    counts: Json = field(default_factory=dict)
    details: Json = field(default_factory=dict)
    log = log

    def output(self, name: str) -> Path:
        """Where to write the output `name`."""
        path = self.folder / "outputs" / self.inputs.outputs[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def rows(self, name: str, kind: type[R], max_bad_rows: float) -> Iterator[R]:
        """The good rows of the generated file `name`. Bad ones are left out, counted by reason in the counts and
        details, and shown; more than `max_bad_rows` of them end the stage when the file's end is reached."""
        from self_reward.repository import jsonl

        bad = jsonl.Bad()
        path, repository_path = self.input(name), self.inputs.paths[name]
        yield from jsonl.read_generated(path, kind, bad, max_bad_rows=max_bad_rows)
        if bad.reasons:
            bad.places = [place.replace(str(path), repository_path) for place in bad.places]
            self.log.warning("%s: %s; they are left out", repository_path, bad)
            self.counts["bad_rows"] = self.counts.get("bad_rows", 0) + bad.reasons.total()
            self.details.setdefault("bad_rows", {})[repository_path] = {
                "rows": bad.rows,
                "reasons": dict(bad.reasons),
                "first": bad.places,
            }
