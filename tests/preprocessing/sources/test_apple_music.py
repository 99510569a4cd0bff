"""Apple Music: rows of pauses and jumps become plays, and no row of another kind does."""

import csv
import io
from datetime import UTC, datetime

import pytest
from exported import read_plays, zipped

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources import apple_music

HEADER = (
    *("Album Name", "Apple ID Number", "Apple Music Subscription", "Artist Name", "Client IP Address"),
    *("Container Artist Name", "Device Identifier", "End Position In Milliseconds", "End Reason Type"),
    *("Event End Timestamp", "Event Reason Hint Type", "Event Start Timestamp", "Event Type", "IP City", "Item Type"),
    *("Media Duration In Milliseconds", "Media Type", "Play Duration Milliseconds", "Report Type", "Shuffle Play"),
    *("Song Name", "Start Position In Milliseconds", "UTC Offset In Seconds"),
)
"""Columns that matter, and some of the personal ones, of 143."""
PAUSE, SCRUB, DONE = "PLAYBACK_MANUALLY_PAUSED", "SCRUB_BEGIN", "NATURAL_END_OF_TRACK"


def row(start="10:00:00", end="10:03:00", ms=180_000, reason=DONE, title="Song", **changes):
    """A row; times are of one day. Other columns by their names with underscores."""

    def moment(clock):
        return f"2024-02-01T{clock}.000Z" if clock else ""

    values = {
        "Album Name": "Record",
        "Apple ID Number": "1234567",
        "Apple Music Subscription": "true",
        "Artist Name": "Band",
        "Client IP Address": "192.0.2.17",
        "Device Identifier": "device",
        "End Reason Type": reason,
        "Event End Timestamp": moment(end),
        "Event Start Timestamp": moment(start),
        "Event Type": "PLAY_END",
        "IP City": "Town",
        "Item Type": "ITUNES_STORE_CONTENT",
        "Media Type": "AUDIO",
        "Play Duration Milliseconds": str(ms),
        "Shuffle Play": "SHUFFLE_OFF",
        "Song Name": title,
        "Start Position In Milliseconds": "0",
    }
    return values | {name.replace("_", " "): value for name, value in changes.items()}


