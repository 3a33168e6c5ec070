"""The manifests against the traps of argo_policy.py and argo_references.py; and those against planted faults."""

import copy
import inspect
import json
import re
from functools import cache

import pytest

from tests.deploy import test_argo_flow
from tests.support import argo, argo_fields, argo_policy, argo_references
from tests.support.argo import flows, leaves, run, step

RULES = {
    name: rule
    for module in (argo_policy, argo_references)
    for name, rule in inspect.getmembers(module, inspect.isfunction)
    if rule.__module__ == module.__name__ and not name.startswith("_")
}
VARIANTS = ["argo/", *(f"chart {values}".strip() for values in argo.charts())]


@cache
def documents(variant="argo/"):
    return argo.plain() if variant == "argo/" else argo.chart(variant.removeprefix("chart").strip())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", RULES)
def test_the_manifests_keep_the_rule(variant, rule):
    assert RULES[rule](documents(variant)) == []


def thin(all_):
    return argo.of_kind(all_, "Workflow")[0]


def main(all_, name="train"):
    return leaves(all_)[name]["container"]


def env(all_, name, leaf="train"):
    return next(one for one in main(all_, leaf)["env"] if one["name"] == name)


def given(one, name):
    return next(p for p in one["arguments"]["parameters"] if p["name"] == name)


def patched(leaf, old, new):
    assert old in leaf["podSpecPatch"]
    leaf["podSpecPatch"] = leaf["podSpecPatch"].replace(old, new)


def drop(values, name):
    values[:] = [value for value in values if value["name"] != name]


def add_role(all_, **rule):
    all_.append({"kind": "Role", "metadata": {"name": "x"}, "rules": [{"apiGroups": [""], **rule}]})


def add_pod(all_, **spec):
    container = {
        "name": "x", "image": "y",
        "resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "1Gi", "cpu": "1"}},
        "securityContext": {
            "runAsUser": 1, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}, "capabilities":
            {"drop": ["ALL"]}, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
        },
    }  # fmt: skip
    container |= spec.pop("container", {})
    spec = {"containers": [container], "automountServiceAccountToken": False} | spec
    all_.append({"kind": "Deployment", "metadata": {"name": "x"}, "spec": {"template": {"spec": spec}}})


def parameter(all_, name):
    return argo.run_parameters(all_)[name]


def set_at(value, keys, new):
    *path, last = keys.split(".")
    for key in path:
        value = value[int(key) if isinstance(value, list) else key]
    value[int(last) if isinstance(value, list) else last] = new


def loop_when(all_, old, new):
    one = step(all_, "loop", "next")
    assert old in one["when"]
    one["when"] = one["when"].replace(old, new)


