"""The traps of Argo and Kubernetes that the manifests must not fall into, one function each.

Each takes all objects of argo/ or of a rendering of the chart and returns what is wrong, in words. Issue numbers are
those of argo-workflows.
"""

import itertools
import json
import re
from pathlib import Path

from self_reward.parameters import generated, sources
from self_reward.parameters.flat import flat
from self_reward.parameters.stages import BY_STEP, BY_TEMPLATE, Plan
from tests.support import argo
from tests.support.argo import Document

# The programs of stages/ and who runs them: GPU or not is decided here and nowhere else
GPU_LEAVES = {"train", "generate", "generate-shard"}
CPU_LEAVES = {"plan", "fetch-model", "merge", "gen-preferences", "export"}
TORCH_LEAVES = GPU_LEAVES | {"export"}
GPU = "nvidia.com/gpu"
TRY_AGAIN = [75, 137, 143]  # temporary failure, SIGKILL (also out of memory), SIGTERM; never 2, the user's error
# What is said of a pod that was lost: by kubelets (1.34), by Argo (4.1), by who evicts
LOST = (
    "Pod was evicted.", "The node was low on resource: ephemeral-storage.", "Preempted in order to admit critical pod",
    "Pod was terminated in response to imminent node shutdown.", "pod deleted",
    "Pod was rejected: Allocate failed due to no healthy devices present, which is unexpected",
    "Pod was rejected: The node had condition: [DiskPressure].",
    "Pod was rejected: Node didn't have enough resource: cpu",
    "pod failed: neither main nor wait container completed successfully",
    "can't find failed message for pod a namespace b",
)  # fmt: skip
# What `templateReferencing: Strict` lets a submitted workflow set
STRICT = {
    "arguments", "entrypoint", "shutdown", "suspend", "activeDeadlineSeconds", "priority", "ttlStrategy", "podGC",
    "volumeClaimGC", "archiveLogs", "workflowMetadata", "workflowTemplateRef", "metrics", "artifactGC",
}  # fmt: skip
DEPTH = 99  # calls within each other that a controller allows
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
SECONDS_TO_END = 10  # that a stage takes at most after SIGTERM
ENVIRONMENT_LIMIT = 128 * 1024  # bytes of one variable (Linux)


def retries_are_on_leaves_only(documents: list[Document]) -> list[str]:
    """Elsewhere they multiply at each level of the recursion and run finished stages again [12009, 14804]."""
    whole = argo.run(documents)
    found = [f"{name} has a retryStrategy" for name, one in argo.flows(documents).items() if "retryStrategy" in one]
    found += [f"{d['kind']} has {key}" for d in argo.of_kind(documents, "Workflow", "WorkflowTemplate")
              for key in ("retryStrategy", "templateDefaults") if key in d["spec"]]  # fmt: skip
    return found + (["no templates"] if not whole.get("templates") else [])


def leaves_are_tried_again_where_it_helps(documents: list[Document]) -> list[str]:
    """Exit codes and lost pods: an evicted pod is Failed and not Error [2881, 9880]. `OnError` would leave it out. A
    user's error is not tried again, whatever its words (a taint may be named "preemptible")."""
    wanted = (
        f"lastRetry.status == 'Error' or asInt(lastRetry.exitCode) in {TRY_AGAIN} or "
        "(asInt(lastRetry.exitCode) not in [1, 2] and lastRetry.message matches '(PATTERN)')"
    )
    found = []
    for name, leaf in argo.leaves(documents).items():
        strategy = leaf.get("retryStrategy", {})
        expression = " ".join(strategy.get("expression", "").split())
        pattern = re.search(r"matches '\(\?i\)\((.+)\)'", expression)
        shape = expression.replace(f"(?i)({pattern[1]})", "(PATTERN)") if pattern else expression
        if strategy.get("retryPolicy") != "Always" or not 1 <= int(strategy.get("limit", 0)) <= 10:
            found.append(f"{name}: retryPolicy Always with a limit; found {strategy.get('retryPolicy')}")
        if shape != wanted:
            found.append(f"{name}: the retry expression must be {wanted}; found {shape}")
        for said in LOST:
            if pattern is None or not re.search(pattern[1], said, re.IGNORECASE):
                found.append(f"{name} must be tried again when its pod is lost: {said!r}")
        if not {"duration", "factor", "cap"} <= set(strategy.get("backoff", {})):
            found.append(f"{name}: pauses between tries must grow, to a bound")
    return found


