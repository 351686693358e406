"""Where a store lies: network file systems are noticed, and frozen index files are believed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from memstore import MemoryStore, layout
from memstore.catalog import files as catalog_files
from memstore.catalog import migrate
from memstore.catalog.files import network_file_system
from memstore.index import files, storing

FIXTURES = Path(__file__).parent / "fixtures"
MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - nfs4 server:/home rw,vers=4.2
31 30 8:2 / /home/me/local rw - ext4 /dev/sda2 rw
32 22 0:41 / /mnt/with\040blank rw shared:5 - cifs //server/share rw
33 22 0:42 / /mnt/twice rw - ext4 /dev/sdb rw
34 22 0:43 / /mnt/twice rw - fuse.sshfs me@server: rw
35 22 0:44 / /mnt/cloud rw master:1 shared:2 - fuse.rclone cloud: rw
garbage
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/diary.db", None),
        ("/home/me/diary.db", "nfs4"),
        ("/homes/diary.db", None),
        ("/home/me/local/diary.db", None),
        ("/mnt/with blank/diary.db", "cifs"),
        ("/mnt/twice/diary.db", "fuse.sshfs"),
        ("/mnt/cloud/a/b/diary.db", "fuse.rclone"),
    ],
)
def test_the_file_system_of_a_path_is_found(path, kind):
    """The innermost mount, and of two at one place the later."""
    assert network_file_system(Path(path), MOUNTS) == kind


def test_this_folder_is_on_what_the_system_says(tmp_path):
    """The real table of this machine is read like the made-up one."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        pytest.skip("no /proc here")
    text = mounts.read_text("utf-8")
    assert network_file_system(tmp_path, text) is None
    # The same table, with every file system turned into NFS.
    turned = "\n".join(line.partition(" - ")[0] + " - nfs x rw" for line in text.splitlines())
    assert network_file_system(tmp_path, turned) == "nfs"


def test_a_store_on_a_network_file_system_is_warned_of(path, encoder, monkeypatch, caplog):
    """Said once at opening; the store works all the same."""
    MemoryStore.open(path, encoder=encoder).close()
    assert caplog.text == ""
    monkeypatch.setattr(catalog_files, "network_file_system", lambda *_: "nfs4")
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.insert("all the same") == 1
    assert caplog.text.count("network file system (nfs4)") == 1


def test_frozen_index_files_are_believed(path, encoder, caplog):
    """Files of this format, written by an earlier version, are read and not built anew."""
    frozen = FIXTURES / f"index-{files.FORMAT}.db"
    shutil.copy(frozen, path)
    shutil.copytree(layout.index_folder(frozen), layout.index_folder(path))
    migrate.upgrade(path, 5.0)
    with MemoryStore.open(path, mode="r", encoder=encoder) as store:
        with store._upkeep.moment() as now:
            manifest = store._indices.manifest(now)
            held = storing.load_neurons(layout.index_folder(path), manifest).traces()
        assert np.array_equal(held.to_dense(), store.traces().to_dense())
        assert [hit.id for hit in store.top(2, 5)] == [4, 9, 15, 20, 24]
        assert len(store.search("entry 7", 5)) == 5
        assert store._indices._dense.change == manifest.fields["vectors"]["change"]
        assert store.check() == []
    assert caplog.text == ""


def test_an_older_index_format_is_built_anew(path, encoder, caplog):
    """A file of a format that is no more: said, rebuilt, answered."""
    with MemoryStore.open(path, encoder=encoder) as store:
        store.insert_many([f"memory {i}" for i in range(50)])
        expected = store.top(3, 50)
        store.optimize()
    for file in layout.index_folder(path).glob("*.idx"):
        fields = files.read(file, file.name.split("-")[0])
        with pytest.MonkeyPatch.context() as older:
            older.setattr(files, "FORMAT", files.FORMAT - 1)
            files.write(file, fields.kind, fields.fields, fields.arrays)
    with MemoryStore.open(path, encoder=encoder) as store:
        assert store.top(3, 50) == expected
    assert "format" in caplog.text
