"""07_export: the merged model of the last iteration, ready to be served. Does nothing with export_merged: false.

Reads   M{k}/models/dpo/final_checkpoint and all that it is based on
Writes  M{k}/models/dpo/merged
Run     python stages/07_export.py --data_repo DIR --base_model MODEL --iteration 2
"""

from self_reward.parameters.stages import Export
from self_reward.run import stage
from self_reward.run.context import Run


def work(p: Export, run: Run) -> None:
    from self_reward.run import models

    models.export(run, p, f"M{p.iteration}/dpo", run.output("merged"))
    run.counts["files"] = sum(1 for path in run.output("merged").rglob("*") if path.is_file())


if __name__ == "__main__":
    stage.main("07_export", Export, work, __doc__)
