"""ListenBrainz: one listen a line, months in their order, ids where there are any."""

import json
from datetime import UTC, datetime

import pytest
from exported import read_plays, zipped

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources import listenbrainz


def listen(at=1_706_781_600, artist="Band", title="Song", msid="msid-1", mbid=None, **changes):
    """As the export has it: `mbid_mapping` is null for what MusicBrainz does not know."""
    mapping = {"recording_name": title, "recording_mbid": mbid, "artist_mbids": [], "artists": []} if mbid else None
    track = {
        "artist_name": artist,
        "track_name": title,
        "release_name": "Record",
        "recording_msid": msid,
        "additional_info": {"recording_msid": msid, "submission_client": "player", "duration_ms": 180000},
        "mbid_mapping": mapping,
    }
    return {"listened_at": at, "inserted_at": 1_706_800_000.123, "track_metadata": track | changes}


def text(*listens):
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in listens)


def export(tmp_path, months, name="listenbrainz_anna_1.zip"):
    files = {f"listens/{month}.jsonl": text(*listens) for month, listens in months.items()}
    extra = {"user.json": '{"user_id": 1, "username": "anna"}\n', "feedback.jsonl": '{"score": 1}\n'}
    return zipped(tmp_path / name, extra | files)


def test_a_listen_is_a_play_at_its_time(tmp_path):
    found, plays = read_plays(listenbrainz, export(tmp_path, {"2024/2": [listen()]}), tmp_path / "work")
    assert plays == [
        {
            "user": "listener",
            "time": datetime(2024, 2, 1, 10, tzinfo=UTC),
            "track": "msid-1",
            "name": "Song",
            "artist": "Band",
            "album": "Record",
        }
    ]
    assert found.columns.skip == found.columns.seconds == ""
    assert b"anna" not in found.files[0].read_bytes()
    assert [source["rows"] for source in found.sources] == [1]


def test_the_best_id_that_there_is(tmp_path):
    bare = {"artist_name": "Band", "track_name": "Song"}
    listens = [
        listen(1, mbid="mapped", additional_info={"recording_mbid": "sent"}),
        listen(2, additional_info={"recording_mbid": "sent", "recording_msid": "x"}),
        listen(3, msid="own"),
        listen(4, msid=None, additional_info={"recording_msid": "older"}),
        {"listened_at": 5.25, "track_metadata": bare},
    ]
    found, plays = read_plays(listenbrainz, export(tmp_path, {"1970/1": listens}), tmp_path / "work")
    assert [play["track"] for play in plays] == ["mapped", "sent", "own", "older", "Band | Song"]
    assert plays[4]["time"].microsecond == 250_000
    assert plays[4]["album"] is None
    assert found.notes[0].startswith("listenbrainz: 2 of 5 listens have MusicBrainz's id")


def test_months_are_read_in_order_of_time_and_repeats_count_once(tmp_path):
    months = {
        "2024/10": [listen(40, msid="d")],
        "2024/9": [listen(30, msid="c"), listen(30, msid="c"), listen(30, msid="e")],
        "2023/12": [listen(20, msid="b")],
    }
    found, plays = read_plays(listenbrainz, export(tmp_path, months), tmp_path / "work")
    assert [play["track"] for play in plays] == ["b", "c", "e", "d"]
    assert dict(found.dropped) == {listenbrainz.NO_TIME: 0, listenbrainz.NO_TRACK: 0, listenbrainz.REPEAT: 1}


def test_listens_without_time_or_names_are_counted(tmp_path):
    listens = [listen(), listen(None), listen(artist=None), listen(title="")]
    found, plays = read_plays(listenbrainz, export(tmp_path, {"2024/2": listens}), tmp_path / "work")
    assert len(plays) == 1
    assert [n for _, n in found.dropped] == [1, 2, 0]


def test_the_folder_the_folder_in_it_and_a_file_are_the_same(tmp_path):
    expected = read_plays(listenbrainz, export(tmp_path, {"2024/2": [listen()]}), tmp_path / "a")[1]
    month = tmp_path / "unzipped" / "listens" / "2024" / "2.jsonl"
    month.parent.mkdir(parents=True)
    month.write_text(text(listen()) + "\n")
    (tmp_path / "unzipped" / "feedback.jsonl").write_text("{}\n")
    for i, path in enumerate((tmp_path / "unzipped", tmp_path / "unzipped" / "listens", month)):
        assert read_plays(listenbrainz, path, tmp_path / f"b{i}")[1] == expected


def test_years_in_the_folder_listens_are_not_listeners(tmp_path):
    for year, month in (("2024", 1), ("2023", 10), ("2023", 9)):
        folder = tmp_path / "listens" / year
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{month}.jsonl").write_text(text(listen(title=f"{year}/{month}", msid=f"{year}/{month}")))
    _, plays = read_plays(listenbrainz, tmp_path / "listens", tmp_path / "work")
    assert [play["name"] for play in plays] == ["2023/9", "2023/10", "2024/1"]
    assert {play["user"] for play in plays} == {"listener"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"listened_at": 1, "track_meta', r"2\.jsonl, line 2: not valid JSON .*may be cut off"),
        ('{"listened_at": 1, "track_metadata": null}\n', "line 2 is no listen: it has no track_metadata"),
        ("[]\n", "line 2 is no listen"),
        ('{"track_metadata": {}}\n', "line 2 is no listen: it has no listened_at"),
        ('{"listened_at": "now", "track_metadata": {}}\n', "line 2: listened_at is 'now', not seconds"),
        ('{"listened_at": NaN, "track_metadata": {}}\n', "line 2: listened_at is 'nan'"),
        ('{"listened_at": 1, "track_metadata": {"artist_name": 1}}\n', "line 2: artist_name is '1', not text"),
    ],
)
def test_damaged_lines_are_errors_with_their_place(tmp_path, line, message):
    path = zipped(tmp_path / "my.zip", {"listens/2024/2.jsonl": text(listen()) + line})
    with pytest.raises(UserError, match=message) as caught:
        read_plays(listenbrainz, path, tmp_path / "work")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("files", "message"), [({"x.json": "{}"}, "holds no file listens"), ({"listens/2024/2.jsonl": ""}, "is empty")]
)
def test_other_and_empty_exports_are_errors(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        read_plays(listenbrainz, zipped(tmp_path / "my.zip", files), tmp_path / "work")


def test_an_option_of_another_source_is_an_error(tmp_path):
    with pytest.raises(UserError, match="skip_below has no meaning for --source listenbrainz"):
        listenbrainz.read(export(tmp_path, {"2024/2": [listen()]}), tmp_path, SourceOptions(skip_below=0.1))


@pytest.mark.parametrize("at", [1_706_781_600_000, 1e300, 10**400, -(10**10)])
def test_a_time_that_no_listen_has_is_named(tmp_path, at):
    path = tmp_path / "1.jsonl"
    path.write_text(text(listen(), listen(at=at)))
    with pytest.raises(UserError, match=r"1\.jsonl, line 2: listened_at is '.*', not seconds since 1970"):
        read_plays(listenbrainz, path, tmp_path / "work")


def test_half_a_letter_is_a_question_mark(tmp_path):
    path = tmp_path / "1.jsonl"
    path.write_text(json.dumps(listen(title="Cut \udc00", msid=None)) + "\n")
    _, plays = read_plays(listenbrainz, path, tmp_path / "work")
    assert [(play["name"], play["track"]) for play in plays] == [("Cut ?", "Band | Cut ?")]
