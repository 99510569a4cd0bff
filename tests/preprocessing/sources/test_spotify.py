"""Spotify's extended history: what is a play, when it started, what is a skip, what is dropped."""

import json
from datetime import UTC, datetime

import pyarrow.parquet as pq
import pytest
from exported import as_json, read_plays, stream, zipped

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources import spotify
from utils.preprocessing.sources.plays import SCHEMA

FOLDER = "Spotify Extended Streaming History"
NAMES = ("master_metadata_track_name", "master_metadata_album_artist_name", "master_metadata_album_album_name")
NO_PLAY = dict.fromkeys((*NAMES, "spotify_track_uri"))
"""What differs in a row of something else than a track."""


def export(tmp_path, rows, name="my_spotify_data.zip", file="Streaming_History_Audio_2024_0.json"):
    return zipped(tmp_path / name, {f"{FOLDER}/{file}": as_json(rows)})


def test_a_play_starts_before_its_end_and_keeps_what_the_service_says(tmp_path):
    row = stream(ms=63_500, reason_start="clickrow", reason_end="fwdbtn", shuffle=True, skipped=True)
    found, plays = read_plays(spotify, export(tmp_path, [row]), tmp_path / "work")
    assert plays == [
        {
            "user": "listener",
            "time": datetime(2024, 2, 1, 10, 1, 56, 500_000, tzinfo=UTC),  # 10:03:00 less 63.5 s
            "track": "6rqhFgbbKwnb9MLmUQDhG6",
            "name": "Song",
            "artist": "Band",
            "album": "Record",
            "skip": "skip_2",
            "seconds": 63.5,
            "reason_start": "clickrow",
            "reason_end": "fwdbtn",
            "shuffle": "true",
        }
    ]
    assert found.per_listener
    assert found.features is None
    assert found.columns.time == "time"
    assert found.columns.session == found.columns.context == ""
    name = f"my_spotify_data.zip/{FOLDER}/Streaming_History_Audio_2024_0.json"
    assert found.sources == [{"file": name, "bytes": len(as_json([row]).encode()), "rows": 1}]


def test_files_have_the_columns_of_the_schema_and_nothing_personal(tmp_path):
    row = stream(username="anna", user_agent_decrypted="Agent/1", city="Town", ip_addr_decrypted="192.0.2.18")
    found, _ = read_plays(spotify, export(tmp_path, [row]), tmp_path / "work")
    schema = pq.read_schema(found.files[0])
    assert [SCHEMA.field(name) for name in schema.names] == list(schema)
    written = found.files[0].read_bytes()
    for secret in (b"192.0.2", b"anna", b"Agent/1", b"Town", b"ios", b"XX"):
        assert secret not in written


@pytest.mark.parametrize(
    ("reason", "ms", "skip"),
    [
        *((reason, 9_999, "skip_1") for reason in ("fwdbtn", "backbtn", "endplay", "clickrow", "popup")),
        *((reason, 10_000, "skip_2") for reason in ("fwdbtn", "backbtn", "endplay", "clickrow", "popup")),
        ("trackdone", 9_999, "not_skipped"),
        ("trackdone", 0, "not_skipped"),
        *((reason, 5_000, None) for reason in ("logout", "remote", "unexpected-exit", "unexpected-exit-while-paused")),
        *((reason, 5_000, None) for reason in ("unknown", "trackerror", "", None, "appload")),
    ],
)
@pytest.mark.parametrize("skipped", [None, True, False])
def test_the_reason_of_the_end_labels_a_play_whatever_skipped_says(tmp_path, reason, ms, skip, skipped):
    row = stream(ms=ms, reason_end=reason, skipped=skipped)
    found, (play,) = read_plays(spotify, export(tmp_path, [row]), tmp_path / "work")
    assert play["skip"] == skip
    assert play["reason_end"] == (reason or None)
    assert found.notes[0].startswith(f"spotify: {int(skip is None)} of 1 plays end for a reason")


def test_everything_else_than_plays_of_tracks_is_counted_and_dropped(tmp_path):
    rows = [
        stream(),
        stream(**NO_PLAY, episode_name="Talk", spotify_episode_uri="spotify:episode:1"),
        stream(**NO_PLAY | {"spotify_track_uri": "spotify:episode:2"}),
        stream(**NO_PLAY, audiobook_title="Book", audiobook_uri="spotify:show:3", audiobook_chapter_uri="spotify:4"),
        stream(**NO_PLAY),
        stream(incognito_mode=True, ts="2024-02-01T11:00:00Z"),
        stream(),
    ]
    found, plays = read_plays(spotify, export(tmp_path, rows), tmp_path / "work")
    assert [n for _, n in found.dropped] == [2, 1, 1, 0, 1]
    assert [play["time"].hour for play in plays] == [10, 10]  # the second lasted 3 minutes until 11:00
    found, plays = read_plays(spotify, export(tmp_path, rows), tmp_path / "private", drop_incognito=True)
    assert [n for _, n in found.dropped] == [2, 1, 1, 1, 1]
    assert len(plays) == 1


