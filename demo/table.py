"""Print and plot what each checkpoint of the demo scores: `python -m demo.table --data_repo demo-data`.

Reads M{k}/eval/{sft,dpo}.json as 06_evaluate writes them. Writes a PNG beside the data repository, or a PNG or SVG to
--plot (such as docs/images/learning.svg). Evaluations on a server are fetched first, and the PNG goes to the working
folder.
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from self_reward.errors import UserError
from self_reward.run import process
from self_reward.store import is_remote, open_store

MEASURES = ("reward", "reward_without_form", "accuracy", "form")
LABELS = {
    "reward": "reward, 0 to 5",
    "reward_without_form": "without the point for form, 0 to 4",
    "accuracy": "right answers",
    "form": "answers of the right form",
}
GREY = "#737b86"  # legible on a white page and on a dark page
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GREY),
    "savefig.transparent": True,
    "legend.framealpha": 0,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "demo",  # the same figures give the same file
}


def read_evaluations(folder: Path, data_repo: str = "") -> list[tuple[str, dict[str, Any]]]:
    """(checkpoint, measurements) of every evaluated checkpoint in `folder`, in training order. Errors name `data_repo`
    if given."""
    evaluated = []
    for path in folder.glob("M*/eval/*.json"):
        name = path.relative_to(folder).as_posix()
        match = re.fullmatch(r"M(\d+)/eval/(sft|dpo)\.json", name)
        if match:
            measured = json.loads(path.read_text(encoding="utf-8"))
            if not set(MEASURES) <= set(measured.get("verifier", {})):
                raise UserError(
                    f"{data_repo or folder}/{name} has no figures of demo.world:verify; evaluate with --verifier "
                    "demo.world:verify"
                )
            evaluated.append(((int(match[1]), match[2] == "dpo"), f"M{match[1]}/{match[2]}", measured))
    if not evaluated:
        raise UserError(f"no M*/eval/*.json in {data_repo or folder}; run the loop first (make demo)")
    return [(name, measured) for _, name, measured in sorted(evaluated, key=lambda entry: entry[0])]


def paper_name(number: int, checkpoint: str) -> str:
    """The paper's name: M1 is the SFT model of the first iteration, and later models count from there."""
    return f"M{number + 1}" if checkpoint in ("M0/sft", *(f"M{k}/dpo" for k in range(number))) else ""


def table(evaluations: list[tuple[str, dict[str, Any]]]) -> str:
    """One line per checkpoint: each measure with its standard error, and the judge against the truth."""
    lines = [
        "checkpoint  paper  reward (of 5)   without form (of 4)  accuracy        form            "
        "judge: r      equal   agrees with ranks"
    ]
    for number, (name, measured) in enumerate(evaluations):
        judge = measured.get("judge", {})
        figures = [_with_error(measured["verifier"][key]) for key in MEASURES]
        lines.append(
            f"{name:<12}{paper_name(number, name):<7}{figures[0]:<16}{figures[1]:<21}{figures[2]:<16}{figures[3]:<16}"
            f"{_number(judge.get('verifier_correlation')):<14}{_number(judge.get('verifier_exact')):<8}"
            f"{_number((judge.get('agreement') or {}).get('pairwise_accuracy'))}"
        )
    return "\n".join(lines)


def change(evaluations: list[tuple[str, dict[str, Any]]], key: str = "reward") -> tuple[float, float]:
    """Last minus first checkpoint, and that difference in standard errors (as of independent samples)."""
    first, last = (evaluations[i][1]["verifier"][key] for i in (0, -1))
    difference = last["mean"] - first["mean"]
    error = (first["se"] ** 2 + last["se"] ** 2) ** 0.5
    return difference, difference / error if error else 0.0


def conclusion(evaluations: list[tuple[str, dict[str, Any]]]) -> str:
    """What the figures say, in words."""
    if len(evaluations) < 2:
        return "One checkpoint only: nothing to compare with."
    lines = []
    for key in ("reward", "reward_without_form", "accuracy"):
        difference, errors = change(evaluations, key)
        lines.append(
            f"{key.replace('_', ' ')}: {difference:+.3f} from {evaluations[0][0]} to {evaluations[-1][0]}, "
            f"{errors:+.1f} standard errors"
        )
    rises = change(evaluations)[1] > 2
    lines.append(
        "Held-out reward rises by more than two standard errors."
        if rises
        else "Held-out reward does not rise by two standard errors."
    )
    return "\n".join(lines)


def plot(evaluations: list[tuple[str, dict[str, Any]]], path: Path) -> None:
    """Write a PNG or SVG: reward and accuracy with 95 % intervals, and how the judge agrees with the truth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [
        name + (f"\n({paper})" if (paper := paper_name(i, name)) else "") for i, (name, _) in enumerate(evaluations)
    ]
    with pyplot.rc_context(STYLE):
        figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
        for axis, keys, title in (
            (left, ("reward", "reward_without_form"), "Reward on held-out prompts"),
            (middle, ("accuracy", "form"), "Share of held-out prompts"),
        ):
            for key in keys:
                means = [measured["verifier"][key]["mean"] for _, measured in evaluations]
                errors = [1.96 * measured["verifier"][key]["se"] for _, measured in evaluations]
                axis.errorbar(names, means, yerr=errors, marker="o", capsize=4, label=LABELS[key])
            axis.set_title(title)
        judge = [measured.get("judge", {}) for _, measured in evaluations]
        for key, label in (
            ("verifier_correlation", "correlation with the true score"),
            ("verifier_exact", "share equal to the true score"),
        ):
            values = [float("nan") if j.get(key) is None else j[key] for j in judge]
            right.plot(names, values, marker="o", label=label)
        right.set_title("The model's judgements of its own answers")
        right.set_ylim(0, 1)
        for axis in (left, middle, right):
            axis.legend()
            axis.grid(alpha=0.3)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


def _with_error(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.3f} ± {figure['se']:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def fetch(data_repo: str, to: Path) -> None:
    """Copy the evaluations of a data repository on a server to the folder `to`."""
    store = open_store(data_repo, branch="main", lock_timeout=0, store_timeout=600)
    snapshot = store.resolve()
    if paths := [path for path in snapshot.files if re.fullmatch(r"M\d+/eval/(sft|dpo)\.json", path)]:
        store.pull(snapshot, paths, to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_repo", required=True, help="data repository of the finished loop")
    parser.add_argument("--plot", type=Path, help="PNG or SVG to write; default: a PNG beside the data repository")
    arguments = parser.parse_args()
    if arguments.plot and arguments.plot.suffix not in (".png", ".svg"):
        raise UserError(f"--plot {arguments.plot}: expected a file name that ends with .png or .svg")
    data_repo = arguments.data_repo
    if is_remote(data_repo):
        with tempfile.TemporaryDirectory() as folder:
            fetch(data_repo, Path(folder))
            evaluations = read_evaluations(Path(folder), data_repo)
        beside = Path(data_repo.rstrip("/").rpartition("/")[2])
    else:
        evaluations = read_evaluations(Path(data_repo))
        beside = Path(data_repo).resolve()
    # not inside the repository: the next run would commit it as the user's data
    path = arguments.plot or Path(f"{beside}.png")
    print(table(evaluations))
    print("\nMean ± standard error over", f"{evaluations[0][1]['prompts']} held-out prompts, one answer each.")
    print(conclusion(evaluations))
    plot(evaluations, path)
    print(f"Plot: {path}")


if __name__ == "__main__":
    sys.exit(process.guard(main, "demo"))
