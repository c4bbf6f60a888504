"""Reading logs onwards: every line once and in order, whatever happens to the files."""

import asyncio
import gzip
import os
import shutil
import subprocess
import threading
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.errors import CannotLook
from monitor.probes import log_tail
from monitor.probes.logs import LogFiles
from monitor.probes_contract import LogPiece, LogPosition
from tests.conftest import tool


class Tail:
    """Reads on until there is nothing more, as a check does."""

    def __init__(self, path: Path, max_bytes: int = 1_000_000) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.position: LogPosition | None = None
        self.last: LogPiece | None = None
        self.missed = 0

    def read(self) -> list[str]:
        lines: list[str] = []
        while True:
            self.last = log_tail.read_on(str(self.path), self.position, max_bytes=self.max_bytes)
            self.position = self.last.position
            self.missed += self.last.missed_bytes
            lines += self.last.lines
            if not self.last.more:
                return lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "service.log"
    path.write_text("one\ntwo\n")
    return path


@pytest.fixture
def tail(log: Path) -> Tail:
    tail = Tail(log)
    assert tail.read() == ["one", "two"]
    return tail


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def older(path: Path, seconds: float) -> None:
    at = time.time() - seconds
    os.utime(path, (at, at))


def test_only_what_was_added(log: Path, tail: Tail) -> None:
    assert tail.read() == []
    add(log, "three\r\n\nfour\n")
    assert tail.read() == ["three", "", "four"]
    assert tail.last
    assert not tail.last.rotated
    assert not tail.last.truncated
    assert not tail.missed


def test_a_line_without_its_end_waits(log: Path, tail: Tail) -> None:
    add(log, "thr")
    assert tail.read() == []
    assert tail.last
    assert not tail.last.more
    add(log, "ee\nfo")
    assert tail.read() == ["three"]


def test_without_a_position_the_last_whole_lines(log: Path) -> None:
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    tail = Tail(log, max_bytes=200_000)
    lines = tail.read()
    assert lines[-1] == "line 99999"
    assert lines == [f"line {number}" for number in range(100_000 - len(lines), 100_000)]
    assert 100_000 < sum(map(len, lines)) <= 200_000
    assert tail.missed == 0


@pytest.mark.parametrize("name", ["service.log.1", "service.log-20261124", "service.log.2026-11-24", "service-20261124.log"])
def test_a_renamed_file_is_read_to_its_end(log: Path, tail: Tail, name: str) -> None:
    add(log, "three\nlast without end")
    log.rename(log.with_name(name))
    log.write_text("new\n")
    assert tail.read() == ["three", "last without end", "new"]
    assert tail.last
    assert tail.last.rotated
    assert tail.read() == []


def test_a_writer_that_has_not_noticed_the_renaming_is_followed(log: Path, tail: Tail) -> None:
    with log.open("a") as writer:
        log.rename(log.with_name("service.log.1"))
        log.touch()
        writer.write("still here\n")
        writer.flush()
        assert tail.read() == ["still here"]
        writer.write("and he")
        writer.flush()
        assert tail.read() == []
        writer.write("re\n")
    add(log, "new\n")
    assert tail.read() == ["and here", "new"]


def test_several_rotations_while_nobody_looked(log: Path, tail: Tail) -> None:
    for number in range(3):
        add(log, f"day {number}\n")
        older(log, 300 - number)
        for older_one in (2, 1):
            part = log.with_name(f"service.log.{older_one}")
            if part.exists():
                part.rename(log.with_name(f"service.log.{older_one + 1}"))
        log.rename(log.with_name("service.log.1"))
        log.touch()
    add(log, "today\n")
    assert tail.read() == ["day 0", "day 1", "day 2", "today"]


def test_a_file_that_appears_later(log: Path, tail: Tail) -> None:
    add(log, "three\n")
    log.rename(log.with_name("service.log.1"))
    with pytest.raises(FileNotFoundError):
        tail.read()
    log.write_text("new\n")
    assert tail.read() == ["three", "new"]


def test_a_truncated_file_is_read_from_its_start(log: Path, tail: Tail) -> None:
    log.write_text("new\n")
    assert tail.read() == ["new"]
    assert tail.last
    assert tail.last.truncated


