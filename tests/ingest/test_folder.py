"""Which files of a folder are documents, how they are read, and what changed since the last look."""

import os
import threading
import time
from pathlib import Path

import pytest

from appliance.ingest.folder import IGNORE_FILE, LARGEST, Follower, Found, Skipped, below, find, read_inside
from appliance.ingest.notice import Notice


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "notes"
    for name in ("a.md", "deep/b.md", "deep/draft.md", "build/c.md", "build/keep.md"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    return root


def ids(root: Path) -> list[str]:
    return sorted(each.id for each in find([root]) if isinstance(each, Found))


class TestIgnoring:
    def test_an_ignore_file_says_what_is_left_out_as_gits_would(self, root: Path) -> None:
        (root / IGNORE_FILE).write_text("# comment\nbuild/*\n!build/keep.md\ndraft.*\n")

        assert ids(root) == ["notes/a.md", "notes/build/keep.md", "notes/deep/b.md"]

    def test_the_nearest_ignore_file_decides(self, root: Path) -> None:
        (root / IGNORE_FILE).write_text("draft.*\n")
        (root / "deep" / IGNORE_FILE).write_text("!draft.md\n/b.md\n")

        assert "notes/deep/draft.md" in ids(root)
        assert "notes/deep/b.md" not in ids(root)
        assert [each.id for each in below(root, root / "deep") if isinstance(each, Found)] == ["notes/deep/draft.md"]

    def test_a_folder_that_is_ignored_is_not_entered(self, root: Path) -> None:
        (root / IGNORE_FILE).write_text("build/\n")
        entered: list[Path] = []

        skipped = [each for each in below(root, root, entered=entered) if isinstance(each, Skipped)]

        assert skipped == [Skipped("notes/build/", "ignored")]
        assert entered == [root, root / "deep"]

    def test_an_ignore_file_that_is_none_is_told_and_nothing_is_ignored(self, root: Path) -> None:
        (root / IGNORE_FILE).write_text("[\n!\n\\\n")
        (root / "deep" / IGNORE_FILE).symlink_to("/etc/passwd")

        assert len(ids(root)) == 5
        assert {each.id for each in find([root]) if isinstance(each, Skipped)} >= {f"notes/deep/{IGNORE_FILE}"}


class TestNames:
    def test_a_link_in_a_circle_is_left_out_and_takes_no_other_file_with_it(self, root: Path) -> None:
        (root / "round.md").symlink_to("around.md")
        (root / "around.md").symlink_to("round.md")

        found = list(find([root]))
        alone = list(find([root / "round.md"]))

        reason = "too many levels of symbolic links"
        assert [each for each in found if isinstance(each, Skipped)] == [
            Skipped("notes/around.md", reason),
            Skipped("notes/round.md", reason),
        ]
        assert len(found) == 7
        assert alone == [Skipped("round.md", reason)]
        with pytest.raises(OSError, match="Too many levels"):
            read_inside(root, root / "round.md")

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("/".join(["d" * 200] * 3) + "/a.md", "1 to 512 characters"),
            ("two\nlines.md", "control characters"),
            ("deep/chunks", "an address of its own"),
            ("similar", "an address of its own"),
        ],
    )
    def test_a_file_whose_path_makes_no_id_is_left_out_with_the_reason(self, root: Path, name: str, why: str) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("words")

        (skipped,) = [each for each in find([root]) if isinstance(each, Skipped)]

        assert skipped.id == f"notes/{name}"
        assert why in skipped.reason