def retries_have_no_deadline(documents: list[Document]) -> list[str]:
    """backoff.maxDuration becomes the deadline of the next try's pod, which may be hours into its work [13044]."""
    return _with_key(documents, "maxDuration")


def retries_may_use_the_same_node(documents: list[Document]) -> list[str]:
    """nodeAntiAffinity is a hard rule: where one node fits, each further try would wait for ever."""
    return [f"{name}: retryStrategy.affinity" for name, leaf in argo.leaves(documents).items()
            if "affinity" in leaf.get("retryStrategy", {})]  # fmt: skip


def deadlines_are_on_leaves_and_count_from_the_start(documents: list[Document]) -> list[str]:
    """`timeout` and `pendingTimeout` count the time in the queue, a workflow's deadline suspended time [13722]."""
    found = _with_key(documents, "timeout") + _with_key(documents, "pendingTimeout")
    for document in argo.of_kind(documents, "Workflow", "WorkflowTemplate"):
        found += [f"{document['metadata']} has a deadline"] * ("activeDeadlineSeconds" in document["spec"])
    found += [f"{name} has a deadline" for name, one in argo.flows(documents).items() if "activeDeadlineSeconds" in one]
    for name, leaf in argo.leaves(documents).items():
        if int(leaf.get("activeDeadlineSeconds", 0)) < 600:
            found.append(f"{name} needs activeDeadlineSeconds: a hanging pod would keep its GPU for ever")
    return found


def nothing_is_memoized(documents: list[Document]) -> list[str]:
    """Its ConfigMap lives in the controller's namespace, and it is unreliable with retries [10012, 12489, 10426]."""
    return _with_key(documents, "memoize")


def the_command_is_given(documents: list[Document]) -> list[str]:
    """Without it the controller asks the image's registry for it, which it may not reach."""
    found = []
    for name, leaf in argo.leaves(documents).items():
        if leaf.get("container", {}).get("command") != ["python"]:
            found.append(f"{name}: command must be [python]")
    return found


def leaves_are_one_container_each(documents: list[Document]) -> list[str]:
    """`resource` templates lose sight of what they made [15641]; the patches are for a container named main."""
    found = []
    for name, leaf in argo.leaves(documents).items():
        if "container" not in leaf or {"script", "resource", "http", "suspend", "plugin", "sidecars", "daemon"} & set(
            leaf
        ):
            found.append(f"{name} is no plain container")
        elif leaf["container"].get("name") != "main" or leaf["container"].get("workingDir") != "/app":
            found.append(f"{name}: the container must be `main` and work in /app")
    return found


def fan_out_counts_up_and_survives_a_lost_pod(documents: list[Document]) -> list[str]:
    """withSequence with an end below its start counts down; a failure lets siblings run on [14228]."""
    found = []
    for name, flow in argo.flows(documents).items():
        if "dag" in flow:
            found.append(f"{name} is a DAG; a steps template ends its siblings when one fails")
        for _, step in argo.steps(flow):
            sequence = step.get("withSequence")
            if sequence is not None and set(sequence) != {"count"}:
                found.append(f"{name}.{step['name']}: withSequence must have a count alone; found {sequence}")
            if {"withItems", "withParam"} & set(step):
                found.append(f"{name}.{step['name']}: withItems and withParam carry data in parameters; use a count")
            if sequence is not None and not flow.get("parallelism"):
                found.append(f"{name} needs parallelism")
            if flow.get("failFast") is not None:
                found.append(f"{name} has failFast, which counts a lost pod that is retried as a failure")
    return found


def the_submitted_workflow_is_thin(documents: list[Document]) -> list[str]:
    """A controller with `templateReferencing: Strict` refuses any other field."""
    found = []
    for document in argo.of_kind(documents, "Workflow"):
        found += [f"spec.{key} is not allowed under Strict" for key in set(document["spec"]) - STRICT]
        if "generateName" not in document["metadata"] or "name" in document["metadata"]:
            found.append("generateName, so that it can be submitted again")
    return found


