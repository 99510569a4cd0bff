"""An export that was downloaded twice is one listener, whatever the service and the names of the files."""

import json
import shutil

import pytest
from exported import as_json, read_plays, stream, zipped
from test_apple_music import row as activity
from test_apple_music import sheet
from test_listenbrainz import listen
from test_listenbrainz import text as listens
from test_spotify_account import row as account

from utils.core.errors import UserError
from utils.preprocessing.sources import apple_music, listenbrainz, spotify, spotify_account
from utils.preprocessing.sources.exports import check_listeners

EXPORTS = {
    "spotify": (spotify, "Streaming_History_Audio_0.json", as_json([stream(), stream(track="another")])),
    "spotify-account": (spotify_account, "StreamingHistory_music_0.json", as_json([account(), account(title="b")])),
    "apple-music": (apple_music, "Apple Music Play Activity.csv", sheet([activity(), activity(title="Other")])),
    "listenbrainz": (listenbrainz, "listens/2024/2.jsonl", listens(listen(), listen(msid="msid-2"))),
}
each_service = pytest.mark.parametrize("service", EXPORTS)


@each_service
def test_two_copies_beside_each_other_are_an_error(service, tmp_path):
    source, name, text = EXPORTS[service]
    first = zipped(tmp_path / "all" / "my export.zip", {name: text})
    shutil.copy(first, tmp_path / "all" / "my export (1).zip")
    said = r"all: my export and my export \(1\) have 2 plays in common, so they are one listener; remove one of them"
    with pytest.raises(UserError, match=said):
        read_plays(source, tmp_path / "all", tmp_path / "work")


@each_service
def test_two_copies_in_the_folder_of_a_listener_count_once(service, tmp_path):
    source, name, text = EXPORTS[service]
    first = zipped(tmp_path / "all" / "anna" / "my export.zip", {name: text})
    shutil.copy(first, first.with_name("my export (1).zip"))
    found, plays = read_plays(source, tmp_path / "all", tmp_path / "work")
    assert [play["user"] for play in plays] == ["listener"] * 2
    assert [n for reason, n in found.dropped if reason.startswith("repeats")] == [2]


def test_an_older_and_a_newer_export_of_one_listener_are_an_error(tmp_path):
    old = [listen(at=1_706_781_600 + 200 * i) for i in range(21)]
    new = [*old, *(listen(at=1_726_781_600 + 200 * i) for i in range(20))]
    for name, each in (("old.zip", old), ("new.zip", new)):
        zipped(tmp_path / "all" / name, {"listens/2024/2.jsonl": listens(*each)})
    with pytest.raises(UserError, match="new and old have 21 plays in common"):
        read_plays(listenbrainz, tmp_path / "all", tmp_path / "work")


def test_two_listeners_without_plays_are_not_one(tmp_path):
    for name in ("anna", "ben"):
        zipped(tmp_path / "all" / f"{name}.zip", {"endsong_0.json": json.dumps([])})
    zipped(tmp_path / "all" / "cleo.zip", {"endsong_0.json": as_json([stream()])})
    assert [play["user"] for play in read_plays(spotify, tmp_path / "all", tmp_path / "work")[1]] == ["cleo"]


@pytest.mark.parametrize(("same", "own", "are_one"), [(20, 1, False), (21, 20, True), (21, 21, False), (1, 0, True)])
def test_how_many_plays_two_listeners_may_share(tmp_path, same, own, are_one):
    plays = {name: [*range(same), *(f"{name} {i}" for i in range(own))] for name in ("anna", "ben")}
    if not are_one:
        check_listeners(tmp_path, plays)
        return
    with pytest.raises(UserError, match=f"anna and ben have {same} plays in common"):
        check_listeners(tmp_path, plays)