def test_a_local_file_has_its_whole_uri_for_an_id(tmp_path):
    local = stream(spotify_track_uri="spotify:local:Band:Record:Song:180")
    _, (play,) = read_plays(spotify, export(tmp_path, [local]), tmp_path / "work")
    assert play["track"] == "spotify:local:Band:Record:Song:180"


def test_overlapping_exports_of_a_listener_count_once(tmp_path):
    """Another length or another end is another play; a play of no length is one."""
    first = [stream(), stream(ms=0), stream(ts="2024-02-01T10:04:00Z")]
    second = [stream(ts="2024-02-01T10:04:00Z"), stream(ts="2024-02-01T10:05:00Z"), stream(ms=1)]
    export(tmp_path / "all" / "anna", first, "old.zip")
    export(tmp_path / "all" / "anna", second, "new.zip")
    found, plays = read_plays(spotify, tmp_path / "all", tmp_path / "work")
    assert dict(found.dropped)[spotify.REPEAT] == 1
    assert [(play["time"].minute, round(play["seconds"], 3)) for play in plays] == [
        *((1, 180), (2, 180), (2, 0.001)),  # new.zip: until 10:04, 10:05 and 10:03
        *((0, 180), (3, 0)),  # old.zip: until 10:03
    ]
    assert {play["user"] for play in plays} == {"listener"}


def test_numbered_files_are_read_in_order_of_their_numbers(tmp_path):
    names = [f"endsong_{i}.json" for i in (10, 9, 1)] + ["Streaming_History_Audio_2019-2021_2.json"]
    files = {name: as_json([stream(track=name)]) for name in names}
    path = zipped(tmp_path / "my.zip", {f"MyData/{name}": text for name, text in files.items()})
    _, plays = read_plays(spotify, path, tmp_path / "work")
    assert [play["track"] for play in plays] == [names[2], names[3], names[1], names[0]]


def test_a_zip_its_folder_and_its_file_hold_the_same_plays(tmp_path):
    rows = [stream(ts=f"2024-02-01T10:0{i}:00Z") for i in range(5)]
    path = export(tmp_path, rows)
    folder = tmp_path / "unzipped" / FOLDER
    folder.mkdir(parents=True)
    file = folder / "Streaming_History_Audio_2024_0.json"
    file.write_text(as_json(rows))
    (folder / "._Streaming_History_Audio_2024_0.json").write_bytes(b"\x00")
    (folder / "ReadMeFirst_ExtendedStreamingHistory.pdf").write_bytes(b"%PDF")
    expected = read_plays(spotify, path, tmp_path / "a")[1]
    assert len(expected) == 5
    for i, same in enumerate((folder, tmp_path / "unzipped", file)):
        assert read_plays(spotify, same, tmp_path / f"b{i}")[1] == expected


def test_several_exports_are_several_listeners(tmp_path):
    """A play that several have is each one's."""
    export(tmp_path / "all", [stream(), stream(track="anna's")], "anna.zip")
    export(tmp_path / "all" / "ben" / "inside", [stream()], "any.zip")
    (tmp_path / "all" / "endsong_0.json").write_text(as_json([stream(), stream(track="of all")]))
    found, plays = read_plays(spotify, tmp_path / "all", tmp_path / "work")
    assert sorted(play["user"] for play in plays) == ["all", "all", "anna", "anna", "ben"]
    assert [n for _, n in found.dropped] == [0] * 5
    assert found.sources[-1]["file"].startswith("ben/inside/any.zip/")


def test_one_listener_given_twice_is_an_error(tmp_path):
    """As after a zip is unpacked beside itself."""
    rows = [stream(ts=f"2024-02-01T10:{i:02}:00Z") for i in range(50)]
    export(tmp_path / "all", rows, "my_spotify_data.zip")
    folder = tmp_path / "all" / FOLDER
    folder.mkdir()
    (folder / "endsong_0.json").write_text(
        as_json([*rows[:21], *(stream(ts=f"2023-01-01T10:0{i}:00Z") for i in range(9))])
    )
    with pytest.raises(UserError, match=f"{FOLDER} and my_spotify_data have 21 plays in common"):
        read_plays(spotify, tmp_path / "all", tmp_path / "work")
    (folder / "endsong_0.json").write_text(as_json(rows[:20]))
    assert len(read_plays(spotify, tmp_path / "all", tmp_path / "again")[1]) == 70