def names_of_parameters_work_in_expressions(documents: list[Document]) -> list[str]:
    """snake_case: a hyphen would subtract."""
    found = []
    for document in argo.of_kind(documents, "Workflow", "WorkflowTemplate"):
        places = [document["spec"].get("arguments", {})]
        for template in document["spec"].get("templates", ()):
            places += [template.get("inputs", {}), template.get("outputs", {})]
        names = [parameter["name"] for place in places for parameter in place.get("parameters", ())]
        found += [f"{name} is not snake_case" for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*", name)]
    return found


def the_submit_form_is_the_manual(documents: list[Document]) -> list[str]:
    """Every parameter of parameters/ with its description, with an enum where it is closed, and a default in it."""
    expected = {entry["name"]: entry for entry in generated.for_argo()}
    given = argo.run_parameters(documents)
    found = [f"{name} is missing" for name in expected if name not in given]
    found += [f"{name} is no parameter" for name in given if name not in expected]
    names = [one["name"] for one in argo.run(documents)["arguments"]["parameters"]]
    found += [f"{name} is there twice" for name in set(names) if names.count(name) > 1]
    for name in set(expected) & set(given):
        if given[name].get("description") != expected[name]["description"]:
            found.append(f"{name}: the description must be that of parameters/")
        if given[name].get("enum") != expected[name].get("enum"):
            found.append(f"{name}: enum must be {expected[name].get('enum')}")
        if "value" not in given[name] or given[name]["value"] not in given[name].get("enum", [given[name]["value"]]):
            found.append(f"{name}: default {given[name].get('value')!r} is none of its enum")
    try:  # as plan and the stages read them
        text = json.dumps(
            [{"name": name, "value": one.get("value")} for name, one in given.items() if name in expected]
        )
        sources.parse(Plan, "", [], {sources.ENVIRONMENT: text})
    except Exception as error:
        found.append(f"the defaults contradict: {error}")
    return found


def parameters_fit_into_the_environment(documents: list[Document]) -> list[str]:
    """All of them travel in one variable of each pod. Half the limit is left to values that users give."""
    size = len(json.dumps(argo.run(documents)["arguments"]["parameters"]).encode())
    return [f"the parameters are {size} bytes"] if size > ENVIRONMENT_LIMIT / 2 else []


def gpus_are_asked_for_by_the_right_leaves(documents: list[Document]) -> list[str]:
    """A CPU stage on a GPU node keeps the GPU idle. The count is a quoted parameter: Kubernetes wants a text."""
    found = [f"unknown leaf {name}: GPU or not?" for name in set(argo.leaves(documents)) - GPU_LEAVES - CPU_LEAVES]
    found += [f"no leaf {name}" for name in (GPU_LEAVES | CPU_LEAVES) - set(argo.leaves(documents))]
    for name, leaf in argo.leaves(documents).items():
        text = json.dumps(leaf)
        if name in CPU_LEAVES and "nvidia" in text:
            found.append(f"{name} is a CPU stage and asks for a GPU")
        if name in GPU_LEAVES:
            count = "train_gpus" if name == "train" else "generate_gpus"
            try:
                patched = argo.merged({"containers": [leaf["container"]]}, json.loads(leaf.get("podSpecPatch", "{}")))
            except ValueError:
                patched = {"containers": [{}]}  # a count without quotes
            if _limit(patched, GPU) != f"{{{{workflow.parameters.{count}}}}}":
                found.append(f"{name}: podSpecPatch must give the container a quoted {count} of {GPU}")
    found += [
        f"{name} asks for a GPU" for name, pod in argo.other_pods(documents).items() if "nvidia" in json.dumps(pod)
    ]
    return found


def gpu_leaves_can_go_to_gpu_nodes(documents: list[Document]) -> list[str]:
    """GPU nodes are usually tainted; processes of one pod need more than the 64 MB of /dev/shm that a pod has."""
    found = []
    for name in GPU_LEAVES & set(argo.leaves(documents)):
        pod = argo.pod(documents, argo.leaves(documents)[name])
        if {"key": GPU, "operator": "Exists", "effect": "NoSchedule"} not in pod.get("tolerations", ()):
            found.append(f"{name} does not tolerate {GPU}")
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0].get("volumeMounts", ())}
        volume = next((v for v in pod["volumes"] if v["name"] == mounts.get("/dev/shm")), {})
        if volume.get("emptyDir", {}).get("medium") != "Memory" or "sizeLimit" not in volume.get("emptyDir", {}):
            found.append(f"{name}: /dev/shm must be an emptyDir in memory with a sizeLimit")
        elif _bytes(volume["emptyDir"]["sizeLimit"]) >= _bytes(str(_limit(pod, "memory"))):
            found.append(f"{name}: /dev/shm counts against the memory limit and is not below it")
    return found


