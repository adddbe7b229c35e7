"""`sharedsock errors`: every row of the table is told, found by whatever name it goes by, and never another."""

from __future__ import annotations

import errno
import json

import pytest

import sharedsock as ss
from sharedsock.cli import main
from sharedsock.cli.errors import ADVICE, classes_of, find
from sharedsock.model.errors import WSA_TABLE, WSACode, from_errno

ROWS = {row.name: row for row in WSA_TABLE}


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["errors", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_there_is_advice_for_every_code_and_for_nothing_else() -> None:
    assert set(ADVICE) == set(ROWS)
    assert all(advice and not advice.endswith(".") for advice in ADVICE.values())


@pytest.mark.parametrize("columns", [80, 112])
def test_without_a_code_all_are_listed_and_fit(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown(capsys).splitlines()
    assert [line.split()[:2] for line in lines if line[:5].strip().isdecimal()] == [
        [str(row.number), row.name] for row in WSA_TABLE
    ]
    assert max(map(len, lines)) <= columns
    assert ("ConnectionResetError" in " ".join(lines)) is (columns == 112), "a narrow page leaves the classes out"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("10054", "WSAECONNRESET"),
        ("WSAECONNRESET", "WSAECONNRESET"),
        ("wsaeconnreset", "WSAECONNRESET"),
        ("ECONNRESET", "WSAECONNRESET"),
        ("ConnectionResetError", "WSAECONNRESET"),
        ("995", "WSA_OPERATION_ABORTED"),
        ("WSA_IO_PENDING", "WSA_IO_PENDING"),
        ("EINTR", "WSAEINTR"),
        ("EWOULDBLOCK", "WSAEWOULDBLOCK"),
        ("ENFILE", "WSAEMFILE"),
        ("EPIPE", "WSAESHUTDOWN"),
        ("ENOTSOCK", "WSAENOTSOCK"),
        ("NotASocket", "WSAENOTSOCK"),
        ("TicketExpired", "WSAEINVAL"),
        ("RegistryGone", "WSAENETDOWN"),
        ("EXDEV", "WSASYSCALLFAILURE"),
    ],
)
def test_a_code_is_found_by_each_of_its_names(text: str, name: str) -> None:
    assert [row.name for row in find(text)] == [name]


def test_a_class_of_several_codes_finds_all_of_them() -> None:
    assert [row.number for row in find("OperationAborted")] == [10004, 995]


@pytest.mark.parametrize("row", WSA_TABLE, ids=lambda row: row.name)
def test_the_classes_are_those_an_error_really_has(row: WSACode) -> None:
    own = [one for one in classes_of(row) if issubclass(one, ss.SharedSocketError)]
    plain = [one for one in classes_of(row) if one not in own]
    assert all(one("").winerror == row.number for one in own) or row.name == "WSA_OPERATION_ABORTED"
    if plain:
        assert row.errno is not None
        assert [type(from_errno(row.errno, ""))] == plain


def test_a_page_says_all_there_is_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    page = " ".join(shown(capsys, "10038").split())
    row = ROWS["WSAENOTSOCK"]
    assert page.startswith("WSAENOTSOCK (10038) errno EBADF (9) raised as NotASocket, ForkedDescriptor, LostDescriptor")
    assert f"means {row.meaning} what to do {ADVICE['WSAENOTSOCK']}" in page
    assert "not raised by the Python face" in shown(capsys, "WSASYSNOTREADY")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("10066", "'10066' is no code of the table; nearest: 10065 WSAEHOSTUNREACH, 10067 WSAEPROCLIM"),
        ("wsaeconreset", "'wsaeconreset' is no code of the table; nearest: WSAECONNRESET"),
        ("NotSocket", "nearest: NotASocket"),
        ("-1", "'-1' is no code of the table; without CODE"),
        ("zzzz", "'zzzz' is no code of the table; without CODE, all are listed"),
        ("", "'' is no code of the table"),
    ],
)
def test_an_unknown_code_exits_2_and_names_the_nearest(
    text: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["errors", text])
    captured = capsys.readouterr()
    assert exited.value.code == 2
    assert hint in captured.err
    assert captured.out == ""


def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    every = json.loads(shown(capsys, "--json"))
    assert (every["schema"], len(every["errors"])) == (1, len(WSA_TABLE))
    (one,) = json.loads(shown(capsys, "10035", "--json"))["errors"]
    assert one == {
        "code": 10035,
        "name": "WSAEWOULDBLOCK",
        "errno": errno.EAGAIN,
        "errno_name": "EAGAIN",
        "classes": ["BlockingIOError"],
        "meaning": ROWS["WSAEWOULDBLOCK"].meaning,
        "advice": ADVICE["WSAEWOULDBLOCK"],
    }
