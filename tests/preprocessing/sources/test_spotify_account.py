"""Spotify's account data: minutes that do not order their plays, ids of artist and title."""

from datetime import UTC, datetime, timedelta

import pytest
from exported import as_json, read_plays, stream, zipped

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources import spotify_account

FOLDER = "Spotify Account Data"


def row(end="2024-02-01 10:03", artist="Band", title="Song", ms=60_000):
    return {"endTime": end, "artistName": artist, "trackName": title, "msPlayed": ms}


def export(tmp_path, rows, name="my_spotify_data.zip", file="StreamingHistory_music_0.json"):
    return zipped(tmp_path / name, {f"{FOLDER}/{file}": as_json(rows), f"{FOLDER}/Userdata.json": "{}"})


def at(minute, second=0, microsecond=0):
    return datetime(2024, 2, 1, 10, minute, second, microsecond, tzinfo=UTC)


def test_a_play_has_a_start_an_id_and_its_seconds(tmp_path):
    found, plays = read_plays(spotify_account, export(tmp_path, [row(ms=61_500)]), tmp_path / "work")
    assert plays == [
        {
            "user": "listener",
            "time": at(1, 58, 500_000),
            "track": "Band | Song",
            "name": "Song",
            "artist": "Band",
            "seconds": 61.5,
        }
    ]
    assert found.columns.skip == ""
    assert found.per_listener


def test_plays_keep_the_order_of_the_file(tmp_path):
    """Read as they stand, the starts would be 10:02:50, 9:59:43 and 10:02:59: the second before the first."""
    rows = [
        row(title="A", ms=10_000),
        row(title="B", ms=197_000),
        row(title="C", ms=1_000),
        row(title="D", ms=1_000, end="2024-02-01 10:04"),
        row(title="E", ms=0, end="2024-02-01 09:00"),
    ]
    found, plays = read_plays(spotify_account, export(tmp_path, rows), tmp_path / "work")
    assert [play["name"] for play in plays] == ["E", "A", "B", "C", "D"]
    tick = timedelta(microseconds=1)
    assert [play["time"] for play in plays][1:] == [at(2, 50), at(2, 50) + tick, at(2, 59), at(3, 59)]
    assert found.notes[0].startswith("spotify-account: 2 of 5 plays end in the minute of the one before")


def test_a_track_that_comes_back_in_a_minute_is_another_play(tmp_path):
    """Same artist, title and minute: the starts must differ, or the second would later count as a repeat."""
    rows = [row(ms=0), row(title="B", ms=0), row(ms=1)]
    _, plays = read_plays(spotify_account, export(tmp_path, rows), tmp_path / "work")
    assert len({(play["time"], play["track"]) for play in plays}) == 3
    assert [play["time"] for play in plays] == sorted(play["time"] for play in plays)


def test_repeats_and_unknown_tracks_are_counted(tmp_path):
    rows = [row(), row(), row(artist="Unknown Artist", title="Unknown Track"), row(title=""), row(artist=None)]
    found, plays = read_plays(spotify_account, export(tmp_path, rows), tmp_path / "work")
    assert len(plays) == 1
    assert [n for _, n in found.dropped] == [3, 1]


def test_no_two_pairs_of_artist_and_title_share_an_id(tmp_path):
    pairs = [("A", "B | C"), ("A | B", "C"), ("A |", "B"), ("A", "| B"), ("A ||", "B"), ("A", "|| B"), ("", "A")]
    rows = [row(artist=artist or "x", title=title) for artist, title in pairs]
    _, plays = read_plays(spotify_account, export(tmp_path, rows), tmp_path / "work")
    assert len({play["track"] for play in plays}) == len(pairs)
    assert plays[0]["track"] == "A | B | C"


def test_older_names_and_files_in_order_of_their_numbers(tmp_path):
    names = ["StreamingHistory10.json", "StreamingHistory9.json", "StreamingHistory_podcast_0.json"]
    files = {f"MyData/{name}": as_json([row(title=name)]) for name in names}
    found, plays = read_plays(spotify_account, zipped(tmp_path / "my.zip", files), tmp_path / "work")
    assert [play["name"] for play in plays] == [names[1], names[0]]
    assert "1 files of podcasts" in found.notes[2]


def test_several_exports_are_several_listeners(tmp_path):
    export(tmp_path / "all", [row()], "anna.zip")
    export(tmp_path / "all", [row(), row(title="Ben's")], "ben.zip")
    _, plays = read_plays(spotify_account, tmp_path / "all", tmp_path / "work")
    assert [play["user"] for play in plays] == ["anna", "ben", "ben"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("Streaming_History_Audio_2024_0.json", as_json([stream()]), "read it with --source spotify"),
        ("endsong_0.json", as_json([stream()]), "read it with --source spotify"),
        ("StreamingHistory0.json", as_json([stream()]), "read it with --source spotify"),
        ("YourLibrary.json", "{}", "holds no file StreamingHistory_music_"),
        ("StreamingHistory0.json", "[]", "the export is empty"),
        ("StreamingHistory0.json", "{}", "holds a JSON object"),
        ("StreamingHistory0.json", '[{"endTime": "2024-02-01 10:03"}]', "entry 1 has no key artistName"),
        ("StreamingHistory0.json", as_json([row(), row(end="2024-02-01")]), "entry 2: endTime is '2024-02-01', not as"),
        ("StreamingHistory0.json", as_json([row(ms=1.5)]), "entry 1: msPlayed is '1.5'"),
        ("StreamingHistory0.json", as_json([row(artist=3)]), "must be text"),
        ("StreamingHistory0.json", as_json([row()])[:-5], "is cut off"),
    ],
)
def test_other_files_and_damaged_ones_are_errors_with_their_place_and_cure(tmp_path, name, text, message):
    path = zipped(tmp_path / "my.zip", {f"{FOLDER}/{name}": text})
    with pytest.raises(UserError, match=message) as caught:
        read_plays(spotify_account, path, tmp_path / "work")
    assert str(path) in str(caught.value)


def test_an_option_of_another_source_is_an_error(tmp_path):
    with pytest.raises(UserError, match="drop_incognito has no meaning for --source spotify-account"):
        spotify_account.read(export(tmp_path, [row()]), tmp_path, SourceOptions(drop_incognito=True))