def test_a_truncated_file_that_grew_again_is_not_taken_for_the_old_one(log: Path, tail: Tail) -> None:
    log.write_text("quite another text, longer than before\nand more\n")
    assert tail.read() == ["quite another text, longer than before", "and more"]


def test_copytruncate_loses_nothing(log: Path, tail: Tail) -> None:
    add(log, "three\n")
    shutil.copy(log, log.with_name("service.log.1"))
    log.write_text("new\n")
    assert tail.read() == ["three", "new"]
    assert tail.last
    assert tail.last.truncated
    assert not tail.last.rotated


def test_zeros_where_a_file_was_truncated_under_its_writer(log: Path, tail: Tail) -> None:
    with log.open("r+b") as writer:
        writer.seek(0, os.SEEK_END)
        os.truncate(log, 0)
        writer.write(b"after the hole\n")
    assert tail.read() == ["after the hole"]


def test_a_deleted_file_whose_inode_is_used_again(log: Path, tail: Tail) -> None:
    log.unlink()
    log.write_text("quite another text, longer than before\n")
    assert tail.read() == ["quite another text, longer than before"]


def test_a_compressed_file_tells_how_much_was_missed(log: Path, tail: Tail) -> None:
    add(log, "12345\n")
    with gzip.open(log.with_name("service.log.2.gz"), "wb") as packed:
        packed.write(log.read_bytes())
    older(log.with_name("service.log.2.gz"), 100)
    log.unlink()
    log.with_name("service.log.1").write_text("plain and later\n")
    log.write_text("quite another text\n")
    assert tail.read() == ["plain and later", "quite another text"]
    assert tail.missed == 6


def test_other_logs_beside_it_are_not_mixed_in(log: Path, tail: Tail) -> None:
    log.with_name("service-error.log").write_text("one\ntwo\nnot ours\n")
    log.with_name("service.log.json").write_text("one\ntwo\nnot ours\n")
    log.rename(log.with_name("service.log.1"))
    log.write_text("new\n")
    assert tail.read() == ["new"]


def test_links_are_followed_to_where_they_lead(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    real, link = tmp_path / "data" / "app.2026-11-24.log", tmp_path / "app.log"
    real.write_text("one\n")
    link.symlink_to(real)
    tail = Tail(link)
    assert tail.read() == ["one"]
    add(real, "two\n")
    real.rename(tmp_path / "data" / "app.2026-11-24.log.1")
    real.write_text("three\n")
    assert tail.read() == ["two", "three"]


def test_a_line_too_long_is_cut_and_its_rest_is_no_line(log: Path, tail: Tail) -> None:
    add(log, "x" * 100_000)
    assert tail.read() == ["x" * log_tail.LINE_BYTES]
    add(log, "y" * 300_000)
    assert tail.read() == []
    add(log, "z\nnext\n" + "w" * 70_000 + "\nshort\n")
    assert tail.read() == ["next", "w" * log_tail.LINE_BYTES, "short"]
    assert tail.missed == (100_000 - log_tail.LINE_BYTES) + 300_000 + 2 + (70_000 - log_tail.LINE_BYTES)


def test_binary_rubbish_is_lines_too(log: Path, tail: Tail) -> None:
    log.write_bytes(log.read_bytes() + os.urandom(300_000) + b"\n\xff\xfe\x1b[31m\x00ok\n")
    lines = tail.read()
    assert lines[-1].endswith("ok")
    assert all("\n" not in line for line in lines)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["write", "half", "rename", "copytruncate", "look"]), max_size=25))
def test_every_line_once_and_in_order(tmp_path: Path, deeds: list[str]) -> None:
    folder = tmp_path / os.urandom(8).hex()
    folder.mkdir()
    log, written, seen = folder / "a.log", 0, []
    log.touch()
    tail = Tail(log)
    tail.read()
    for number, deed in enumerate(deeds):
        if deed in {"write", "half"}:
            with log.open("a") as file:
                file.write(f"line {written}\n" if deed == "write" else f"line {written}")
                if deed == "half":
                    file.flush()
                    seen += tail.read()
                    file.write("\n")
            written += 1
            os.utime(log, (number, number))
        elif deed == "look":
            seen += tail.read()
        else:
            seen += tail.read()  # an unread empty file leaves no trace by which it could be found again
            if deed == "rename":
                log.rename(folder / f"a.log.2026{number:04}")
            else:
                shutil.copy2(log, folder / f"a.log.2026{number:04}")
                os.truncate(log, 0)
            log.touch()
            os.utime(log, (number, number))
    seen += tail.read()
    assert seen == [f"line {number}" for number in range(written)]


