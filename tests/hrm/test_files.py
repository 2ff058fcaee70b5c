import os

import pytest

from hrm.errors import InputError
from hrm.files import folder_written_beside, require_file, require_new, require_writable


def write(folder, text="new", **how):
    with folder_written_beside(folder, **how) as part:
        (part / "a").write_text(text)


def test_a_folder_behind_a_link_is_the_one_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to("there")
    for text in ("new", "newer"):
        write(link, text, overwrite=True)
        assert (tmp_path / "there" / "a").read_text() == text and link.is_symlink()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link", "there"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_folder_that_cannot_be_replaced_is_as_before(tmp_path, monkeypatch, failing):
    folder, replace, calls = tmp_path / "folder", os.replace, []
    write(folder, "old")

    def fails(*paths):
        calls.append(paths)
        if len(calls) == failing:
            raise OSError(16, "busy")
        replace(*paths)

    monkeypatch.setattr("hrm.files.os.replace", fails)
    with pytest.raises(OSError, match="busy"):
        write(folder, overwrite=True)
    assert (folder / "a").read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_folders_that_cannot_be_replaced_are_refused_before_the_work(tmp_path, monkeypatch):
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


def test_only_a_folder_of_its_kind_is_replaced(tmp_path):
    kind = ("model folder", ("config.json", "halting.*"))
    for name in ("config.json", "halting.md"):
        (tmp_path / name).write_text("")
    require_new(tmp_path, True, *kind)
    with pytest.raises(InputError, match="exists already; choose another folder, or pass --force"):
        require_new(tmp_path, False, *kind)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "config.json").write_text("precious")
    with pytest.raises(
        InputError, match=r"is no model folder \(it holds deep/config.json\), and --force replaces noth"
    ):
        require_new(tmp_path, True, *kind)


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
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
