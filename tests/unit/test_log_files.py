"""Reading logs backwards: right lines in right order, whatever the file holds, in bounded memory."""

import os
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor.errors import CannotLook
from monitor.probes import logs
from monitor.probes.logs import LogFiles


async def test_the_last_matching_lines_come_oldest_first(tmp_path: Path) -> None:
    file = tmp_path / "service.log"
    file.write_text("".join(f"line {number} job-{number % 3}\n" for number in range(50_000)))
    assert await LogFiles().matching(str(file), "job-1", limit=2) == ("line 49996 job-1", "line 49999 job-1")
    assert await LogFiles().matching(str(file), "line 7 ", limit=5) == ("line 7 job-1",)
    assert await LogFiles().matching(str(file), "job.1", limit=5) == ()
    assert await LogFiles().matching(str(file), "job-1", limit=0) == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text(alphabet="ab é", max_size=9)),
    ended=st.booleans(),
    needle=st.sampled_from(["", "a", "ab", "é", "b a"]),
    block=st.integers(1, 9),
)
async def test_any_block_size_gives_the_same_lines(tmp_path: Path, lines: list[str], ended: bool, needle: str, block: int) -> None:
    file = tmp_path / "any.log"
    text = "\n".join(lines) + ("\n" if ended else "")
    file.write_text(text)
    expected = tuple(" ".join(line.split()) for line in text.splitlines() if needle in line)
    with file.open("rb") as opened:
        found = [line for line in logs._matching_backwards(opened, needle.encode(), block_bytes=block) if line is not None]
    assert tuple(" ".join(line.decode().split()) for line in reversed(found)) == expected


async def test_binary_and_control_characters_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "binary.log"
    file.write_bytes(b"ok job-1\n\x00\xff\xfe\x1b[31mjob-1 red\x1b[0m\x07\r\n" + "job-1 \u202egnp.exe\n".encode())
    assert await LogFiles().matching(str(file), "job-1", limit=9) == ("ok job-1", "�� [31mjob-1 red [0m", "job-1 gnp.exe")


async def test_a_line_of_a_gigabyte_costs_little_memory(tmp_path: Path) -> None:
    file = tmp_path / "huge.log"
    with file.open("wb") as opened:
        opened.write(b"before\njob-1 starts here ")
        opened.seek(1024 * 1024 * 1024)  # sparse: it takes no disk
        opened.write(b" needle\nafter\n")
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (line,) = await LogFiles().matching(str(file), "needle", limit=3)
    assert len(line) <= logs.SHOWN_CHARS
    assert await LogFiles().matching(str(file), "after", limit=3) == ("after",)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 20_000


async def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, words in [(tmp_path / "none.log", "No such file"), (tmp_path, "not a regular file"), (pipe, "not a regular file")]:
        with pytest.raises(CannotLook, match=words) as caught:
            await LogFiles().matching(str(path), "x", limit=1)
        assert str(path) in str(caught.value)


async def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    (tmp_path / "empty.log").touch()
    assert await LogFiles().matching(str(tmp_path / "empty.log"), "", limit=5) == ()