@pytest.mark.parametrize("way", ["create", "copytruncate", "nocreate"])
def test_logrotate_itself(log: Path, tail: Tail, way: str) -> None:
    program = tool("logrotate")
    add(log, "three\n")
    rules = log.with_name("rules")
    rules.write_text(f"{log} {{\n daily\n rotate 14\n compress\n delaycompress\n {way}\n}}\n")
    rules.chmod(0o644)
    log.parent.chmod(0o755)
    for expected in (["three", "new 0"], ["new 1"]):
        subprocess.run([program, "--force", "--state", log.with_name("state"), rules], check=True, timeout=30)
        add(log, f"{expected[-1]}\n")
        assert tail.read() == expected
    assert log.with_name("service.log.2.gz").exists()


def test_200_mb_take_little_memory_and_time(log: Path, tail: Tail) -> None:
    block = b"2026-11-24 03:04:05 ERROR something failed for job 1234567890\n" * 16_384
    with log.open("ab") as file:
        for _ in range(200_000_000 // len(block)):
            file.write(block)
    tail.max_bytes = 1_048_576
    tracemalloc.start()
    began, lines = time.monotonic(), 0
    while True:
        piece = log_tail.read_on(str(log), tail.position, max_bytes=tail.max_bytes)
        tail.position, lines = piece.position, lines + len(piece.lines)
        tail.missed += piece.missed_bytes
        if not piece.more:
            break
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.monotonic() - began < 20
    assert peak_bytes < 8_000_000
    left = log_tail.MAX_BEHIND_BYTES
    assert left - 4096 < lines * 62 <= left
    assert tail.missed + lines * 62 == log.stat().st_size - 8


async def test_a_hanging_disk_holds_one_thread_only(tmp_path: Path) -> None:
    files, release, entered = LogFiles(), threading.Event(), threading.Event()

    def hang(_: object) -> None:
        entered.set()
        release.wait(30)

    waiting = asyncio.create_task(files._in_thread("/dead/disk.log", hang))
    await asyncio.to_thread(entered.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(CannotLook, match="still hangs"):
        await files.read_on("/dead/disk.log", None)
    release.set()
    path = tmp_path / "fine.log"
    path.write_text("fine\n")
    assert (await files.read_on(str(path), None)).lines == ("fine",)
    async with asyncio.timeout(10):
        while True:
            try:
                await files.read_on("/dead/disk.log", None)
            except CannotLook as exc:
                if "No such file" in str(exc):
                    break
            await asyncio.sleep(0)


async def test_what_cannot_be_read_on_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_pipe").symlink_to(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        "none.log": "No such file.*is the path right",
        "to_pipe": "not a regular file",
        "loop": "Too many levels",
        ".": "not a regular",
    }
    for name, words in cases.items():
        with pytest.raises(CannotLook, match=words):
            await LogFiles().read_on(str(tmp_path / name), None)
        with pytest.raises(CannotLook, match=words):
            await LogFiles().family(str(tmp_path / name))


async def test_a_family_is_the_file_its_parts_and_its_folder(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("2026-11-24 first\nsecond\n")
    for name, age in (("a.log.1", 100), ("a.log.2.gz", 200), ("b.log.1", 0)):
        (tmp_path / name).write_text("x" * 10_000)
        older(tmp_path / name, age)
    seen = await LogFiles().family(str(log))
    assert [part.name for part in seen.rotated] == ["a.log.1", "a.log.2.gz"]
    assert (seen.size_bytes, seen.first_line, seen.inode) == (24, "2026-11-24 first", log.stat().st_ino)
    assert seen.folder_bytes >= 30_000
