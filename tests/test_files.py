"""Files and folders written whole or not at all; locks. Killed processes are real ones."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from self_reward import files
from self_reward.errors import TryAgain, UserError

ROOT = Path(__file__).parents[1]


def start(body: str, *words: object) -> subprocess.Popen:
    """A process that runs `body`, and has printed a line before this returns."""
    command = [
        sys.executable,
        "-c",
        f"import os, sys, time\nfrom pathlib import Path\nfrom self_reward import files\n{body}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*command, *map(str, words)], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline()
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- files


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new/folder/file"
    with files.whole_file(path) as part:
        part.write_text("first half, ")
        with open(part, "a") as file:
            file.write("second half")
        assert not path.exists()
    assert path.read_text() == "first half, second half" and names(path.parent) == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    files.write_whole(path, "old")
    with pytest.raises(ValueError, match="mine"), files.whole_file(path) as part:
        part.write_text("new")
        raise ValueError("mine")
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("durable", [True, False])
def test_only_a_durable_file_is_synced_and_before_it_gets_its_name(tmp_path, monkeypatch, durable):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append((os.fstat(descriptor).st_size, path.exists())))
    path = tmp_path / "file"
    files.write_whole(path, "text", durable=durable)
    assert synced == ([(4, False)] if durable else [])


def test_text_and_bytes(tmp_path):
    files.write_whole(tmp_path / "text", "ü")
    files.write_whole(tmp_path / "bytes", b"\xff")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xbc" and (tmp_path / "bytes").read_bytes() == b"\xff"


def test_what_a_killed_process_left_is_replaced_by_the_next_one(tmp_path):
    path = tmp_path / "file"
    body = (
        "with files.whole_file(Path(sys.argv[1])) as part:\n"
        "    part.write_text('x' * 99); print(1, flush=True); time.sleep(99)\n"
    )
    kill(start(body, path))
    assert names(tmp_path) == [".file.part"] and files.partial(path).read_text() == "x" * 99
    with files.whole_file(path) as part:
        assert part.read_bytes() == b""
        part.write_text("new")
    assert names(tmp_path) == ["file"] and path.read_text() == "new"


def test_several_writers_of_one_file_leave_one_whole_file(tmp_path):
    """Unequal lengths: a mixture would show."""
    path, failures = tmp_path / "file", []

    def write(letter: str) -> None:
        try:
            for count in range(1, 40):
                files.write_whole(path, letter * count * 1000, durable=False)
                assert len(set(path.read_text())) == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and names(tmp_path) == ["file"] and len(path.read_text()) == 39000


def test_a_writer_waits_for_another_process(tmp_path):
    path = tmp_path / "file"
    body = (
        "with files.whole_file(Path(sys.argv[1])) as part:\n"
        "    part.write_text('theirs'); print(1, flush=True); time.sleep(0.5)\n"
    )
    other = start(body, path)
    files.write_whole(path, "mine")
    other.communicate()
    assert other.returncode == 0 and path.read_text() == "mine" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["a" * 249, "a" * 250, "a" * 255, "ä" * 127, "a.b", ".hidden"])
def test_names_up_to_the_longest(tmp_path, name):
    assert files.partial(tmp_path / name).name.startswith(".")
    files.write_whole(tmp_path / name, "text")
    assert names(tmp_path) == [name]


def test_long_names_with_one_beginning_have_partial_files_of_their_own(tmp_path):
    assert files.partial(tmp_path / ("a" * 254 + "b")) != files.partial(tmp_path / ("a" * 254 + "c"))


# ---- folders


def test_a_folder_appears_when_it_is_whole_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "folder"
    for content in ("old", "new"):
        with files.whole_folder(path) as part:
            (part / content).touch()
            assert content not in (names(path) if path.exists() else [])
        assert names(path) == [content] and names(tmp_path) == ["folder"]


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/old").touch()
    with pytest.raises(TryAgain, match="the disk is full"), files.whole_folder(tmp_path / "folder") as part:
        (part / "new").touch()
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


def test_what_a_killed_process_left_of_a_folder_is_replaced(tmp_path):
    body = (
        "with files.whole_folder(Path(sys.argv[1])) as part:\n"
        "    (part / 'theirs').touch(); print(1, flush=True); time.sleep(99)\n"
    )
    kill(start(body, tmp_path / "folder"))
    assert names(tmp_path) == [".folder.part"]
    with files.whole_folder(tmp_path / "folder") as part:
        assert names(part) == []
    assert names(tmp_path) == ["folder"]


# ---- locks

HOLD = "file = files.lock(Path(sys.argv[1]), shared=sys.argv[2] == 'shared'); print(1, flush=True); time.sleep(99)"


@pytest.mark.parametrize(
    "theirs, shared, is_free",
    [("exclusive", False, False), ("exclusive", True, False), ("shared", False, False), ("shared", True, True)],
)
def test_who_may_hold_a_lock_beside_whom(tmp_path, theirs, shared, is_free):
    other = start(HOLD, tmp_path / "lock", theirs)
    if is_free:
        files.lock(tmp_path / "lock", shared=shared, seconds=0).close()
    else:
        with pytest.raises(files.Locked):
            files.lock(tmp_path / "lock", shared=shared, seconds=0)
    kill(other)
    files.lock(tmp_path / "lock", shared=shared, seconds=0).close()  # the lock ended with its process


def test_a_lock_ends_when_the_file_is_closed(tmp_path):
    with files.lock(tmp_path / "a/lock"), pytest.raises(files.Locked):
        files.lock(tmp_path / "a/lock", seconds=0)
    files.lock(tmp_path / "a/lock", seconds=0).close()


def test_waiting_for_a_lock(tmp_path):
    with files.lock(tmp_path / "lock"):
        started = time.monotonic()
        with pytest.raises(files.Locked):
            files.lock(tmp_path / "lock", seconds=0.3)
        assert 0.3 <= time.monotonic() - started < 20
    for seconds in (30, float("inf")):
        file = files.lock(tmp_path / "lock")
        threading.Timer(0.2, file.close).start()
        files.lock(tmp_path / "lock", seconds=seconds).close()
        assert file.closed


def test_the_error_names_the_file_and_carries_what_it_says_of_the_holder(tmp_path):
    for written, words in (("17", "process 17"), ("", "another process"), ('{"pid": 17}', "another process")):
        with files.lock(tmp_path / "lock") as file:
            file.truncate(0)
            os.pwrite(file.fileno(), written.ljust(100).encode(), 0)
            with pytest.raises(files.Locked, match=f"{tmp_path}/lock is locked by {words}") as raised:
                files.lock(tmp_path / "lock", seconds=0)
        assert raised.value.holder == written


def test_a_child_process_holds_the_lock_that_it_inherits(tmp_path):
    with files.lock(tmp_path / "lock") as file:
        child = subprocess.Popen(["sleep", "99"], pass_fds=[file.fileno()])
        other = subprocess.Popen(["sleep", "99"])
    with pytest.raises(files.Locked):
        files.lock(tmp_path / "lock", seconds=0)
    kill(child)
    files.lock(tmp_path / "lock", seconds=0).close()  # `other` was not given it
    kill(other)


@pytest.mark.parametrize("seconds", [30, float("inf")])
@pytest.mark.parametrize("change", ["removed", "replaced", "its folder removed"])
def test_who_waits_for_a_file_that_its_holder_removes_locks_the_new_one(tmp_path, change, seconds):
    path = tmp_path / "folder/lock"
    held, locked = files.lock(path), []
    waiter = threading.Thread(target=lambda: locked.append(files.lock(path, seconds=seconds)))
    waiter.start()
    time.sleep(0.2)
    path.unlink()
    if change == "replaced":
        path.touch()
    elif change == "its folder removed":
        path.parent.rmdir()
    held.close()
    waiter.join(30)
    with locked[0] as file:
        assert os.fstat(file.fileno()).st_ino == path.stat().st_ino
        with pytest.raises(files.Locked):
            files.lock(path, seconds=0)


def test_a_folder_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.lock(tmp_path / "file/lock")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=f"{tmp_path}/lock cannot be locked: Function not implemented"):
        files.lock(tmp_path / "lock")


# ---- reserved folders

RESERVE = "with files.reserved(Path(sys.argv[1])): print(1, flush=True); time.sleep(99)"


def test_a_reserved_folder_is_left_to_one_process_which_the_error_names(tmp_path):
    other = start(RESERVE, tmp_path / "work/folder")
    with pytest.raises(files.Locked) as raised, files.reserved(tmp_path / "work/folder"):
        raise AssertionError("not reached")
    assert raised.value.holder == str(other.pid) and raised.value.path == tmp_path / "work/folder.lock"
    kill(other)
    assert names(tmp_path / "work") == ["folder.lock"]
    with files.reserved(tmp_path / "work/folder"):
        assert (tmp_path / "work/folder.lock").read_text() == str(os.getpid())
    assert names(tmp_path) == []


def test_what_else_lies_beside_a_reserved_folder_stays(tmp_path):
    (tmp_path / "work/folder").mkdir(parents=True)
    with pytest.raises(ValueError), files.reserved(tmp_path / "work/folder"):
        raise ValueError
    assert names(tmp_path / "work") == ["folder"]


def test_processes_that_reserve_one_folder_again_and_again_are_never_there_together(tmp_path):
    """Each removes the lock file while others open it."""
    body = (
        "print(1, flush=True)\n"
        "for _ in range(150):\n"
        "    try:\n"
        "        with files.reserved(Path(sys.argv[1])):\n"
        "            Path(sys.argv[2]).mkdir(); Path(sys.argv[2]).rmdir()\n"  # fails where another is there
        "    except files.Locked: pass\n"
    )
    others = [start(body, tmp_path / "work/folder", tmp_path / "here") for _ in range(3)]
    assert [other.wait() for other in others] == [0, 0, 0] and names(tmp_path) == []


def test_an_unreserved_folder_is_removed_and_a_reserved_one_stays(tmp_path):
    (tmp_path / "work/folder").mkdir(parents=True)
    assert files.remove_unreserved(tmp_path / "work/folder") and names(tmp_path) == []
    assert not files.remove_unreserved(tmp_path / "work/folder") and names(tmp_path) == []  # nothing there
    other = start(RESERVE, tmp_path / "work/folder")
    (tmp_path / "work/folder").mkdir()
    assert not files.remove_unreserved(tmp_path / "work/folder")
    assert names(tmp_path / "work") == ["folder", "folder.lock"]
    other.send_signal(signal.SIGKILL)
    other.communicate()
    assert files.remove_unreserved(tmp_path / "work/folder") and names(tmp_path) == []
