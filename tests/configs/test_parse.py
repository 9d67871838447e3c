"""Reading JSON files: whatever is wrong with one is said with its place and its fix."""

from __future__ import annotations

import os
import sys

import pytest

from stable_audio_tools.configs.errors import ConfigError
from stable_audio_tools.configs.parse import read_json

BAD = [
    ('{"a": 1,}', "1:", "not valid JSON", "remove the comma"),
    ('{"a": 1 "b": 2}', "1:9", "a comma or a closing bracket should stand here", "add a comma"),
    ("{'a': 1}", "1:2", "a key in double quotes should stand here", 'use double quotes: "'),
    ('{"a": [1,\n 2', "2:2", "the file ends too early", "close every { and ["),
    ('{"a": True}', "1:7", "a value should stand here", "write true"),
    ('{"a": None}', "1:7", "a value should stand here", "write null"),
    ('// hi\n{"a": 1}', "1:1", "a value should stand here", "JSON has no comments"),
    ('{"a": "x\ny"}', "1:9", "a line break or tab inside quotes", "write \\n"),
    ('{"a": "C:\\Users"}', "1:10", "a backslash that means nothing", "write two"),
    ('{"a": "x}', "1:7", "the text has no closing quote", 'add "'),
    ('{"a" 1}', "1:6", "a colon should stand here", ""),
    ('{"a": 1} {"b": 2}', "1:10", "something follows the end of the document", "a file holds one object"),
    ('{"a": 1, "a": 2}', "1:10", 'the key "a" stands here twice', "keep one"),
    ('{"a": [0, NaN]}', "1:11", "NaN is not a number in JSON", "write a finite number"),
    ('{"a": -Infinity}', "1:7", "-Infinity is not a number in JSON", "write a finite number"),
    ("[" * 100_000, "", "nested too deeply", ""),
    ("1" * 5_000, "", "thousands of digits", ""),
    ("", "", "the file is empty", ""),
    (" \n", "", "the file is empty", ""),
    (b"\x89PNG\r\n\x1a\n\xff\xff", "", "not a JSON text in UTF-8", ""),
]


@pytest.mark.parametrize(("content", "place", "message", "fix"), BAD, ids=lambda value: repr(value)[:24])
def test_a_bad_file_is_refused_with_place_and_fix(tmp_path, content, place, message, fix):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        read_json(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:{place}")
    assert message in text and fix in text
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_the_encodings_that_editors_write_are_read(tmp_path, encoding):
    path = tmp_path / "x.json"
    path.write_bytes('{"ä": 1}'.encode(encoding))
    assert read_json(path) == ({"ä": 1}, '{"ä": 1}')


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        read_json(tmp_path / "nowhere.json")
    with pytest.raises(ConfigError, match="is a folder, not a JSON file"):
        read_json(tmp_path)


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(ConfigError, match="cannot read the file"):
        read_json("a\0b")
    with pytest.raises(ConfigError, match="cannot read the file"):
        read_json("x" * 5000)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(ConfigError, match="no permission to read the file"):
        read_json(path)
