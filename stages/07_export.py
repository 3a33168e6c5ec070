"""07_export: the merged model of the last iteration, ready to be served. Does nothing with export_merged: false.

Reads   M{k}/models/dpo/final_checkpoint and the checkpoints that it stands on
Writes  M{k}/models/dpo/merged
Run     python stages/07_export.py --data_repo DIR --base_model MODEL --iteration 2
"""

import sys
from pathlib import Path

from self_reward.run import stage


def work(p, run):
    from self_reward.models import checkpoints
    from self_reward.run import loading

    base, adapters = loading.chain(run, p, f"M{p.iteration}/dpo")
    cache = Path(p.cache_dir).expanduser()
    checkpoints.export(
        base,
        adapters,
        run.output("merged"),
        cache_dir=cache,
        keep=p.cache_keep,
        trust_remote_code=p.trust_remote_code,
    )
    run.counts["files"] = sum(1 for path in run.output("merged").rglob("*") if path.is_file())


if __name__ == "__main__":
    sys.exit(stage.main("07_export", work, __doc__))