def test_videos_are_passed_over_and_noted(tmp_path):
    video = "Streaming_History_Video_2018-2024.json"
    files = {f"{FOLDER}/{video}": as_json([stream()]), f"{FOLDER}/endsong_0.json": as_json([stream()])}
    found, plays = read_plays(spotify, zipped(tmp_path / "my.zip", files), tmp_path / "work")
    assert len(plays) == 1
    assert "1 files of videos" in found.notes[1]


ACCOUNT = [{"endTime": "2024-02-01 10:03", "artistName": "Band", "trackName": "Song", "msPlayed": 180_000}]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("StreamingHistory_music_0.json", as_json(ACCOUNT), "read it with --source spotify-account"),
        ("StreamingHistory0.json", as_json(ACCOUNT), "read it with --source spotify-account"),
        ("endsong_0.json", as_json(ACCOUNT), "read it with --source spotify-account"),
        ("Userdata.json", "{}", "holds no file Streaming_History_Audio"),
        ("endsong_0.json", "[]", "has no plays: the export is empty"),
        ("endsong_0.json", "", "is empty, where a list"),
        ("endsong_0.json", '{"ts": 1}', "holds a JSON object, where a list"),
        ("endsong_0.json", "hello", "holds no JSON"),
        ("endsong_0.json", "[1]", "entry 1: '1' is no play"),
        ("endsong_0.json", '[\n{"ts": "2024-02-01T10:03:00Z"}\n]', "entry 1 has no key ms_played"),
        ("endsong_0.json", '[\n{"a": 1},\n{"b" 2}\n]', "entry 1 has no key ts"),
        ("endsong_0.json", as_json([stream(), stream()])[:-400], "is cut off in line"),
        ("endsong_0.json", as_json([stream()]).replace('"ms_played":', '"ms_played"'), "line 5: not valid JSON"),
        ("endsong_0.json", as_json([stream()]) + as_json([stream()]), "More than one list"),
        ("endsong_0.json", as_json([stream(ts="yesterday")]), "entry 1: ts is 'yesterday', not as"),
        ("endsong_0.json", as_json([stream(), stream(ms=-1)]), "entry 2: ms_played is '-1', not a number"),
        ("endsong_0.json", as_json([stream(ms=None)]), "entry 1: ms_played is 'None'"),
        ("endsong_0.json", as_json([stream(reason_end=7)]), "entry 1: reason_end is '7', not text"),
        ("endsong_0.json", as_json([stream()]).encode("utf-16"), "is not UTF-8"),
        ("endsong_0.json", as_json([stream(**NO_PLAY)]), "no plays of tracks: 1 rows without a track"),
    ],
)
def test_other_files_and_damaged_ones_are_errors_with_their_place_and_cure(tmp_path, name, text, message):
    path = zipped(tmp_path / "my.zip", {f"{FOLDER}/{name}": text})
    with pytest.raises(UserError, match=message) as caught:
        read_plays(spotify, path, tmp_path / "work")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_option_of_another_source_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"--source_options.time_zone has no meaning for --source spotify"):
        spotify.read(export(tmp_path, [stream()]), tmp_path, SourceOptions(time_zone="Europe/Berlin"))


@pytest.mark.parametrize("ts", ["9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "1900-01-01T00:00:10Z"])
def test_a_time_that_no_play_has_is_named(tmp_path, ts):
    path = export(tmp_path, [stream(), stream(ts=ts)])
    with pytest.raises(UserError, match=rf"Audio_2024_0\.json, entry 2: ts is '{ts}' .* years 1900 to 2099"):
        read_plays(spotify, path, tmp_path / "work")


def test_half_a_letter_and_a_uri_of_nothing(tmp_path):
    """JSON may hold one half of a letter of two, as of a title that was cut off."""
    rows = [stream(master_metadata_track_name="Cut \ud83d"), stream(ts="2024-02-01T10:09:00Z", track="")]
    (tmp_path / "endsong_0.json").write_text(json.dumps(rows))
    source, plays = read_plays(spotify, tmp_path / "endsong_0.json", tmp_path / "work")
    assert [play["name"] for play in plays] == ["Cut ?"]
    assert dict(source.dropped)["rows without a track"] == 1