class TestReading:
    def test_a_file_is_read_through_a_link_inside_its_folder(self, root: Path) -> None:
        (root / "link.md").symlink_to("deep/b.md")

        (link,) = [each for each in find([root]) if isinstance(each, Found) and each.id == "notes/link.md"]

        assert link.read() == b"text of deep/b.md"

    def test_a_link_put_in_its_way_after_it_was_found_leads_nowhere(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").mkdir()
        (tmp_path / "secret" / "b.md").write_text("secret")
        files = {each.id: each for each in find([root]) if isinstance(each, Found)}
        (root / "a.md").unlink()
        (root / "a.md").symlink_to(tmp_path / "secret" / "b.md")
        (root / "deep").rename(root / "elsewhere")
        (root / "deep").symlink_to(tmp_path / "secret")

        for name in ("notes/a.md", "notes/deep/b.md"):
            with pytest.raises(OSError, match="outside"):
                files[name].read()

    def test_a_link_swapped_in_all_the_time_never_gives_what_lies_outside(self, root: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "b.md").write_text("secret")
        end = threading.Event()

        def swap() -> None:
            while not end.is_set():
                (root / "deep").rename(root / "aside")
                (root / "deep").symlink_to(outside)
                (root / "deep").unlink()
                (root / "aside").rename(root / "deep")

        thread = threading.Thread(target=swap)
        thread.start()
        seen = set()
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            try:
                seen.add(read_inside(root, root / "deep" / "b.md"))
            except OSError:
                continue
        end.set()
        thread.join()

        assert seen == {b"text of deep/b.md"}

    def test_no_pipe_folder_or_huge_file_is_read(self, root: Path) -> None:
        os.mkfifo(root / "pipe")
        with (root / "huge.txt").open("wb") as huge:
            huge.truncate(LARGEST + 1)

        for name, message in (("pipe", "no regular file"), ("deep", "no regular file"), ("huge.txt", "larger than")):
            with pytest.raises(OSError, match=message):
                read_inside(root, root / name)


class TestFollowing:
    @pytest.fixture
    def clock(self) -> list[float]:
        return [time.time() + 100]

    @pytest.fixture
    def follower(self, root: Path, clock: list[float]) -> Follower:
        return Follower(root, settle=2, clock=lambda: clock[0])

    def test_a_look_tells_what_changed_since_the_one_before(self, follower: Follower, root: Path) -> None:
        first = follower.look()
        assert len(first.put) == 5
        assert not follower.look()

        (root / "a.md").write_text("changed")
        (root / "deep" / "b.md").rename(root / "b.md")

        changes = follower.look()
        assert {each.id for each in changes.put} == {"notes/a.md", "notes/b.md"}
        assert changes.gone == ("notes/deep/b.md",)
        assert not follower.look()

    def test_a_file_that_still_grows_waits(self, follower: Follower, root: Path, clock: list[float]) -> None:
        follower.look()
        for size in range(1, 4):
            (root / "new.md").write_text("word " * size)
            os.utime(root / "new.md", (clock[0], clock[0]))
            changes = follower.look()
            assert (changes.put, changes.unsettled) == ((), True)
            clock[0] += 1

        clock[0] += 1.5
        changes = follower.look()
        assert [each.id for each in changes.put] == ["notes/new.md"]
        assert not changes.unsettled

    def test_what_is_left_out_is_told_once(self, follower: Follower, root: Path) -> None:
        follower.look()
        (root / "song.mp3").write_bytes(b"x")

        assert follower.look().skipped == (Skipped("notes/song.mp3", "audio, not text"),)
        assert not follower.look()

    def test_what_could_not_be_done_is_told_again(self, follower: Follower, root: Path) -> None:
        follower.look()
        (root / "a.md").unlink()
        (root / "new.md").write_text("x")
        changes = follower.look()

        follower.again(changes)

        again = follower.look()
        assert ([each.id for each in again.put], again.gone) == (["notes/new.md"], ("notes/a.md",))

    def test_documents_of_before_without_a_file_are_gone(self, follower: Follower) -> None:
        follower.adopt(["notes/a.md", "notes/old.md"])

        changes = follower.look()

        assert changes.gone == ("notes/old.md",)
        assert len(changes.put) == 5

    def test_an_empty_folder_is_taken_for_a_disk_that_is_away(self, follower: Follower, root: Path) -> None:
        follower.look()
        root.rename(root.with_name("aside"))
        with pytest.raises(OSError, match="No such"):
            follower.look()
        root.mkdir()

        assert not follower.look()
        root.rmdir()
        root.with_name("aside").rename(root)
        assert not follower.look()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
    def test_a_folder_that_cannot_be_read_has_lost_nothing(self, follower: Follower, root: Path) -> None:
        follower.look()
        (root / "deep").chmod(0)
        try:
            changes = follower.look()
        finally:
            (root / "deep").chmod(0o755)

        assert changes.gone == ()


class TestNotice:
    def test_what_happens_wakes_at_once_and_new_folders_are_followed(self, root: Path) -> None:
        notice, end = Notice(), threading.Event()
        assert notice.follow([root])
        assert not notice.follow([root])

        (root / "new.md").write_text("x")
        began = time.monotonic()
        notice.wait(20, end)
        assert notice.follow([root, root / "deep"])
        (root / "deep" / "new.md").write_text("x")
        notice.wait(20, end)

        assert time.monotonic() - began < 8
        notice.close()
        notice.close()

    def test_it_ends_when_it_is_told_to_and_with_the_time(self, root: Path) -> None:
        notice, end = Notice(), threading.Event()
        notice.follow([root])
        began = time.monotonic()

        notice.wait(0.2, end)
        threading.Timer(0.2, end.set).start()
        notice.wait(20, end)

        assert time.monotonic() - began < 5
        notice.close()

    def test_a_folder_that_went_away_meanwhile_is_no_error(self, root: Path) -> None:
        notice, end = Notice(), threading.Event()
        began = time.monotonic()

        notice.follow([root, root / "nothing"])
        notice.wait(0.2, end)

        assert time.monotonic() - began < 5
        notice.close()