def sheet(rows, header=HEADER):
    text = io.StringIO()
    writer = csv.DictWriter(text, header, extrasaction="ignore", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def export(tmp_path, rows, header=HEADER):
    """A zip within a zip, as Apple sends it."""
    folder = "Apple_Media_Services/Apple Music Activity"
    files = {
        f"{folder}/Apple Music Play Activity.csv": "\ufeff" + sheet(rows, header),
        f"{folder}/Apple Music - Play History Daily Tracks.csv": "Track Description\n",
    }
    inner = zipped(tmp_path / "inner" / "Apple_Media_Services.zip", files)
    return zipped(tmp_path / "Apple Media Services information.zip", {"a/Apple_Media_Services.zip": inner.read_bytes()})


def test_a_row_is_a_play_and_nothing_personal_is_written(tmp_path):
    found, plays = read_plays(apple_music, export(tmp_path, [row(ms=180_250)]), tmp_path / "work")
    assert plays == [
        {
            "user": "listener",
            "time": datetime(2024, 2, 1, 10, tzinfo=UTC),
            "track": "Band | Song",
            "name": "Song",
            "artist": "Band",
            "album": "Record",
            "skip": "not_skipped",
            "seconds": 180.25,
            "reason_end": "trackdone",
            "shuffle": "false",
            "premium": "true",
        }
    ]
    written = found.files[0].read_bytes()
    for secret in (b"1234567", b"192.0.2", b"Town", b"device"):
        assert secret not in written


@pytest.mark.parametrize(
    ("reason", "ms", "skip", "word"),
    [
        (DONE, 5_000, "not_skipped", "trackdone"),
        ("TRACK_SKIPPED_FORWARDS", 9_999, "skip_1", "fwdbtn"),
        ("TRACK_SKIPPED_FORWARDS", 10_000, "skip_2", "fwdbtn"),
        ("TRACK_SKIPPED_BACKWARDS", 20_000, "skip_2", "backbtn"),
        ("MANUALLY_SELECTED_PLAYBACK_OF_A_DIFF_ITEM", 20_000, "skip_2", "clickrow"),
        ("TRACK_BANNED", "", "skip_2", None),
        ("EXITED_APPLICATION", 20_000, None, "logout"),
        (PAUSE, 20_000, None, None),
        ("NOT_APPLICABLE", 20_000, None, None),
        ("", 20_000, None, None),
    ],
)
def test_the_reason_of_the_end_labels_a_play(tmp_path, reason, ms, skip, word):
    _, (play,) = read_plays(apple_music, export(tmp_path, [row(reason=reason, ms=ms)]), tmp_path / "work")
    assert (play["skip"], play["reason_end"]) == (skip, word)


def test_pauses_and_jumps_do_not_end_a_play(tmp_path):
    """60 s, a pause of ten minutes, 20 s, a jump back of unknown length, 9 s more: one play of 89 s, skipped."""
    rows = [
        row("10:00:00", "10:01:00", 60_000, PAUSE),
        row("10:11:00", "10:11:20", 20_000, SCRUB, Start_Position_In_Milliseconds="60000"),
        row("10:11:20", "10:11:20", -15_000, "SCRUB_END", Start_Position_In_Milliseconds="80000"),
        row("10:11:20", "10:11:29", 9_000, "TRACK_SKIPPED_FORWARDS", Start_Position_In_Milliseconds="0"),
        row("10:11:29", "10:14:29", title="Next"),
    ]
    found, plays = read_plays(apple_music, export(tmp_path, rows[::-1]), tmp_path / "work")
    assert [(play["name"], play["seconds"], play["skip"]) for play in plays] == [
        ("Song", 89.0, "skip_2"),
        ("Next", 180.0, "not_skipped"),
    ]
    assert plays[0]["time"] == datetime(2024, 2, 1, 10, tzinfo=UTC)
    assert dict(found.dropped)[apple_music.MERGED] == 3


def test_a_play_that_was_paused_before_it_sounded_goes_on_from_its_start(tmp_path):
    rows = [row("10:00:00", "10:00:00", 0, PAUSE), row("10:00:05", "10:03:05")]
    _, plays = read_plays(apple_music, export(tmp_path, rows), tmp_path / "work")
    assert [(play["time"].second, play["seconds"], play["skip"]) for play in plays] == [(0, 180.0, "not_skipped")]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (row("10:00:00", "10:01:00", 60_000, DONE), row("10:01:00", "10:04:00")),  # the track twice
        (row("10:00:00", "10:01:00", 60_000, PAUSE), row("10:01:10", "10:04:00")),  # from the start again
        (row("10:00:00", "10:01:00", 60_000, PAUSE), row("10:31:01", "10:32:00", Start_Position_In_Milliseconds="9")),
        (row("10:00:00", "10:01:00", 60_000, PAUSE), row("10:01:10", "10:04:00", title="Other")),
        (row("10:00:00", "10:01:00", 60_000, PAUSE), row("10:01:10", "10:04:00", Album_Name="Other")),
    ],
)
def test_other_plays_are_not_merged(tmp_path, first, second):
    found, plays = read_plays(apple_music, export(tmp_path, [first, second]), tmp_path / "work")
    assert len(plays) == 2
    assert dict(found.dropped)[apple_music.MERGED] == 0


def test_an_empty_start_is_the_end_less_the_length(tmp_path):
    rows = [row("", "10:03:00", 90_000), row("", "", title="B"), row("10:00:00", "", title="C")]
    rows[1]["Event Start Timestamp"] = "1970-01-01T00:00:00Z"
    found, plays = read_plays(apple_music, export(tmp_path, rows), tmp_path / "work")
    assert [(play["name"], play["time"].minute, play["time"].second) for play in plays] == [
        ("C", 0, 0),
        ("Song", 1, 30),
    ]
    assert dict(found.dropped)[apple_music.NO_TIME] == 1


