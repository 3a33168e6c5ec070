"""What manifests, which stages write beside their results, say about the files of a data repository."""

import json
import re
from collections.abc import Mapping

from self_reward.store.errors import Corrupt
from self_reward.types import Json


def is_manifest(path: str) -> bool:
    """Whether `path` is where a stage writes its manifest; a user's file of a similar name is the user's."""
    return re.fullmatch(r"M\d+/\w+\.manifest\.json", path) is not None


def outputs(path: str, manifest: bytes) -> dict[str, Json]:
    """What the manifest at `path` records about each file that its stage wrote: sha256, size and, since version 0.1,
    xxh3. Raises Corrupt where it is not what a stage writes."""
    try:
        whole = json.loads(manifest)
        files, inputs = whole["outputs"], [*whole.get("inputs", {}).values(), whole.get("inputs_xxh3", {})]
        if all(isinstance(output["sha256"], str) and isinstance(output["size"], int) for output in files.values()) and (
            all(isinstance(hashes, dict) for hashes in inputs)
        ):
            return files
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise Corrupt(
        f"{path} is not a manifest as stages write them; bring back that of an older commit, or remove it together "
        "with the files that its stage wrote, and run that stage again"
    )


def recorded(contents: Mapping[str, bytes], name: str) -> dict[str, str]:
    """What the manifests among `contents` (path -> content) record as `name`, such as sha256, of the files that stages
    wrote: path -> value, where it is recorded."""
    return {
        path: output[name]
        for manifest, content in contents.items()
        if is_manifest(manifest)
        for path, output in outputs(manifest, content).items()
        if name in output
    }


def recorded_sha256(contents: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 by path of the files that stages wrote, from the manifests among `contents`."""
    return recorded(contents, "sha256")