def pods_say_what_they_need(documents: list[Document]) -> list[str]:
    """A pod without a memory limit can take its node down; without a request it is the first to be evicted."""
    found = []
    for name, pod in argo.all_pods(documents).items():
        for container in argo.containers(pod):
            resources = container.get("resources", {})
            if "memory" not in resources.get("limits", {}) or "memory" not in resources.get("requests", {}):
                found.append(f"{name}.{container['name']}: memory requests and limits")
            if "cpu" not in resources.get("requests", {}):
                found.append(f"{name}.{container['name']}: cpu requests")
    return found


def pods_have_time_to_end(documents: list[Document]) -> list[str]:
    """A stage keeps what it has within 10 seconds after SIGTERM."""
    return [
        f"{name}: terminationGracePeriodSeconds"
        for name, leaf in argo.leaves(documents).items()
        if argo.pod(documents, leaf).get("terminationGracePeriodSeconds", 0) < 3 * SECONDS_TO_END
    ]


def pods_pass_restricted_pod_security(documents: list[Document]) -> list[str]:
    """What a namespace with pod-security.kubernetes.io/enforce: restricted lets in, and a read-only image besides."""
    found = []
    for name, pod in argo.all_pods(documents).items():
        whole = pod.get("securityContext", {})
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC", "hostUsers")) or "hostPort" in json.dumps(
            pod
        ):
            found.append(f"{name} uses the host's namespaces")
        for volume in pod.get("volumes", ()):
            if not (set(volume) - {"name"}) <= RESTRICTED_VOLUMES:
                found.append(f"{name}: volume {volume}")
        for container in argo.containers(pod):
            own = container.get("securityContext", {})
            both = {**whole, **own}
            wrong = [
                key
                for key, right in {
                    "runAsNonRoot": both.get("runAsNonRoot") is True,
                    "runAsUser": both.get("runAsUser") not in (None, 0),  # an image's own user may have no number
                    "seccompProfile": both.get("seccompProfile", {}).get("type") == "RuntimeDefault",
                    "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
                    "privileged": not own.get("privileged"),
                    "capabilities": own.get("capabilities") == {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": own.get("readOnlyRootFilesystem") is True,
                }.items()
                if not right
            ]
            found += [f"{name}.{container['name']}: {key}" for key in wrong]
        if name in argo.leaves(documents) and whole.get("fsGroup") != whole.get("runAsUser"):
            found.append(f"{name}: fsGroup must be the user, who could not write to the cache volume otherwise")
    return found


def what_is_written_lies_on_a_volume(documents: list[Document]) -> list[str]:
    """The image is read-only: outputs are files below /tmp, caches below a mount; each mount has its volume."""
    found = []
    for volume in argo.run(documents).get("volumes", ()):
        if len(volume) != 2 or (
            "persistentVolumeClaim" in volume and not volume["persistentVolumeClaim"].get("claimName")
        ):
            found.append(f"{volume} is no volume with one source")
    for name, leaf in argo.leaves(documents).items():
        pod = argo.pod(documents, leaf)
        mounts = [mount["mountPath"] for mount in leaf["container"].get("volumeMounts", ())]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for mount in leaf["container"].get("volumeMounts", ()):
            if mount["name"] not in volumes:
                found.append(f"{name} mounts {mount['name']}, which is no volume")
        arguments = leaf["container"].get("args", [])
        written = [one["valueFrom"].get("path", "") for one in leaf.get("outputs", {}).get("parameters", ())]
        for path in written:
            if path not in arguments:
                found.append(f"{name} is not told to write {path}")
        named = [arguments[i + 1] for i, word in enumerate(arguments[:-1]) if re.fullmatch(r"--\w+_(dir|file)", word)]
        named += [
            e.get("value", "") for e in leaf["container"].get("env", ()) if e["name"] in ("HF_HOME", "HOME", "TMPDIR")
        ]
        for path in [*written, *named]:
            if not any(path.startswith(f"{mount}/") or path == mount for mount in mounts):
                found.append(f"{name} writes {path}, which is in the image")
        if "--cache_dir" not in arguments:
            found.append(f"{name} needs --cache_dir: the image's home is read-only")
        if "/tmp" not in mounts or not any(e["name"] == "HF_HOME" for e in leaf["container"].get("env", ())):
            found.append(f"{name} needs /tmp and HF_HOME, where libraries write")
    return found


def stages_hand_on_commit_and_stop(documents: list[Document]) -> list[str]:
    """Each stage reads the commit of the one before it; why a stop rule fired is an output."""
    found = []
    for name, leaf in argo.leaves(documents).items():
        arguments = leaf["container"].get("args", [])
        flags = dict(itertools.pairwise(arguments))
        outputs = {one["name"]: one["valueFrom"].get("path") for one in leaf.get("outputs", {}).get("parameters", ())}
        wanted = {"plan": {"commit", "sft"}, "fetch-model": set()}.get(name, {"commit", "result", "stop"})
        if set(outputs) != wanted:
            found.append(f"{name}: outputs must be {wanted}; found {set(outputs)}")
        found += [
            f"{name}: --{one}_file and the output differ"
            for one in outputs
            if flags.get(f"--{one}_file") != outputs[one]
        ]
        if name != "plan" and flags.get("--revision") != "{{inputs.parameters.revision}}":
            found.append(f"{name} must be pinned to a commit by --revision")
        if name not in ("plan", "fetch-model") and flags.get("--iteration") != "{{inputs.parameters.iteration}}":
            found.append(f"{name} needs --iteration")
    return found


def the_environment_is_the_same_everywhere(documents: list[Document]) -> list[str]:
    """Parameters, the file for the last words, tokens from the secret alone. HF_TOKEN is never needed."""
    found = []
    for name, leaf in argo.leaves(documents).items():
        given = {one["name"]: one for one in leaf["container"].get("env", ())}
        if given.get("SELF_REWARD_PARAMETERS", {}).get("value") != "{{workflow.parameters.json}}":
            found.append(f"{name}: SELF_REWARD_PARAMETERS")
        if given.get("TERMINATION_LOG", {}).get("value") != "/dev/termination-log":
            found.append(f"{name}: TERMINATION_LOG, without which the UI shows no reason")
        for token in ("OXEN_TOKEN", "HF_TOKEN"):
            reference = given.get(token, {}).get("valueFrom", {}).get("secretKeyRef", {})
            if reference.get("key") != token or not reference.get("name"):
                found.append(f"{name}: {token} from the secret")
            if token == "HF_TOKEN" and reference.get("optional") is not True:
                found.append(f"{name}: HF_TOKEN is optional")
        cores = given.get("OMP_NUM_THREADS", {}).get("valueFrom", {}).get("resourceFieldRef", {}).get("resource")
        if name in TORCH_LEAVES and cores != "requests.cpu":
            found.append(f"{name}: OMP_NUM_THREADS, without which two pods on a node slow each other down tenfold")
        found += [f"{name}: {one} is given as a value" for one in given
                  if "TOKEN" in one and "value" in given[one]]  # fmt: skip
    found += [f"parameter {one}: a secret?" for one in argo.run_parameters(documents)
              if re.search(r"token$|password|secret|credential", one)]  # fmt: skip
    return found


def plan_starts_in_a_bare_namespace(documents: list[Document]) -> list[str]:
    """It is plan that says what is missing: its own pod may wait for nothing but its service account."""
    pod = argo.pod(documents, argo.leaves(documents)["plan"])
    found = [f"plan mounts {volume}" for volume in pod["volumes"] if "emptyDir" not in volume]
    for one in pod["containers"][0].get("env", ()):
        source = one.get("valueFrom", {})
        reference = source.get("secretKeyRef") or source.get("configMapKeyRef")
        if reference and reference.get("optional") is not True:
            found.append(f"plan needs {one['name']}")
    found += ["plan needs what envFrom names"] * ("envFrom" in pod["containers"][0])
    if "--in_cluster" not in pod["containers"][0].get("args", ()):
        found.append("plan must look at the cluster: --in_cluster")
    if "serviceAccountName" not in argo.leaves(documents)["plan"]:
        found.append("plan needs a service account of its own, which may look at the cluster")
    return found


def service_accounts_may_do_little(documents: list[Document]) -> list[str]:
    """Never the namespace's default account. A stage reports to Argo and nothing else; plan looks, too."""
    found = []
    accounts = {
        name: argo.pod(documents, leaf).get("serviceAccountName") for name, leaf in argo.leaves(documents).items()
    }
    for name, account in accounts.items():
        if account in (None, "default") or (name != "plan" and account == accounts["plan"]):
            found.append(f"{name}: service account {account}")
    for document in argo.of_kind(documents, "Role", "ClusterRole"):
        for rule in document["rules"]:
            writes = set(rule["verbs"]) - {"get", "list", "watch"}
            if "*" in [*rule["verbs"], *rule.get("resources", ()), *rule.get("apiGroups", ())]:
                found.append(f"{document['metadata']['name']}: a wildcard")
            elif writes and (rule["resources"], writes) != (["workflowtaskresults"], {"create", "patch"}):
                found.append(f"{document['metadata']['name']} may {writes} {rule['resources']}")
            if "secrets" in rule.get("resources", ()) and (
                set(rule["verbs"]) != {"get"} or not rule.get("resourceNames")
            ):
                found.append(f"{document['metadata']['name']} may see secrets that are not its own")
    for name, pod in argo.other_pods(documents).items():
        if pod.get("automountServiceAccountToken") is not False:
            found.append(f"{name} gets a token of the cluster; automountServiceAccountToken: false")
    return found


def no_namespace_is_rendered(documents: list[Document]) -> list[str]:
    """The namespace is the one that is installed into; `argo lint --offline` finds only templates without one."""
    return [f"{d['kind']} {d['metadata'].get('name')}" for d in documents if "namespace" in d["metadata"]]


def locks_are_of_the_whole_run(documents: list[Document]) -> list[str]:
    """A mutex on a recursive template waits for itself. Named after what two runs would both write."""
    found = [f"{name} has a lock" for (_, name), one in argo.templates(documents).items() if "synchronization" in one]
    mutexes = argo.run(documents).get("synchronization", {}).get("mutexes", [])
    names = " ".join(mutex["name"] for mutex in mutexes)
    for one in ("data_repo", "branch"):
        if f"{{{{workflow.parameters.{one}}}}}" not in names:
            found.append(f"a workflow-level mutex named after {one}")
    return found


def the_recursion_is_shallow_enough(documents: list[Document]) -> list[str]:
    """100 calls within each other end a workflow with an error; as many iterations as plan lets pass must fit."""
    flows = argo.flows(documents)
    found = []

    def depth(owner: str, template: Document) -> int:
        inner = [argo.called(documents, owner, step) for _, step in argo.steps(template)]
        return 1 + max([depth(owner, one) for one in inner if one and one is not template], default=0)

    recursive = [n for n, one in flows.items() for _, s in argo.steps(one) if s.get("template") == n]
    if recursive != ["loop"]:
        return [f"one template that calls itself: loop; found {recursive}"]
    most = next(bound.le for bound in flat(Plan)["iterations"][1].metadata if hasattr(bound, "le"))
    deepest = depth(argo.RUN, flows["main"]) - 1 + most
    if deepest > DEPTH:
        found.append(f"{most} iterations are {deepest} calls deep")
    again = argo.step(
        documents, "loop", next(s["name"] for _, s in argo.steps(flows["loop"]) if s.get("template") == "loop")
    )
    condition = again.get("when", "")
    for word in (
        "workflow.parameters.iterations",
        "workflow.parameters.start_iteration",
        "outputs.parameters.stop == ''",
    ):
        if word not in condition:
            found.append(f"the loop must look at {word}: {condition!r}")
    if any(len(step["name"]) > 5 for _, step in argo.steps(flows["loop"])):
        found.append("names of nodes grow with each level: names of the loop's steps have five letters at most")
    return found


def logs_outlive_their_pods_for_a_while(documents: list[Document]) -> list[str]:
    """Logs go with the pods [7830, 14885]; pods and workflows that are never removed fill the cluster."""
    whole = argo.run(documents)
    collection, kept = whole.get("podGC", {}), whole.get("ttlStrategy", {})
    found = []
    if collection.get("strategy") != "OnWorkflowCompletion" and not whole.get("archiveLogs"):
        found.append(f"podGC after the workflow, or archiveLogs: {collection}")
    if not re.fullmatch(r"\d+h", collection.get("deleteDelayDuration", "")):
        found.append(f"podGC.deleteDelayDuration of hours: {collection}")
    if not kept or min(kept.values()) < 86400:
        found.append(f"ttlStrategy of a day or more: {kept}")
    return found


def metrics_have_few_series(documents: list[Document]) -> list[str]:
    """A label with the iteration or the run would make a new series each time."""
    found = []
    for name, template in [*argo.templates(documents).items(), ((argo.RUN, "spec"), argo.run(documents))]:
        for metric in template.get("metrics", {}).get("prometheus", ()):
            for label in metric.get("labels", ()):
                tags = argo.TAG.findall(label["value"])
                if label["key"] != "stage" or any(tag != "inputs.parameters.stage" for tag in tags):
                    found.append(f"{name}: label {label}")
            if not re.fullmatch(r"[a-z][a-z_]*", metric["name"]) or not metric.get("help"):
                found.append(f"{name}: metric {metric['name']}")
            if metric.get("gauge", {}).get("realtime"):
                found.append(f"{name}: a realtime gauge is kept in the controller's memory for each node")
    return found


def programs_and_flags_are_there(documents: list[Document]) -> list[str]:
    """Each leaf runs a program of stages/ with flags that it has; each program is run by the flow."""
    found = []
    programs = {path.stem for path in Path(argo.ROOT / "stages").glob("*.py")}
    run = set()
    for _, flow in argo.flows(documents).items():
        for _, step in argo.steps(flow):
            reference = step.get("templateRef", {}).get("template")
            stage = [p["value"] for p in step.get("arguments", {}).get("parameters", ()) if p["name"] == "stage"]
            if reference is None:  # a template of this file that hands the stage on
                run |= {value for value in stage if not argo.TAG.search(value)}
                continue
            arguments = argo.leaves(documents).get(reference, {}).get("container", {}).get("args", [""])
            for value in stage or [""]:
                program = arguments[0].replace("{{inputs.parameters.stage}}", value).removeprefix("stages/")[:-3]
                if not argo.TAG.search(program):
                    run.add(program)
    found += [f"stages/{one}.py is run by no step" for one in sorted(programs - run)]
    found += [f"stages/{one}.py is not there" for one in sorted(run - programs)]
    for name, leaf in argo.leaves(documents).items():
        words = leaf["container"].get("args", [])
        for before, word in itertools.pairwise(words):
            if not word.startswith("--") and not before.startswith("--"):
                found.append(f"{name}: {word} belongs to no flag")
        for word in words:
            if word.startswith("--") and word[2:] not in flat(Plan):
                found.append(f"{name}: {word} is not a parameter")
            if word.startswith("--") and word[2:] not in (*BY_STEP, *BY_TEMPLATE):
                found.append(f"{name}: {word} is for the whole run: it comes with SELF_REWARD_PARAMETERS")
        if ("--merge" in words) != (name == "merge"):
            found.append(f"{name}: --merge joins shards, in the step merge alone")
    return found


def images_are_ours_and_kept(documents: list[Document]) -> list[str]:
    """Stages without a model have the small image. A node does not ask the registry for an image that it has."""
    found = []
    for name, leaf in argo.leaves(documents).items():
        of_model = name in GPU_LEAVES | {"export"}
        image = leaf["container"].get("image", "")
        if not re.search(rf"(^|/)self-reward/{'model' if of_model else 'data'}[:@]\S+$", image):
            found.append(f"{name}: image {image}")
        if leaf["container"].get("imagePullPolicy") != "IfNotPresent":
            found.append(f"{name}: imagePullPolicy IfNotPresent")
    return found


def _with_key(documents: list[Document], key: str) -> list[str]:
    """Where a field of this name is in a workflow or a template of one."""

    def where(value: object, path: str) -> list[str]:
        inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
        return [f"{path}.{name}" for name, _ in inner if name == key] + [
            hit for name, one in inner for hit in where(one, f"{path}.{name}")
        ]

    return [hit for d in argo.of_kind(documents, "Workflow", "WorkflowTemplate") for hit in where(d["spec"], "spec")]


def _limit(pod: Document, name: str) -> object:
    return pod["containers"][0].get("resources", {}).get("limits", {}).get(name)


def _bytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", quantity).groups()  # type: ignore[union-attr]
    return float(number) * UNITS.get(unit, 1)
