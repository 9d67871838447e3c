"""What is read from tar files: every whole member, through any damage; and what is not, with its cause."""

import io
import tarfile

import pytest
from tar_files import packed

from stable_audio_tools.data.tars import READ_AHEAD, Blocks, Member, members, same_member

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
GOOD = [(f"{number}.wav", bytes([number]) * (700 * number + 1)) for number in range(6)]


class Requests:
    def __init__(self, content):
        self.content, self.ranges = content, []

    def __call__(self, start, stop):
        assert 0 <= start < stop <= len(self.content)
        self.ranges.append((start, stop))
        return self.content[start:stop]


def listed(content):
    bad = []
    found = list(members(Blocks(Requests(content), len(content)), bad, "x.tar"))
    return found, bad


def names(found):
    return [member.name for member in found]


@pytest.mark.parametrize("form", FORMATS)
def test_members_are_where_they_are(form):
    long = [("folder/" * 12 + "long.wav", b"12345"), ("ä ö.wav", b"6")] if form != "ustar" else []
    content = packed([*GOOD, *long], FORMATS[form])
    found, bad = listed(content)
    assert not bad
    assert [(m.name, content[m.start : m.start + m.size]) for m in found] == [*GOOD, *long]
    assert all(same_member(content[m.start - 512 : m.start], m.mark) for m in found)
    assert len({m.mark for m in found}) == len(found)


def test_small_members_share_a_request_and_large_ones_are_skipped():
    content = packed([*GOOD, ("large.wav", bytes(40 * READ_AHEAD)), ("after.wav", b"1")])
    requests = Requests(content)
    found = list(members(Blocks(requests, len(content)), [], "x.tar"))
    assert len(found) == len(GOOD) + 2
    assert len(requests.ranges) <= 4 and sum(stop - start for start, stop in requests.ranges) <= 3 * READ_AHEAD


def test_joined_files_are_one():
    found, bad = listed(packed(GOOD[:3]) + packed(GOOD[3:]))
    assert names(found) == [name for name, _ in GOOD] and not bad


def entry(name, kind, target=""):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made, b""


@pytest.mark.parametrize(
    "member, cause",
    [
        (("../up.wav", b"1"), "leads out"),
        (("a/../../up.wav", b"1"), "leads out"),
        (("/absolute.wav", b"1"), "leads out"),
        (("..\\up.wav", b"1"), "leads out"),
        (("C:\\up.wav", b"1"), "leads out"),
        (entry("link.wav", tarfile.SYMTYPE, "/etc/passwd"), "symbolic link"),
        (entry("link.wav", tarfile.LNKTYPE, "0.wav"), "hard link"),
        (entry("null.wav", tarfile.CHRTYPE), "device"),
        (entry("disk.wav", tarfile.BLKTYPE), "device"),
        (entry("pipe.wav", tarfile.FIFOTYPE), "pipe"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_file_with_a_plain_name_is_left_out(member, cause):
    found, bad = listed(packed([GOOD[1], member, GOOD[2]]))
    assert names(found) == [GOOD[1][0], GOOD[2][0]]
    assert len(bad) == 1 and cause in bad[0].cause and bad[0].path.startswith("x.tar/")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_file_gives_what_is_whole(share):
    content = packed([(f"{number}.wav", b"x" * 5000) for number in range(10)])
    end = int(share * 10 * (512 + 5120)) + 1000  # inside a member's content
    found, bad = listed(content[:end])
    assert names(found) == [f"{number}.wav" for number in range(len(found))]
    assert len(found) == (end // 5632)
    assert len(bad) == 1 and "it is cut" in bad[0].cause


def test_a_file_that_ends_at_a_member_is_told():
    content = packed([("0.wav", b"x" * 512), ("1.wav", b"x" * 512)])
    found, bad = listed(content[: 2 * 1024])
    assert len(found) == 2
    assert len(bad) == 1 and "no end mark after 2 members" in bad[0].cause


def test_what_stands_behind_damage_is_found():
    content = bytearray(packed([(f"{number}.wav", b"x" * 5000) for number in range(5)]))
    content[2 * 5632 : 2 * 5632 + 512] = b"?" * 512  # the header of number 2
    found, bad = listed(bytes(content))
    assert names(found) == ["0.wav", "1.wav", "3.wav", "4.wav"]
    assert len(bad) == 1 and "damaged between its members" in bad[0].cause


@pytest.mark.parametrize(
    "content, cause", [(b"", "0 bytes"), (b"this is a text\n" * 999, "no tar file"), (b"\x1f\x8b" + bytes(999), "no tar")]
)
def test_what_is_no_tar_file_is_told(content, cause):
    found, bad = listed(content)
    assert not found and len(bad) == 1 and cause in bad[0].cause


def test_a_header_that_claims_gigabytes_of_attributes_takes_no_memory():
    header = tarfile.TarInfo("attributes")
    header.type, header.size = tarfile.XHDTYPE, 1 << 33
    claimed = header.tobuf(tarfile.GNU_FORMAT)
    found, bad = listed(packed([GOOD[1]])[:1536] + claimed + bytes(9999))
    assert names(found) == ["1.wav"]
    assert len(bad) == 1 and "damaged after 1 members" in bad[0].cause


def test_blocks_read_as_a_file():
    content = bytes(range(256)) * 9
    blocks = Blocks(Requests(content), len(content))
    same = io.BytesIO(content)
    for place, size in ((0, 5), (700, 512), (2300, 99), (3, 3), (9999, 1)):
        assert blocks.seek(place) == same.seek(place)
        assert blocks.read(size) == same.read(size)
        assert blocks.tell() == same.tell()


def test_a_mark_is_of_the_header():
    (first,), _ = listed(packed([("a.wav", b"1")]))
    (other,), _ = listed(packed([("a.wav", b"11")]))
    assert isinstance(first, Member) and first.mark != other.mark
