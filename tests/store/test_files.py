"""Uploads come back byte for byte, in order, and are gone once dropped or expired."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from trefoil.errors import FileNotFound, InvalidSetting
from trefoil.store import database
from trefoil.store.files import Page, StoredFile
from trefoil.store.store import Store


def add(store: Store, name: str = "a.jsonl", content: bytes = b"{}", **options: object) -> StoredFile:
    return store.files.add(io.BytesIO(content), filename=name, purpose="fine-tune", **options)


def test_upload_comes_back_from_another_process(store: Store, open_store: Callable[[], Store]) -> None:
    content = "一\n".encode() * 50_000
    file = add(store, "训练.jsonl", content, problem="line 1")
    other = open_store()
    assert other.files.get(file.id) == file
    assert file.bytes == len(content)
    assert other.files.path(file.id).read_bytes() == content


def test_list_goes_page_by_page_in_either_order(store: Store) -> None:
    files = [add(store, f"{n}") for n in range(5)]
    assert store.files.list(Page(2)) == (files[:2:-1], True)
    assert store.files.list(Page(9, after=files[1].id)) == (files[:1], False)
    assert store.files.list(Page(3, after=files[1].id, is_newest_first=False)) == (files[2:], False)
    assert store.files.list(Page(9), purpose="other") == ([], False)
    with pytest.raises(FileNotFound):
        store.files.list(Page(2, after="file-none"))


def test_dropped_file_is_gone_with_its_bytes(store: Store) -> None:
    file = add(store)
    path = store.files.path(file.id)
    store.files.drop(file.id)
    assert not path.exists()
    for ask in (store.files.get, store.files.path, store.files.drop):
        with pytest.raises(FileNotFound):
            ask(file.id)


def test_expired_file_is_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, short = add(store, lifetime_s=7200), add(store, lifetime_s=3600)
    monkeypatch.setattr("trefoil.store.files.now", lambda _: short.created_at + 3601)
    with pytest.raises(FileNotFound):
        store.files.get(short.id)
    store.files.sweep()
    assert store.files.list(Page(9)) == ([kept], False)


def test_failed_write_leaves_nothing(store: Store, tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        store.files.add(Broken(), filename="a", purpose="fine-tune")
    assert store.files.list(Page(9)) == ([], False)
    assert list((tmp_path / "data" / "files").iterdir()) == []


def test_tables_are_those_the_code_knows(store: Store, url: str) -> None:
    engine = database.connect(url)
    found = sa.inspect(engine)
    for table in database.metadata.tables.values():
        columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
        assert columns == {column.name: column.nullable for column in table.columns}
    engine.dispose()


@pytest.mark.parametrize("url", ["nonsense", "mysql://a:secret@b/c", "sqlite:////nowhere/at/all.db"])
def test_database_that_cannot_be_had_is_one_line(url: str) -> None:
    with pytest.raises(InvalidSetting, match="--database-url") as raised:
        database.connect(url)
    assert "secret" not in str(raised.value)


def test_database_of_a_newer_trefoil_is_refused(store: Store, url: str) -> None:
    engine = database.connect(url)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(InvalidSetting, match="newer"):
        database.connect(url)
    engine.dispose()
