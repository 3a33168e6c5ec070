import json
import sys

import pytest

from demo import table
from self_reward.errors import UserError


def measured(reward):
    figure = {"mean": reward, "se": 0.03, "n": 1000}
    return {
        "prompts": 1000,
        "verifier": {key: figure for key in table.MEASURES},
        "judge": {"verifier_correlation": 0.9, "verifier_exact": 0.85, "agreement": {"pairwise_accuracy": 0.8}},
    }


def write(data, **rewards):
    for name, reward in rewards.items():
        path = data / f"M{name[1]}/eval/{name[3:]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(measured(reward)))


def test_checkpoints_are_listed_in_training_order_with_paper_names(tmp_path):
    write(tmp_path, M1_dpo=4.2, M0_dpo=4.1, M0_sft=4.0)
    evaluated = table.read_evaluations(tmp_path)
    assert [name for name, _ in evaluated] == ["M0/sft", "M0/dpo", "M1/dpo"]
    rows = table.table(evaluated).splitlines()[1:]
    assert [row.split()[:3] for row in rows] == [
        ["M0/sft", "M1", "4.000"],
        ["M0/dpo", "M2", "4.100"],
        ["M1/dpo", "M3", "4.200"],
    ]


@pytest.mark.parametrize(
    "last, said", [(4.2, "rises by more than two"), (4.05, "does not rise"), (3.5, "does not rise")]
)
def test_conclusion_follows_from_the_figures(tmp_path, last, said):
    write(tmp_path, M0_sft=4.0, M0_dpo=last)
    evaluated = table.read_evaluations(tmp_path)
    assert table.change(evaluated)[1] == pytest.approx((last - 4.0) / (2 * 0.03**2) ** 0.5)
    assert said in table.conclusion(evaluated)


def test_plot_is_written_beside_the_data_repository(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    write(data, M0_sft=4.0, M0_dpo=4.2)
    before = sorted(data.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["table", "--data_repo", str(data)])
    table.main()
    assert (tmp_path / "data.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(data.rglob("*")) == before
    assert f"Plot: {tmp_path / 'data.png'}" in capsys.readouterr().out


def test_missing_evaluations_are_reported_with_the_command(tmp_path):
    with pytest.raises(UserError, match="make demo"):
        table.read_evaluations(tmp_path)


def test_svg_contains_its_text_and_is_reproducible(tmp_path, monkeypatch):
    data = tmp_path / "data"
    write(data, M0_sft=4.0, M0_dpo=4.2)
    for name in ("one.svg", "two.svg"):
        monkeypatch.setattr(sys, "argv", ["table", "--data_repo", str(data), "--plot", str(tmp_path / name)])
        table.main()
    first = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert first.count("<svg ") == 1 and "Reward on held-out prompts" in first
    assert (tmp_path / "two.svg").read_text(encoding="utf-8") == first
    assert not (tmp_path / "data.png").exists()


def test_unknown_plot_format_is_refused(tmp_path, monkeypatch):
    write(tmp_path, M0_sft=4.0)
    monkeypatch.setattr(sys, "argv", ["table", "--data_repo", str(tmp_path), "--plot", "plot.docx"])
    with pytest.raises(UserError, match="plot.docx: expected a file name that ends with .png or .svg"):
        table.main()
