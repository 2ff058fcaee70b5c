"""Files and folders: written whole or not at all, refused early."""

import os
import resource
import stat
import subprocess
import sys
import threading
import time

import pytest

from hrm.errors import InputError
from hrm.files import folder_written_beside, require_file, require_new, require_writable, write_json


def write(folder, text="new", **how):
    with folder_written_beside(folder, **how) as part:
        (part / "a").write_text(text)


def test_a_link_to_a_folder_is_followed(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there")
    for text in ("new", "newer"):
        write(link, text, overwrite=True)
        assert (tmp_path / "there" / "a").read_text() == text and link.is_symlink()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "there"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_replaced_is_unchanged(tmp_path, monkeypatch, failing):
    folder, replace, calls = tmp_path / "folder", os.replace, []
    write(folder, "old")

    def fails(*paths):
        calls.append(paths)
        if len(calls) == failing:
            raise OSError(16, "busy")
        replace(*paths)

    monkeypatch.setattr("sys.platform", "another")  # a system that exchanges two names in two steps
    monkeypatch.setattr("os.replace", fails)
    with pytest.raises(OSError, match="busy"):
        write(folder, overwrite=True)
    assert (folder / "a").read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("platform", [sys.platform, "another"])
def test_a_folder_is_replaced_and_leftovers_of_killed_processes_are_removed(tmp_path, monkeypatch, platform):
    monkeypatch.setattr("sys.platform", platform)
    folder = tmp_path / "folder"
    write(folder, "old")
    for name in (".folder.abcdefgh.part", ".folder.abcdefgh.old", ".other.abcdefgh.part", ".folder.mine.part"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("left")
    (tmp_path / ".file.abc_efg1.part").write_text("left")
    with folder_written_beside(folder, overwrite=True) as part, folder_written_beside(folder, overwrite=True) as other:
        for one in (part, other):  # the second sees the lock of the first, and keeps it
            (one / "a").write_text(one.name)
    assert (folder / "a").read_text() == part.name
    write_json(tmp_path / "file", 1)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        ".folder.mine.part", ".other.abcdefgh.part", "file", "folder",
    ]  # fmt: skip


def test_leftovers_of_other_users_are_kept(tmp_path, monkeypatch):
    left, real = tmp_path / ".file.abcdefgh.part", os.open
    left.write_text("")

    def guarded(path, *how):
        if path == left:
            raise PermissionError(13, "denied", str(path))
        return real(path, *how)

    monkeypatch.setattr("os.open", guarded)
    write_json(tmp_path / "file", 1)
    assert sorted(one.name for one in tmp_path.iterdir()) == [".file.abcdefgh.part", "file"]


REPLACE_FOREVER = """
import sys
from hrm.files import folder_written_beside
while True:
    with folder_written_beside(sys.argv[1], overwrite=True) as part:
        for name in "abc":
            (part / name).write_text("x")
    print(flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems replace a folder in two steps")
def test_a_killed_process_leaves_a_complete_folder(tmp_path):
    folder = tmp_path / "folder"
    write(folder, "x")
    for kill in range(12):
        process = subprocess.Popen([sys.executable, "-c", REPLACE_FOREVER, folder], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.0007 * kill)
        process.kill()
        process.communicate()
        assert sorted(one.name for one in folder.iterdir()) == ["a", "b", "c"]
    write(folder, "x", overwrite=True)
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_only_regular_files_are_replaced(tmp_path, monkeypatch):
    replace = os.replace

    def careful(part, path):  # so that a failure of this test does not replace a device
        assert not os.path.lexists(path) or stat.S_ISREG(os.lstat(path).st_mode)
        replace(part, path)

    monkeypatch.setattr("os.replace", careful)
    write_json(os.devnull, 1)
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)

    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("old")
    for name, target in (("link", "there/file"), ("dangling", "there/new"), ("null", os.devnull)):
        (tmp_path / name).symlink_to(target)
        write_json(tmp_path / name, "new")
        assert os.readlink(tmp_path / name) == target
    assert [(tmp_path / "there" / name).read_text() for name in ("file", "new")] == ['"new"\n'] * 2

    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_json(tmp_path / "pipe", "through")
    reader.join()
    assert read == ['"through"\n'] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dangling", "link", "null", "pipe", "there"]


def test_open_files_and_sockets_are_refused(tmp_path, capfd):
    with (tmp_path / "file").open("w+") as file:
        file.write("precious")
        file.flush()
        (tmp_path / "link").symlink_to(f"/dev/fd/{file.fileno()}")
        for path in (f"/dev/fd/{file.fileno()}", tmp_path / "link"):
            with pytest.raises(InputError, match="is an open file and would lose its contents; give the file's name"):
                write_json(path, 1)
        file.seek(0)
        assert file.read() == "precious"
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "socket"))
        with pytest.raises(InputError, match="is a socket or a block device"):
            require_file(tmp_path / "socket")
    write = "from hrm.files import write_json; write_json('/dev/stdout', 'piped')"
    assert subprocess.run([sys.executable, "-c", write], capture_output=True).stdout == b'"piped"\n'


@pytest.fixture
def small_disk():
    """Files of this process end after 10,000 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_reported_with_the_name_and_loses_nothing(tmp_path, small_disk):
    write_json(tmp_path / "file", "old")
    write(tmp_path / "folder", "old")
    with pytest.raises(OSError, match=f"File too large: '{tmp_path / 'file'}'"):
        write_json(tmp_path / "file", "x" * 20_000)
    import numpy as np

    with (
        pytest.raises(OSError, match=f"not written completely .* is the disk full\\?: '{tmp_path / 'folder'}'"),
        folder_written_beside(tmp_path / "folder", overwrite=True) as part,
    ):
        np.save(part / "array.npy", np.zeros(9_000))
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_json("/dev/full", 1)
    assert (tmp_path / "file").read_text() == '"old"\n' and (tmp_path / "folder" / "a").read_text() == "old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]


def test_folders_that_cannot_be_replaced_are_refused_early(tmp_path, monkeypatch):
    (tmp_path / "mounted").mkdir()
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    monkeypatch.setattr("os.path.ismount", lambda path: path == tmp_path / "mounted")
    monkeypatch.chdir(tmp_path / "here" / "deeper")
    for path in (tmp_path / "mounted", tmp_path / "here", ".", ".."):
        with (
            pytest.raises(InputError, match="mount point or the folder you are in.*give the name of a new folder in"),
            folder_written_beside(path, overwrite=True),
        ):
            pytest.fail("the work was done")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["here", "mounted"]
    write("new")
    assert (tmp_path / "here" / "deeper" / "new" / "a").is_file()


def test_only_a_folder_of_the_same_kind_is_replaced(tmp_path):
    kind = ("model folder", ("config.json", "halting.*"))
    for name in ("config.json", "halting.md"):
        (tmp_path / name).write_text("")
    require_new(tmp_path, True, *kind)
    with pytest.raises(InputError, match="exists already; choose another folder, or pass --force"):
        require_new(tmp_path, False, *kind)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text("precious")
    with pytest.raises(
        InputError, match=r"is not a model folder \(it holds deep/config.json\), and --force replaces noth"
    ):
        require_new(tmp_path, True, *kind)


def test_targets_that_cannot_be_written_are_refused_early(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=f"{tmp_path / 'file'}"):
        require_writable(tmp_path / "file" / "deeper")
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        require_file(tmp_path)
    require_file(tmp_path / "new" / "file")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(PermissionError, match=f"denied: '{tmp_path}'"):
        require_writable(tmp_path / "new" / "deeper")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