def test_rows_of_another_kind_are_counted_by_reason(tmp_path):
    rows = [
        row(),
        row(),
        row(Event_Type=""),  # older exports: the same row as the first
        row(Event_Type="LYRIC_DISPLAY"),
        row(Event_Type="PLAY_START"),
        row(Item_Type="AGGREGATE"),
        row(Report_Type="AGGREGATE"),
        row(Media_Type="VIDEO"),
        row(reason="FAILED_TO_LOAD"),
        row(title=""),
    ]
    found, plays = read_plays(apple_music, export(tmp_path, rows), tmp_path / "work")
    assert len(plays) == 1
    assert [n for _, n in found.dropped] == [4, 1, 1, 1, 0, 2, 0]


def test_older_columns_and_exports_without_artists(tmp_path):
    older = [name.replace("Song Name", "Content Name").replace("ID Number", "Id Number") for name in HEADER]
    rows = [row(Content_Name="Song") | {"Apple Id Number": "1"}]
    assert read_plays(apple_music, export(tmp_path, rows, older), tmp_path / "a")[1][0]["track"] == "Band | Song"
    newer = [name for name in HEADER if name != "Artist Name"]
    rows = [row(), row("11:00:00", "11:03:00", Container_Artist_Name="Band")]
    found, plays = read_plays(apple_music, export(tmp_path, rows, newer), tmp_path / "b")
    assert [(play["track"], play["artist"]) for play in plays] == [("Record | Song", None), ("Record | Song", "Band")]
    assert found.notes == [
        "apple-music: the export names no artists, so a track's id is made of its album and its title"
    ]


def test_accounts_are_listeners_and_a_row_without_one_is_the_first_ones(tmp_path):
    rows = [row(Apple_ID_Number=""), row("10:05:00", "10:08:00"), row("10:01:00", "10:04:00", Apple_ID_Number="9")]
    _, plays = read_plays(apple_music, export(tmp_path, rows), tmp_path / "work")
    assert [(play["user"], play["time"].minute) for play in plays] == [
        ("listener 1", 0),
        ("listener 1", 5),
        ("listener 2", 1),
    ]
    _, plays = read_plays(apple_music, export(tmp_path / "one", rows[:2]), tmp_path / "again")
    assert {play["user"] for play in plays} == {"listener"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (sheet([]), "has no plays: the export is empty"),
        ("Date Played,Track Description\n20240201,x\n", "has no column 'song name': this is not 'Apple Music Play"),
        (sheet([row()])[:-40] + "\n", "line 2: (2|1).* fields where the header has 23|below line"),
        (sheet([row(ms="long")]), "line 2: Play Duration Milliseconds is 'long'"),
        (sheet([row(ms="nan")]), "line 2: Play Duration Milliseconds is 'nan'"),
        (sheet([row(), row(Event_Start_Timestamp="1 Feb")]), "line 3: '1 Feb' is no time as"),
        (sheet([row()]).encode("utf-16"), "is not UTF-8"),
    ],
)
def test_other_files_and_damaged_ones_are_errors_with_their_place(tmp_path, text, message):
    path = tmp_path / "Apple Music Play Activity.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UserError, match=message) as caught:
        read_plays(apple_music, path, tmp_path / "work")
    assert str(path) in str(caught.value)


def test_an_export_without_the_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no file 'Apple Music Play Activity\.csv'"):
        read_plays(apple_music, zipped(tmp_path / "my.zip", {"x.csv": "a\n"}), tmp_path / "work")


def test_an_option_of_another_source_is_an_error(tmp_path):
    with pytest.raises(UserError, match="drop_incognito has no meaning for --source apple-music"):
        apple_music.read(export(tmp_path, [row()]), tmp_path, SourceOptions(drop_incognito=True))