# Rule -> faults, each of which that rule must find
FAULTS = {
    "retries_are_on_leaves_only": [
        lambda a: run(a).update(retryStrategy={"limit": "3"}),
        lambda a: run(a).update(templateDefaults={"retryStrategy": {"limit": "3"}}),
        lambda a: flows(a)["loop"].update(retryStrategy={"limit": "3"}),
        lambda a: thin(a)["spec"].update(retryStrategy={}),
    ],
    "leaves_are_tried_again_where_it_helps": [
        lambda a: leaves(a)["train"].pop("retryStrategy"),
        lambda a: leaves(a)["plan"]["retryStrategy"].update(retryPolicy="OnError"),
        lambda a: leaves(a)["plan"]["retryStrategy"].pop("limit"),
        lambda a: leaves(a)["plan"]["retryStrategy"].pop("backoff"),
        lambda a: leaves(a)["train"]["retryStrategy"].update(expression="asInt(lastRetry.exitCode) in [75, 137, 143]"),
        *(lambda a, new=new: leaves(a)["train"]["retryStrategy"].update(
            expression=leaves(a)["train"]["retryStrategy"]["expression"].replace(*new)
        ) for new in (
            ("75,", "2, 75,"), ("75, ", ""), ("evict|", ""), ("(?i)", ""), ("== 'Error' or", "== 'Error' and"))),
    ],
    "retries_have_no_deadline": [lambda a: leaves(a)["train"]["retryStrategy"]["backoff"].update(maxDuration="1h")],
    "retries_may_use_the_same_node": [
        lambda a: leaves(a)["train"]["retryStrategy"].update(affinity={"nodeAntiAffinity": {}})
    ],
    "deadlines_are_on_leaves_and_count_from_the_start": [
        lambda a: leaves(a)["train"].update(timeout="1h"),
        lambda a: leaves(a)["generate"].update(pendingTimeout="1h"),
        lambda a: leaves(a)["generate"].pop("activeDeadlineSeconds"),
        lambda a: run(a).update(activeDeadlineSeconds=3600),
        lambda a: thin(a)["spec"].update(activeDeadlineSeconds=3600),
        lambda a: flows(a)["loop"].update(activeDeadlineSeconds=3600),
    ],
    "nothing_is_memoized": [lambda a: leaves(a)["generate"].update(memoize={"key": "x"})],
    "the_command_is_given": [
        lambda a: main(a).pop("command"),
        lambda a: main(a, "plan").update(command=["sh", "-c"]),
    ],
    "leaves_are_one_container_each": [
        lambda a: leaves(a)["train"].update(resource={"action": "create"}),
        lambda a: leaves(a)["train"].update(sidecars=[{"name": "x"}]),
        lambda a: main(a).update(name="train"),
        lambda a: main(a).pop("workingDir"),
    ],
    "fan_out_counts_up_and_survives_a_lost_pod": [
        lambda a: step(a, "divided", "shard").update(withSequence={"start": "0", "end": "3"}),
        lambda a: step(a, "divided", "shard").update(withParam="[1, 2]"),
        lambda a: step(a, "divided", "shard").update(withItems=[1, 2]),
        lambda a: flows(a)["divided"].update(failFast=True),
        lambda a: flows(a)["divided"].pop("parallelism"),
        lambda a: flows(a)["iteration"].update(dag={"tasks": []}),
    ],
    "the_submitted_workflow_is_thin": [
        lambda a: thin(a)["spec"].update(serviceAccountName="self-reward"),
        lambda a: thin(a)["metadata"].update(name="x"),
        lambda a: thin(a)["metadata"].pop("generateName"),
    ],
    "names_of_parameters_work_in_expressions": [
        lambda a: parameter(a, "num_prompts").update(name="num-prompts"),
        lambda a: leaves(a)["train"]["inputs"]["parameters"][0].update(name="the-stage"),
        lambda a: leaves(a)["train"]["outputs"]["parameters"][0].update(name="commit-id"),
    ],
    "the_submit_form_is_the_manual": [
        lambda a: parameter(a, "sft").pop("enum"),
        lambda a: parameter(a, "sft").update(enum=["auto", "always"]),
        lambda a: parameter(a, "sft").update(value="sometimes"),
        lambda a: parameter(a, "beta").pop("description"),
        lambda a: parameter(a, "beta").pop("value"),
        lambda a: parameter(a, "beta").update(value="-1"),
        lambda a: parameter(a, "score_max").update(value="0"),
        lambda a: drop(run(a)["arguments"]["parameters"], "beta"),
        lambda a: run(a)["arguments"]["parameters"].append({"name": "beto", "value": "1"}),
        lambda a: run(a)["arguments"]["parameters"].append(dict(parameter(a, "beta"))),
    ],
    "parameters_fit_into_the_environment": [lambda a: parameter(a, "base_model").update(value="x" * 2**16)],
    "gpus_are_asked_for_by_the_right_leaves": [
        lambda a: leaves(a)["train"].pop("podSpecPatch"),
        lambda a: patched(leaves(a)["train"], '"{{workflow.parameters.train_gpus}}"', "{{workflow.parameters.shards}}"),
        lambda a: patched(leaves(a)["generate"], "generate_gpus", "train_gpus"),
        lambda a: patched(leaves(a)["train"], '"main"', '"train"'),
        lambda a: main(a, "merge")["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
        lambda a: leaves(a)["gen-preferences"].update(podSpecPatch=leaves(a)["train"]["podSpecPatch"]),
        lambda a: leaves(a)["export"].update(tolerations=leaves(a)["train"]["tolerations"]),
        lambda a: add_pod(a, container={"resources": {"limits": {"nvidia.com/gpu": "1"}}}),
        lambda a: leaves(a)["export"].update(name="another"),
    ],
    "gpu_leaves_can_go_to_gpu_nodes": [
        lambda a: leaves(a)["generate"].pop("tolerations"),
        lambda a: drop(main(a)["volumeMounts"], "shm"),
        lambda a: run(a)["volumes"][-1].update(emptyDir={"sizeLimit": "1Gi"}),
        lambda a: run(a)["volumes"][-1].update(emptyDir={"medium": "Memory"}),
        lambda a: run(a)["volumes"][-1]["emptyDir"].update(sizeLimit="64Gi"),
    ],
    "pods_say_what_they_need": [
        lambda a: main(a).pop("resources"),
        lambda a: main(a)["resources"]["limits"].pop("memory"),
        lambda a: main(a)["resources"]["requests"].pop("memory"),
        lambda a: main(a)["resources"]["requests"].pop("cpu"),
        lambda a: add_pod(a, container={"resources": {}}),
    ],
    "pods_have_time_to_end": [
        lambda a: run(a).pop("podSpecPatch"),
        lambda a: run(a).update(podSpecPatch='{"terminationGracePeriodSeconds": 5}'),
    ],
    "pods_pass_restricted_pod_security": [
        lambda a: run(a).pop("securityContext"),
        *(lambda a, key=key: run(a)["securityContext"].pop(key)
          for key in ("runAsNonRoot", "runAsUser", "seccompProfile", "fsGroup")),
        lambda a: run(a)["securityContext"].update(runAsUser=0),
        *(lambda a, key=key: main(a)["securityContext"].pop(key)
          for key in ("allowPrivilegeEscalation", "capabilities", "readOnlyRootFilesystem")),
        lambda a: main(a)["securityContext"].update(privileged=True),
        lambda a: main(a)["securityContext"].update(runAsNonRoot=False),
        lambda a: main(a)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
        lambda a: run(a)["volumes"][0].update(hostPath={"path": "/"}),
        lambda a: leaves(a)["plan"].update(podSpecPatch='{"hostNetwork": true}'),
        lambda a: main(a).update(ports=[{"hostPort": 80}]),
        lambda a: add_pod(a, hostNetwork=True),
        lambda a: add_pod(a, container={"securityContext": {}}),
        lambda a: add_pod(a, volumes=[{"name": "x", "hostPath": {"path": "/"}}]),
        lambda a: add_pod(a, initContainers=[{"name": "x", "image": "y"}]),
    ],
    "what_is_written_lies_on_a_volume": [
        lambda a: drop(main(a)["volumeMounts"], "tmp"),
        lambda a: drop(main(a)["volumeMounts"], "cache"),
        lambda a: drop(run(a)["volumes"], "tmp"),
        lambda a: run(a)["volumes"][0].pop("persistentVolumeClaim"),
        lambda a: run(a)["volumes"][0].update(persistentVolumeClaim={}),
        lambda a: drop(main(a)["env"], "HF_HOME"),
        lambda a: leaves(a)["train"]["outputs"]["parameters"][0]["valueFrom"].update(path="/tmp/elsewhere"),
        lambda a: main(a)["args"].remove("--cache_dir"),
        lambda a: drop(main(a)["volumeMounts"], "cache") or main(a)["volumeMounts"].append(
            {"name": "cache", "mountPath": "/caches"}),
        lambda a: env(a, "HF_HOME").update(value="/home/app"),
    ],
    "stages_hand_on_commit_and_stop": [
        lambda a: drop(leaves(a)["train"]["outputs"]["parameters"], "stop"),
        lambda a: leaves(a)["plan"].pop("outputs"),
        lambda a: main(a)["args"].remove("--commit_file"),
        lambda a: main(a)["args"].remove("--result_file"),
        lambda a: main(a)["args"].remove("--revision"),
        lambda a: main(a, "merge")["args"].remove("--iteration"),
        lambda a: main(a)["args"].__setitem__(main(a)["args"].index("{{inputs.parameters.revision}}"), "main"),
        lambda a: main(a)["args"].__setitem__(main(a)["args"].index("/tmp/out/stop"), "/tmp/out/commit"),
    ],
    "the_environment_is_the_same_everywhere": [
        *(lambda a, name=name: drop(main(a)["env"], name)
          for name in ("SELF_REWARD_PARAMETERS", "TERMINATION_LOG", "OXEN_TOKEN", "HF_TOKEN")),
        lambda a: env(a, "OMP_NUM_THREADS")["valueFrom"]["resourceFieldRef"].update(resource="limits.cpu"),
        lambda a: env(a, "HF_TOKEN")["valueFrom"]["secretKeyRef"].pop("optional"),
        lambda a: main(a)["env"].append({"name": "EVALUATOR_TOKEN", "value": "x"}),
        lambda a: run(a)["arguments"]["parameters"].append({"name": "oxen_token", "value": ""}),
    ],
    "plan_starts_in_a_bare_namespace": [
        lambda a: main(a, "plan")["volumeMounts"].append({"name": "cache", "mountPath": "/cache"}),
        lambda a: env(a, "OXEN_TOKEN", "plan")["valueFrom"]["secretKeyRef"].pop("optional"),
        lambda a: main(a, "plan").update(envFrom=[{"secretRef": {"name": "x"}}]),
        lambda a: main(a, "plan")["args"].remove("--in_cluster"),
        lambda a: leaves(a)["plan"].pop("serviceAccountName"),
    ],
    "service_accounts_may_do_little": [
        lambda a: run(a).pop("serviceAccountName"),
        lambda a: leaves(a)["train"].update(serviceAccountName="self-reward-plan"),
        lambda a: add_role(a, resources=["pods"], verbs=["get", "delete"]),
        lambda a: add_role(a, resources=["*"], verbs=["get"]),
        lambda a: add_role(a, resources=["pods"], verbs=["*"]),
        lambda a: add_role(a, resources=["secrets"], verbs=["get"]),
        lambda a: add_role(a, resources=["secrets"], verbs=["list"], resourceNames=["x"]),
        lambda a: add_pod(a, automountServiceAccountToken=True),
    ],
    "no_namespace_is_rendered": [
        lambda a: thin(a)["metadata"].update(namespace="argo"),
        lambda a: a[-1]["metadata"].update(namespace="argo"),
    ],
    "locks_are_of_the_whole_run": [
        lambda a: flows(a)["loop"].update(synchronization={"mutexes": [{"name": "x"}]}),
        lambda a: leaves(a)["train"].update(synchronization={"mutexes": [{"name": "x"}]}),
        lambda a: run(a).pop("synchronization"),
        lambda a: run(a)["synchronization"]["mutexes"][0].update(name="self-reward"),
    ],
    "the_recursion_is_shallow_enough": [
        lambda a: (
            run(a)["templates"].extend(
                {"name": f"level-{i}", "steps": [[{"name": "in", "template": f"level-{i + 1}"}]]} for i in range(7)),
            step(a, "iteration", "scores").update(template="level-0"),
            run(a)["templates"].append({"name": "level-7", "container": {}}),
        ),
        lambda a: loop_when(a, "workflow.parameters.iterations", "3"),
        lambda a: loop_when(a, "asInt(workflow.parameters.start_iteration) +", "0 +"),
        lambda a: loop_when(a, "steps.iter.outputs.parameters.stop == '' &&", ""),
        lambda a: step(a, "loop", "next").update(name="next-iteration"),
        lambda a: step(a, "loop", "next").update(template="iteration"),
        lambda a: step(a, "iteration", "scores").update(template="iteration"),
    ],
    "logs_outlive_their_pods_for_a_while": [
        lambda a: run(a).pop("podGC"),
        lambda a: run(a)["podGC"].update(strategy="OnPodCompletion"),
        lambda a: run(a)["podGC"].pop("deleteDelayDuration"),
        lambda a: run(a).pop("ttlStrategy"),
        lambda a: run(a)["ttlStrategy"].update(secondsAfterCompletion=60),
    ],
    "metrics_have_few_series": [
        *(lambda a, new=new: leaves(a)["train"]["metrics"]["prometheus"][0]["labels"][0].update(new) for new in (
            {"key": "iteration"}, {"value": "{{inputs.parameters.iteration}}"}, {"value": "{{workflow.name}}"})),
        lambda a: leaves(a)["train"]["metrics"]["prometheus"][0].update(name="a-b"),
        lambda a: leaves(a)["train"]["metrics"]["prometheus"][0].update(help=""),
        lambda a: leaves(a)["train"]["metrics"]["prometheus"][0]["gauge"].update(realtime=True),
    ],
    "programs_and_flags_are_there": [
        lambda a: given(step(a, "improve", "dpo"), "stage").update(value="05_dp"),
        lambda a: given(step(a, "iteration", "scores"), "stage").update(value="02_gen_responses"),
        lambda a: main(a, "merge")["args"].__setitem__(0, "stages/join.py"),
        lambda a: main(a, "merge")["args"].remove("--merge"),
        lambda a: main(a, "generate-shard")["args"].append("--merge"),
        lambda a: main(a)["args"].extend(["--comit_file", "x"]),
        lambda a: main(a)["args"].extend(["--beta", "0.1"]),
        lambda a: main(a)["args"].remove("--iteration"),
    ],
    "images_are_ours_and_kept": [
        lambda a: main(a).update(image="python:3.11-slim"),
        lambda a: main(a, "plan").update(image="self-reward/model:latest"),
        lambda a: main(a).update(imagePullPolicy="Always"),
        lambda a: main(a).pop("imagePullPolicy"),
    ],
    "references_exist": [
        lambda a: given(step(a, "main", "loop"), "sft").update(value="{{steps.plan.outputs.parameters.stf}}"),
        lambda a: given(step(a, "main", "loop"), "iteration").update(value="{{workflow.parameters.start_iteraton}}"),
        lambda a: given(step(a, "loop", "iter"), "sft").update(value="{{inputs.parameters.no}}"),
        lambda a: given(step(a, "main", "fetch-model"), "revision").update(
            value="{{steps.loop.outputs.parameters.commit}}"),
        lambda a: given(step(a, "divided", "whole"), "stage").update(value="{{item}}"),
        lambda a: given(step(a, "divided", "merge"), "stage").update(value="{{steps.shard.outputs.parameters}}"),
        lambda a: step(a, "divided", "whole").update(when="{{= asInteger(workflow.parameters.shards) == 1 }}"),
        lambda a: step(a, "divided", "whole").update(when="{{= asInt(workflow.parameter.shards) == 1 }}"),
        lambda a: loop_when(a, "steps.iter", "steps.iteration"),
        lambda a: flows(a)["learn"]["outputs"]["parameters"][0]["valueFrom"].update(expression="steps.improved.stop"),
        lambda a: flows(a)["main"]["outputs"]["parameters"][0]["valueFrom"].update(parameter="steps.loop.outputs.stop"),
        lambda a: main(a)["args"].append("{{inputs.parameters.shard}}"),
        lambda a: patched(leaves(a)["train"], "train_gpus", "gpus"),
        lambda a: run(a)["synchronization"]["mutexes"][0].update(name="{{workflow.parameters.repo}}"),
        lambda a: leaves(a)["train"]["metrics"]["prometheus"][0].update(when="{{state}} == Succeeded"),
        lambda a: leaves(a)["train"]["retryStrategy"].update(expression="lastTry.status == 'Error'"),
        lambda a: thin(a)["spec"].update(arguments={"parameters": [{"name": "iteration", "value": "1"}]}),
        lambda a: drop(run(a)["arguments"]["parameters"], "shards"),
    ],
    "templates_exist_and_get_their_inputs": [
        lambda a: step(a, "main", "plan")["templateRef"].update(template="plans"),
        lambda a: step(a, "main", "plan")["templateRef"].update(name="self-rewards"),
        lambda a: step(a, "main", "loop").update(template="loops"),
        lambda a: step(a, "main", "export").pop("arguments"),
        lambda a: drop(step(a, "improve", "dpo")["arguments"]["parameters"], "stage"),
        lambda a: step(a, "main", "export")["arguments"]["parameters"].append({"name": "stage", "value": "x"}),
        lambda a: leaves(a)["train"]["inputs"]["parameters"].append({"name": "new"}),
        lambda a: step(a, "divided", "shard").update(name="whole"),
        lambda a: run(a).update(entrypoint="begin"),
        lambda a: thin(a)["spec"]["workflowTemplateRef"].update(name="selfreward"),
    ],
    "inputs_are_used": [
        lambda a: leaves(a)["train"]["inputs"]["parameters"].append({"name": "new", "value": ""}),
        lambda a: main(a)["args"].remove("{{inputs.parameters.iteration}}"),
    ],
    "outputs_of_skipped_steps_are_handled": [
        # found in a first version of these files: after a stop rule the loop went on
        lambda a: leaves(a)["merge"]["outputs"]["parameters"][1]["valueFrom"].update(default=""),
        *(lambda a, new=new: flows(a)["start"]["outputs"]["parameters"][0]["valueFrom"].update(new) for new in (
            {"expression": "steps.sft?.outputs?.parameters?.commit"},
            {"expression": "steps.sft.outputs.parameters.commit ?? ''"},
            {"parameter": "{{steps.sft.outputs.parameters.commit}}"})),
        lambda a: step(a, "iteration", "prompts").update(when="{{= true }}"),
        lambda a: step(a, "loop", "iter").update(when="{{= true }}"),
    ],
    "absent_values_are_looked_at_in_outputs_only": [
        # both found in a first version of these files
        lambda a: given(step(a, "iteration", "prompts"), "revision").update(
            value="{{= steps.start?.outputs?.parameters?.commit ?? inputs.parameters.revision }}"),
        lambda a: step(a, "learn", "improve").update(when="{{= steps.preferences?.outputs?.parameters?.stop == '' }}"),
    ],
    "tags_are_plain": [
        lambda a: given(step(a, "loop", "iter"), "sft").update(value="{{ inputs.parameters.sft }}"),
        lambda a: step(a, "loop", "next").update(when="{{= steps.the-iter.outputs.parameters.stop == '' }}"),
        lambda a: leaves(a)["train"]["outputs"]["parameters"][1].update(globalName="M{{inputs.parameters.iteration}}"),
    ],
}  # fmt: skip
CASES = [(rule, number) for rule, faults in FAULTS.items() for number in range(len(faults))]


def test_every_rule_is_known_to_find_something():
    assert set(FAULTS) == set(RULES)


@pytest.mark.parametrize(("rule", "number"), CASES, ids=[f"{rule}-{number}" for rule, number in CASES])
def test_a_planted_fault_is_found(rule, number):
    planted = copy.deepcopy(documents())
    FAULTS[rule][number](planted)
    assert RULES[rule](planted)


# Fields that may be left out without harm: they are for people, or Kubernetes and Argo would do the same without
FOR_PEOPLE = r"metadata\.labels|podMetadata|workflowMetadata|\.help$|runAsGroup|fsGroupChangePolicy|\.cpu$|metrics\b"


def paths(value, at=()):
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from paths(inner, (*at, key))


def without(value, path):
    """`value` less what is at `path`; what is beside it is shared with the original."""
    key, *below = path
    changed = copy.copy(value)
    if below:
        changed[key] = without(value[key], below)
    else:
        del changed[key]
    return changed


def found_by_any(changed):
    for name, rule in RULES.items():
        if name == "the_submit_form_is_the_manual":  # slow, and about nothing that is changed here
            continue
        try:
            if rule(changed):
                return True
        except (KeyError, IndexError, StopIteration, AttributeError, TypeError, ValueError):
            return True  # the file is no longer what it was in an obvious way
    return any(argo_fields.problems(one["kind"], one) for one in changed) or not test_argo_flow.is_right(changed)


def small():
    """argo/ with the parameters alone that it names: thousands of variants of it are looked at."""
    whole = copy.deepcopy(documents())
    named = set(re.findall(r"workflow\.parameters\.(\w+)", json.dumps(whole)))
    entries = run(whole)["arguments"]["parameters"]
    entries[:] = [{"name": one["name"], "value": one["value"]} for one in entries if one["name"] in named]
    return whole


def test_nothing_can_be_left_out_of_the_manifests_unseen():
    """Each field and each entry of a list is taken out once."""
    whole = small()
    unseen = []
    for number, document in enumerate(whole):
        for path in list(paths(document["spec"], ("spec",))):
            name = ".".join(map(str, path))
            if "arguments.parameters" in name[:26] or re.search(FOR_PEOPLE, name):
                continue
            changed = [*whole[:number], without(document, path), *whole[number + 1 :]]
            if not found_by_any(changed):
                unseen.append(f"{document['metadata'].get('name')} {name}")
    assert unseen == []


def test_no_tag_can_be_misspelled_unseen():
    """Each `{{...}}` and each expression gets one wrong letter once, in each of its names."""
    whole = small()
    tried, unseen = 0, []
    for number, document in enumerate(whole):
        for path, text in argo.strings(document["spec"], ("spec",)):
            for match in re.finditer(r"(?:workflow|inputs|steps|outputs|parameters|lastRetry|item)\b[\w.?]*", text):
                if "{{" not in text and path[-1] not in ("expression",):
                    continue
                changed = copy.deepcopy(document)
                set_at(changed, ".".join(map(str, path)), text[: match.end()] + "x" + text[match.end() :])
                tried += 1
                if not found_by_any([*whole[:number], changed, *whole[number + 1 :]]):
                    unseen.append((".".join(map(str, path)), match[0]))
    assert tried > 100 and unseen == []


def test_the_patches_of_pods_are_json():
    for leaf in argo.leaves(documents()).values():
        json.loads(leaf.get("podSpecPatch", "{}"))
