"""merge: the shards of 02_gen_responses or 03_gen_scores, checked and joined to the stage's one commit.

Takes the stage's name and the flags that its shards were given, with --shards n instead of --shard i/n. The rows are in
the order of the stage's input. The branches of the shards are removed.
Reads   the branches shards/<key>/<i>-of-<n>, the stage's input
Writes  M{k}/generated/responses.jsonl or M{k}/generated/scores.jsonl
Run     python stages/merge.py 02_gen_responses --shards 4 --data_repo oxen://HOST/NAMESPACE/NAME --iteration 0
"""

import sys

from self_reward import parameters
from self_reward.errors import UserError
from self_reward.repository import artifacts
from self_reward.run import shards, stage

NAMES = ("02_gen_responses", "03_gen_scores")


def work(p, run):
    from self_reward.repository import jsonl
    from self_reward.run import loading

    of_scores = run.stage == "03_gen_scores"
    source, output = ("responses", "scores") if of_scores else ("prompts", "responses")
    files, manifests = shards.pull(
        run.store,
        run.key,
        p.shards,
        stage=run.stage,
        iteration=p.iteration,
        path=run.inputs.outputs[output],
        parameters=parameters.key_parameters(p),
        to=run.folder / "shards",
        progress=run.progress,
    )
    columns = artifacts.RESPONSE_COLUMNS if of_scores else artifacts.PROMPT_COLUMNS
    ids = [row["prompt_id"] for row in loading.rows(run, p, source, columns)]
    rows = shards.join([list(jsonl.read(file)) for file in files], ids, 1 if of_scores else p.responses_per_prompt)
    jsonl.write(run.output(output), rows)
    engines = sorted({manifest["details"]["sampler"] for manifest in manifests})
    run.details["sampler"] = ", ".join(engines)
    run.details["shards"] = [{"read_at": m["read_at"], "seconds": m["seconds"]} for m in manifests]
    if of_scores:
        run.counts |= shards.score_counts(rows)
        run.details["unreadable_samples"] = shards.unreadable_samples(rows)
    else:
        run.counts["prompts"] = len(ids)
        run.counts |= shards.response_counts(rows)


def stop_rule(p, counts, details):
    """That of 03_gen_scores; 02_gen_responses has none."""
    from self_reward.method import stop

    if "votes" not in counts:
        return None
    return stop.parse_rate(
        counts["votes"] - counts["unreadable_votes"],
        counts["votes"],
        min_parse_rate=p.min_parse_rate,
        samples=details["unreadable_samples"],
    )


def main() -> int:
    words = sys.argv[1:]
    if words and words[0] in NAMES:
        del sys.argv[1]
        return stage.main(words[0], work, __doc__, stop_rule, merge=True)
    if words and words[0] in ("-h", "--help"):
        return stage.main(NAMES[0], work, __doc__, merge=True)

    def refuse() -> None:
        raise UserError(f"expected the stage to merge first, {' or '.join(NAMES)}; found {words[:1] or 'nothing'}")

    return stage.guard(refuse, "merge")


if __name__ == "__main__":
    sys.exit(main())
