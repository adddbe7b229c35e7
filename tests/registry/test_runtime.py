"""The runtime directory: its name, its locks, its key and its address."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from sharedsock.registry import runtime


@pytest.fixture
def directory(tmp_path: Path):  # type: ignore[no-untyped-def]
    path = str(tmp_path / "r")
    number = runtime.make_directory(path)
    yield path, number
    os.close(number)


def test_a_tree_agrees_on_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.TREE_VARIABLE, raising=False)
    name = runtime.tree_directory()
    assert os.environ[runtime.TREE_VARIABLE] == name == runtime.tree_directory()
    assert len(os.path.basename(name).removeprefix("sharedsock-")) == 32
    assert not os.path.exists(name), "drawn, not made"


@pytest.mark.fault("S-02")
def test_the_user_runtime_directory_is_preferred_when_it_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
    assert os.path.dirname(runtime.new_directory_name()) == str(private)
    private.chmod(0o755)
    assert os.path.dirname(runtime.new_directory_name()) == str(tmp_path)
    private.chmod(0o700)
    link = tmp_path / "link"
    link.symlink_to(private)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(link))
    assert os.path.dirname(runtime.new_directory_name()) == str(tmp_path)


@pytest.mark.fault("S-02", "S-15")
def test_a_directory_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        number = runtime.make_directory(str(tmp_path / "r"))
    finally:
        os.umask(before)
    try:
        assert stat.S_IMODE(os.fstat(number).st_mode) == 0o700
        assert not os.get_inheritable(number)
    finally:
        os.close(number)


@pytest.mark.fault("F-112", "S-02")
@pytest.mark.parametrize("kind", ["mode", "owner", "link", "file", "link with slash"])
def test_a_directory_that_is_not_ours_alone_is_refused_before_use(tmp_path: Path, kind: str) -> None:
    if kind == "owner" and os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    path = str(real)
    if kind == "mode":
        real.chmod(0o711)
    elif kind == "owner":
        os.chown(real, 65534, 65534)
    elif kind == "file":
        path = str(tmp_path / "file")
        Path(path).write_bytes(b"")
    else:
        path = str(tmp_path / "link")
        Path(path).symlink_to(real)
        path += "/" if "slash" in kind else ""
    for use in (
        lambda: runtime.open_directory(path),
        lambda: runtime.make_directory(path.rstrip("/")),
        lambda: runtime.acquire_start_lock(path.rstrip("/"), 1.0),
        lambda: runtime.connect_to(path),
    ):
        with pytest.raises(PermissionError) as caught:
            use()
        assert getattr(caught.value, "winerror", None) == 10013
    assert os.listdir(real) == []


def test_a_missing_directory_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        runtime.open_directory(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        runtime.make_directory(str(tmp_path / "none" / "r"))


@pytest.mark.fault("S-06", "S-03")
def test_the_key_is_32_bytes_in_a_0600_file_and_redrawn(directory: tuple[str, int]) -> None:
    path, number = directory
    before = os.umask(0)
    try:
        first = runtime.write_key(number)
    finally:
        os.umask(before)
    assert len(first) == 32
    assert runtime.read_key(number) == first
    assert stat.S_IMODE(os.stat(os.path.join(path, "key")).st_mode) == 0o600
    second = runtime.write_key(number)
    assert second != first
    assert runtime.read_key(number) == second
    assert os.listdir(path) == ["key"]


@pytest.mark.fault("F-112", "S-06")
@pytest.mark.parametrize("kind", ["mode", "link", "short", "fifo"])
def test_a_key_file_that_others_may_have_written_is_refused(directory: tuple[str, int], kind: str) -> None:
    path, number = directory
    key = Path(path, "key")
    if kind == "mode":
        key.write_bytes(b"k" * 32)
        key.chmod(0o640)
    elif kind == "link":
        other = Path(path, "other")
        other.write_bytes(b"k" * 32)
        other.chmod(0o600)
        key.symlink_to(other)
    elif kind == "short":
        key.write_bytes(b"k")
        key.chmod(0o600)
    else:
        os.mkfifo(key, 0o600)
    with pytest.raises(PermissionError):
        runtime.read_key(number)


def test_a_lock_has_one_holder_and_ends_with_it(directory: tuple[str, int]) -> None:
    path, number = directory
    lock = runtime.try_start_lock(number)
    assert lock is not None
    assert not os.get_inheritable(lock)
    assert runtime.try_start_lock(number) is None
    with pytest.raises(TimeoutError):
        runtime.acquire_start_lock(path, 0.01)
    runtime.release_lock(lock)
    again = runtime.try_start_lock(number)
    assert again is not None
    runtime.release_lock(again)


def test_alive_is_what_holds_the_alive_lock(directory: tuple[str, int]) -> None:
    _, number = directory
    assert not runtime.is_alive(number)
    lock = runtime.hold_alive_lock(number)
    assert lock is not None
    assert runtime.is_alive(number)
    runtime.release_lock(lock)
    assert not runtime.is_alive(number)


def test_a_starter_never_holds_the_lock_of_a_directory_that_was_removed(tmp_path: Path) -> None:
    """The ending registry unlinks the lock file while a starter has it open: the starter begins anew."""
    path = str(tmp_path / "r")
    number = runtime.make_directory(path)
    ending = runtime.try_start_lock(number)
    assert ending is not None
    stale = os.open("start.lock", os.O_RDWR | os.O_CLOEXEC, dir_fd=number)
    runtime.remove_directory(path, number)
    runtime.release_lock(ending)
    directory, lock = runtime.acquire_start_lock(path, 1.0)
    assert os.path.samestat(os.fstat(directory), os.stat(path))
    assert not os.path.samestat(os.fstat(lock), os.fstat(stale))
    runtime.release_lock(lock)
    for opened in (stale, directory, number):
        os.close(opened)


def test_removing_leaves_a_directory_that_has_taken_the_name(tmp_path: Path) -> None:
    path = str(tmp_path / "r")
    number = runtime.make_directory(path)
    os.rename(path, tmp_path / "moved")
    other = runtime.make_directory(path)
    runtime.remove_directory(path, number)
    assert os.path.samestat(os.fstat(other), os.stat(path))
    os.close(number)
    os.close(other)


@pytest.mark.fault("S-01", "S-03", "S-15")
def test_the_address_is_a_0600_path_of_a_record_socket(directory: tuple[str, int]) -> None:
    path, number = directory
    before = os.umask(0)
    try:
        listener = runtime.bind_listener(number, path)
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    with listener:
        assert listener.family == socket.AF_UNIX
        assert listener.type & 0xF == socket.SOCK_SEQPACKET
        name = listener.getsockname()
        assert name == os.path.join(path, "s")
        assert not name.startswith("\0")
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
        assert not listener.get_inheritable()
        with runtime.connect_to(path) as channel:
            assert channel.gettimeout() == 0.0
            assert not channel.get_inheritable()
    runtime.bind_listener(number, path).close()  # a dead registry's file is in the way


@pytest.mark.fault("F-08")
@pytest.mark.parametrize("proc", [True, False], ids=["proc", "no proc"])
def test_every_length_of_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proc: bool) -> None:
    if not proc:
        monkeypatch.setattr(runtime, "_DETOUR", "/nowhere/{}")
    base = str(tmp_path)
    tried = []
    for length in [*range(len(base) + 2, 221), 300, 1000]:
        path = base
        while len(path) < length:
            path += "/" + "d" * min(200, length - len(path) - 1) if length - len(path) > 1 else "d"
        os.makedirs(path, 0o700, exist_ok=True)
        number = runtime.open_directory(path)
        with runtime.bind_listener(number, path) as listener, runtime.connect_to(path) as channel:
            channel.send(b"x")
            with listener.accept()[0] as accepted:
                assert accepted.recv(1) == b"x"
        os.unlink("s", dir_fd=number)
        os.close(number)
        tried.append(len(path))
    assert tried[0] < 107 < tried[-1]
    assert set(range(100, 221)) <= set(tried)


@pytest.mark.fault("F-02")
def test_connecting_is_bounded_when_nobody_accepts(directory: tuple[str, int]) -> None:
    path, _ = directory
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.path.join(path, "s"))
        with pytest.raises(ConnectionRefusedError):
            runtime.connect_to(path)
        listener.listen(0)
        with runtime.connect_to(path), pytest.raises(TimeoutError):
            runtime.connect_to(path, 0.05)
