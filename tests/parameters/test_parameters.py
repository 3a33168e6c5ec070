"""Parameters: every source, every problem at once, nothing read from anywhere else."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import yaml

from self_reward.errors import UserError
from self_reward.parameters import generated, sources
from self_reward.parameters.flat import flat, flattened, given, key_parameters, nested
from self_reward.parameters.stages import BY_STEP, BY_TEMPLATE, STAGES, Dpo, Plan

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def parse(stage, doc, argv, environment):
    """The values by flat name, as attributes."""
    return SimpleNamespace(**flattened(sources.parse(STAGES[stage], doc, argv, environment)))


def problems_of(*argv, stage="03_gen_scores", environment=None):
    with pytest.raises(UserError) as caught:
        parse(stage, "doc", list(argv), environment or {})
    return caught.value.problems


def environment(**values):
    return {sources.ENVIRONMENT: json.dumps([{"name": name, "value": value} for name, value in values.items()])}


def test_flags_override_the_file_which_overrides_the_environment(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("judge_votes: 7\njudge_top_p: 0.5\n")
    given = environment(judge_votes="5", judge_top_p="0.4", judge_temperature="0.3", beta="0.2")
    p = parse("03_gen_scores", "", ["--parameter_file", str(file), "--judge_votes", "9"], given)
    assert (p.judge_votes, p.judge_top_p, p.judge_temperature) == (9, 0.5, 0.3)


def test_every_problem_of_every_source_is_reported_at_once(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("jugde_votes: 7\n")
    found = problems_of(
        "--parameter_file", str(file), "--judge_vote", "1", "--judge_top_p", "2", "--beta", "1",
        environment=environment(iteration="x", btea="1"),
    )  # fmt: skip
    text = "\n".join(found)
    assert len(found) == 6
    assert "jugde_votes" in text and "did you mean judge_votes?" in text and str(file) in text
    assert "--judge_vote;" in text
    assert "btea" in text and "did you mean beta?" in text
    assert "judge_top_p = '2' (from --judge_top_p): must be less than or equal to 1" in text
    assert "iteration = 'x' (from SELF_REWARD_PARAMETERS): must be a valid integer" in text
    assert "--beta is not a parameter of this stage, but of plan, 05_dpo" in text


def test_a_name_with_two_values_is_refused():
    twice = {sources.ENVIRONMENT: '[{"name": "seed", "value": "1"}, {"name": "seed", "value": "2"}]'}
    assert "gives seed twice" in problems_of(environment=twice)[0]


@pytest.mark.parametrize("text", ["not json", '{"a": 1}', "{}", '""', "[1]", '[{"value": 1}]'])
def test_broken_environment_is_reported(text):
    assert sources.ENVIRONMENT in problems_of(environment={sources.ENVIRONMENT: text})[0]


@pytest.mark.parametrize(
    "content",
    [
        None,
        "a: [",
        "- 1\n",
        b"\xff\xfe",
        "seed\n",
        "&a [*a]\n",
        "seed: 2000-99-99\n",
        "a: !!python/name:os.x",
        "? [a]\n: 1\n",
        "[" * 5000,
    ],
)
def test_broken_parameter_file_is_reported(tmp_path, content):
    file = tmp_path / "broken.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "broken.yaml" in problems_of("--parameter_file", str(file))[0]


def test_duplicate_name_in_a_file_is_refused_but_last_flag_counts(tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("seed: 1\njudge_votes: 2\nseed: 1\n")
    assert problems_of("--parameter_file", str(file), "--seed", "3", "--seed", "4") == [
        f"parameter file {file} gives seed more than once; keep one",
    ]
    assert parse("03_gen_scores", "", ["--seed", "3", "--force", "--seed", "4"], {}).seed == 4


def test_contradictions_are_reported_except_about_invalid_values():
    found = problems_of("--score_min", "7", "--judge_votes", "x", "--judge_temperature", "0")
    assert len(found) == 2 and "judge_votes = 'x'" in found[0] and "score_min = 7 is above score_max = 5" in found[1]


def test_other_output_paths_must_be_outside_the_repository(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    found = problems_of(
        "--data_repo", f"{tmp_path}/data", "--cache_dir", f"{tmp_path}/data/cache", "--work_dir", f"{tmp_path}/file",
        "--commit_file", str(tmp_path), "--stop_file", str(tmp_path), "--result_file", f"{tmp_path}/data/result",
    )  # fmt: skip
    assert [problem.partition(f" {tmp_path}")[0] for problem in found] == [
        "cache_dir", "work_dir", "commit_file", "result_file", "stop_file", "commit_file and stop_file are both",
    ]  # fmt: skip
    for problem, word in zip(
        found, ("inside the data", "is a file", "is a folder", "inside the data", "is a folder", "each"), strict=True
    ):
        assert word in problem
    assert problems_of("--cache_dir", f"{tmp_path}/file/x/y") == [
        f"cache_dir {tmp_path}/file/x/y: {tmp_path}/file is not a folder"
    ]
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in ("~no-such-user/x", "a\0b", str(tmp_path / "loop"), "x" * 5000):
        for name in ("data_repo", "work_dir"):
            assert f"{name} {path!r} is not a path" in problems_of(f"--{name}", path)[0]


def test_server_address_is_not_a_folder_and_shard_is_in_range(tmp_path):
    address = f"oxen+http://localhost:3000/{tmp_path.name}/data"
    argv = ["--data_repo", address, "--cache_dir", str(tmp_path), "--shard", "15/16"]
    p = parse("02_gen_responses", "", argv, {})
    assert (p.data_repo, p.shard) == (address, "15/16")
    assert problems_of("--shard", "16/16") == ["shard = 16/16: of 16 shards the first is 0/16, the last 15/16"]
    for shard in ("0/0", "-1/2", "01/2", "1", "1/2/3"):
        assert "pattern" in problems_of(f"--shard={shard}")[0]
    assert "--shard is not a parameter of this stage" in problems_of("--shard", "0/2", stage="05_dpo")[0]


def test_json_true_is_not_a_number_and_a_pattern_is_not_a_list():
    found = problems_of(environment=environment(judge_votes=True, judge_temperature=False))
    assert {problem.split(" (from")[0] for problem in found} == {"judge_votes = 'true'", "judge_temperature = 'false'"}
    assert parse("03_gen_scores", "", [], environment(judge_forced_score=True)).judge_forced_score is True
    p = parse("01_gen_prompts", "", ["--prompt_pattern", "[1]", "--prompt_keywords", '["a"]'], {})
    assert (p.prompt_pattern, p.prompt_keywords) == ("[1]", ["a"])


def test_none_as_shown_by_help_is_accepted():
    p = parse("05_dpo", "", ["--dpo_max_steps", "none", "--base_model", "none"], {})
    assert (p.dpo_max_steps, p.base_model) == (None, None)
    assert parse("04_gen_preferences", "", ["--tie_break", "none"], {}).tie_break == "none"
    assert "seed = 'none'" in problems_of("--seed", "none")[0]


def test_empty_means_none_and_lists_are_json():
    given = environment(prompt_pattern="", max_model_len="null") | {"SEED": "7", "seed": "7"}
    p = parse("01_gen_prompts", "", ["--prompt_keywords", '["a", "b"]'], given)
    assert (p.prompt_pattern, p.max_model_len, p.prompt_keywords, p.seed) == (None, None, ["a", "b"], 0)


@pytest.mark.parametrize(
    "stage, argv, expected",
    [
        ("02_gen_responses", ["--responses_per_prompt", "1"], "greater than or equal to 2"),
        ("03_gen_scores", ["--score_min", "5", "--score_max", "3"], "score_min = 5 is above score_max = 3"),
        ("03_gen_scores", ["--score_min", "5", "--score_max", "5"], "cannot rank responses"),
        ("03_gen_scores", ["--judge_temperature", "0"], "set judge_votes to 1"),
        ("00_sft", ["--sft_learning_rate", "1e-7"], "sft_min_learning_rate = 1e-05 is above"),
        ("05_dpo", ["--dpo_batch_size", "15", "--dpo_micro_batch_size", "2"], "not a multiple"),
        ("01_gen_prompts", ["--prompt_min_words", "9", "--prompt_max_words", "3"], "is above prompt_max_words"),
        ("01_gen_prompts", ["--prompt_pattern", "("], "not a regular expression"),
        ("plan", ["--iterations", "91"], "less than or equal to 90"),
        ("05_dpo", ["--dpo_batch_size", "16", "--train_gpus", "3"], "16 is not a multiple of train_gpus = 3"),
        ("00_sft", ["--sft_batch_size", "24", "--train_gpus", "4"], "24, 6 on each of 4 GPUs, is not a multiple of"),
        ("plan", ["--in_cluster", "--iterations", "90", "--shards", "64"], "90 of shards = 64 make 5760, and a"),
        ("00_sft", ["--sft_epochs", "inf"], "must be a finite number"),
        ("00_sft", ["--branch", "a..b"], "not a branch name"),
        ("06_evaluate", ["--judge_temperature", "0", "--eval_judge_votes", "2"], "set eval_judge_votes to 1"),
        ("plan", ["--sampler", "transformers", "--generate_gpus", "2"], "2: the transformers sampler uses one GPU"),
        ("plan", ["--max_pairs", "3"], "max_pairs = 3 needs 6 responses to a prompt, responses_per_prompt = 4"),
        ("plan", ["--min_margin", "3", "--score_min", "2"], "rejects every pair: scores differ by at most 3"),
        ("plan", ["--responses_per_prompt", "1"], "greater than or equal to 2"),
        ("01_gen_prompts", ["--max_bad_rows", "1"], "less than 1"),
    ],
)  # fmt: skip
def test_contradictions_and_exceeded_bounds_are_refused(stage, argv, expected):
    assert any(expected in problem for problem in problems_of(*argv, stage=stage))


def test_key_has_only_parameters_that_affect_the_output():
    def key(*argv):
        return key_parameters(sources.parse(STAGES["03_gen_scores"], "", list(argv), {}))

    assert key("--data_repo", "x", "--force", "--cache_dir", "y", "--base_model", "z", "--generate_gpus", "2") == key()
    assert key("--judge_votes", "4") != key()
    assert key("--seed", "1") != key()
    assert key("--iteration", "1") != key()


def test_parameters_that_plan_exports_are_read_back_equal():
    plan = sources.parse(Plan, "", ["--prompt_keywords", '["é"]', "--beta", "0.3", "--prompt_pattern", "a'b"], {})
    text = sources.as_environment(plan, sorted(given(plan)))
    assert sources.parse(Plan, "", [], {sources.ENVIRONMENT: text}) == plan


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_valid_and_set_nothing_of_one_run(preset):
    content = yaml.safe_load(preset.read_text())
    for stage in STAGES:
        parse(stage, "", ["--parameter_file", str(preset)], {})
    assert not {"iterations", "start_iteration", "data_repo", "base_model"} & set(content)


def test_the_paper_preset_has_the_papers_numbers():
    """arXiv 2401.10020, sections 2.2, 2.4 and 3.1.2."""
    p = parse("plan", "", ["--parameter_file", str(ROOT / "presets/paper.yaml")], {})
    assert (p.sft_learning_rate, p.sft_min_learning_rate, p.sft_batch_size, p.sft_dropout) == (5.5e-6, 1.1e-6, 16, 0.1)
    assert (p.dpo_learning_rate, p.dpo_min_learning_rate, p.dpo_batch_size, p.dpo_dropout) == (1e-6, 1e-7, 16, 0.1)
    assert (p.beta, p.responses_per_prompt, p.judge_votes, p.checkpoint_steps) == (0.1, 4, 3, 200)
    assert (p.response_temperature, p.response_top_p, p.prompt_temperature, p.prompt_top_p) == (0.7, 0.9, 0.6, 0.9)
    assert (p.prompt_seed_shots, p.prompt_generated_shots, p.prompt_similarity) == (6, 2, 0.7)
    assert (p.sft_finetune, p.dpo_finetune, p.nll_weight, p.score_min, p.score_max) == ("full", "full", 0, 0, 5)


def test_every_parameter_has_a_description_and_one_definition():
    for name, (_, field) in flat(Plan).items():
        assert field.description, name
        defaults = {repr(flat(kind)[name][1].default) for kind in STAGES.values() if name in flat(kind)}
        assert len(defaults) == 1, f"{name} has two defaults: {defaults}"


def test_docs_are_generated_from_the_parameters():
    assert (ROOT / "docs/parameters.md").read_text() == generated.markdown(), "docs/parameters.md: run make docs"


def test_help_names_every_flag_with_its_default():
    shown = subprocess.run(
        [sys.executable, "-c", "from self_reward.parameters import sources, stages; "
         "sources.parse(stages.Dpo, 'Doc line.', ['--help'])"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert shown.returncode == 0
    assert "Doc line." in shown.stdout
    for name in flat(Dpo):
        assert f"--{name}" in shown.stdout


def test_valid_parameters_on_several_gpus_and_in_a_cluster():
    for gpus in ("0", "1", "2", "4"):
        parse("05_dpo", "", ["--train_gpus", gpus, "--dpo_batch_size", "16"], {})
    argv = ["--in_cluster", "--data_repo", "oxen+http://self-reward-oxen/a/b", "--base_model", "me/model"]
    parse("plan", "", [*argv, "--iterations", "90", "--shards", "16"], {})


# ---- what is generated

FLOW = ROOT / "argo/templates/self-reward.yaml"
VALUES = ROOT / "helm/self-reward/values.schema.json"


def test_workflow_has_every_parameter_that_it_does_not_set_itself():
    entries = {entry["name"]: entry for entry in generated.for_argo()}
    own = {*BY_STEP, *BY_TEMPLATE}
    assert set(entries) | own == set(flat(Plan)) and not set(entries) & own
    assert list(entries)[:3] == ["base_model", "data_repo", "branch"]
    assert entries["judge_votes"] == {
        "name": "judge_votes", "value": "3", "description": "Judgements of each response; their mean is its score.",
    }  # fmt: skip
    assert entries["sampler"]["enum"] == ["auto", "vllm", "transformers"] and entries["max_model_len"]["value"] == ""
    assert all(isinstance(entry["value"], str) and entry["description"] for entry in entries.values())


def test_workflow_and_programs_have_the_same_defaults():
    given = environment(**{entry["name"]: entry["value"] for entry in generated.for_argo()})
    assert parse("plan", "", [], given) == parse("plan", "", [], {})
    address = ["--in_cluster", "--data_repo", "oxen://h/a/b"]  # each default is written as Argo computes with it
    parse("plan", "", address, given)


def test_only_the_block_between_the_markers_is_regenerated():
    text = f"a: 1\n  {generated.BEGIN}\n  - old\n  {generated.END}\nb: 2\n"
    made = generated.with_argo_block(text)
    assert made == generated.with_argo_block(made) and "- old" not in made
    assert made.startswith(f'a: 1\n  {generated.BEGIN}\n  - name: base_model\n    value: ""\n')
    assert made.endswith(f"  {generated.END}\nb: 2\n")
    block = made.partition(generated.BEGIN)[2].partition(generated.END)[0]
    assert yaml.safe_load(block) == generated.for_argo()
    for broken in ("", generated.BEGIN, f"{generated.END}\n{generated.BEGIN}"):
        with pytest.raises(UserError, match="expected the lines"):
            generated.with_argo_block(broken)


@pytest.mark.parametrize(("path", "make"), [(FLOW, generated.with_argo_block), (VALUES, generated.with_schema)],
                         ids=["argo", "helm"])  # fmt: skip
def test_generated_files_are_up_to_date(path, make):
    assert path.read_text() == make(path.read_text()), f"{path.relative_to(ROOT)}: run make docs"


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_schema_accepts_presets_and_all_defaults(preset):
    jsonschema.Draft7Validator.check_schema(generated.schema())
    jsonschema.validate(yaml.safe_load(preset.read_text()), generated.schema())
    jsonschema.validate({e["name"]: e["value"] for e in generated.for_argo()}, generated.schema())
    typed = {name: field.default for name, (_, field) in flat(Plan).items()}
    names = {entry["name"] for entry in generated.for_argo()}
    jsonschema.validate({name: value for name, value in typed.items() if name in names}, generated.schema())


@pytest.mark.parametrize(
    "values",
    [
        {"iteratons": 3},
        {"iterations": 91},
        {"iterations": "three"},
        {"iterations": 1.5},
        {"iterations": True},
        {"beta": "much"},
        {"beta": -1},
        {"sampler": "vlm"},
        {"force": "yes"},
        {"force": 1},
        {"iteration": 1},
        {"cache_dir": "/x"},
        {"base_model": 7},
        {"branch": "-x"},
        {"prompt_keywords": [1]},
        {"prompt_keywords": "map"},
    ],
)
def test_the_schema_refuses(values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, generated.schema())


def test_flat_names_and_groups_translate_both_ways():
    values = {"judge_temperature": 0.5, "judge_votes": 2, "score_max": 7, "seed": 3}
    p = STAGES["03_gen_scores"](**nested(STAGES["03_gen_scores"], values))
    assert (p.judging.temperature, p.judge_votes, p.scale.max, p.seed) == (0.5, 2, 7, 3)
    assert given(p) == set(values)
    assert {name: flattened(p)[name] for name in values} == values


def test_added_parameter_is_in_the_key_only_if_not_default():
    def key(*argv):
        return key_parameters(sources.parse(Dpo, "", list(argv), {}))

    assert "dpo_adam_beta2" not in key() and key("--dpo_adam_beta2", "0.999") == key()
    assert key("--dpo_adam_beta2", "0.98") == key() | {"dpo_adam_beta2": 0.98}
