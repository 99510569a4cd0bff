"""Scrobbles as exporters of Last.fm write them, and lastfm-1K: the mapping, what is dropped, the order, and errors."""

from __future__ import annotations

import gzip
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from exported import read_plays

from utils.core.errors import UserError
from utils.preprocessing.options import SourceOptions
from utils.preprocessing.sources import lastfm
from utils.preprocessing.sources.plays import SourcePlays, artist_and_title

FIRST = datetime(2024, 5, 31, 10, 20, tzinfo=UTC)


def plays(path: Path, **options: Any) -> tuple[SourcePlays, list[dict]]:
    """What the source hands over, and its rows."""
    return read_plays(lastfm, path, path.parent / f"work_{len(list(path.parent.iterdir()))}", **options)


def message(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        plays(path, **options)
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


# --------------------------------------------------------------------------------------------------------- exporters


def test_lastfm_to_csv(tmp_path: Path) -> None:
    """No header, the newest play first; a clock of minutes gives many plays one time, and the file's order decides."""
    path = write(
        tmp_path / "me.csv",
        'Sigur Rós,( ),Untitled 1,\n'
        'Sigur Rós,( ),Untitled 4,"31 May 2024, 10:21"\n'
        'Sigur Rós,( ),Untitled 3,"31 May 2024, 10:20"\n'
        'Beyoncé,,Halo,"31 May 2024, 10:20"\n'
        'BEYONCÉ,"I Am, Sasha", halo ,"31 May 2024, 10:20"\n'
        ',,no artist,"31 May 2024, 10:19"\n'
        'X,,Y,"01 Jan 1970, 00:00"\n',
    )  # fmt: skip
    found, rows = plays(path)
    assert [row["track"] for row in rows] == [
        "beyoncé | halo",
        "beyoncé | halo",
        "sigur rós | untitled 3",
        "sigur rós | untitled 4",
    ]
    assert [row["time"] for row in rows] == [FIRST, FIRST, FIRST, FIRST.replace(minute=21)]
    assert [(row["name"], row["artist"], row["album"]) for row in rows[:3]] == [
        ("halo", "BEYONCÉ", "I Am, Sasha"),
        ("Halo", "Beyoncé", None),
        ("Untitled 3", "Sigur Rós", "( )"),
    ]
    assert found.dropped == [
        ("no time: it was playing when the file was made", 1),
        ("no artist or no title", 1),
        ("a time before 2002, when Last.fm began: a player without a clock", 1),
    ]
    assert found.per_listener
    assert {row["user"] for row in rows} == {"listener"}
    assert (found.columns.skip, found.columns.seconds) == ("", "")
    assert found.sources == [{"file": "me.csv", "bytes": path.stat().st_size, "rows": 7}]
    assert found.notes[1] == "read from the last line to the first, since the newest play is the first: me.csv"


@pytest.mark.parametrize("date", ["31 May 2024 10:20", "31 May 2024, 10:20"])
def test_lastfm_to_csv_without_quotes(tmp_path: Path, date: str) -> None:
    """It writes no quotes and takes commas out of fields; a version leaves that of the date in."""
    _, rows = plays(write(tmp_path / "me.csv", f"Air,Moon Safari,La Femme dArgent,{date}\nAir,,All I Need,{date}\n"))
    assert [(row["track"], row["time"]) for row in rows] == [
        ("air | la femme dargent", FIRST),
        ("air | all i need", FIRST),
    ]


def test_lastfmstats(tmp_path: Path) -> None:
    """Semicolons, a byte order mark, the account in the header, milliseconds; oldest first stays as it is."""
    path = write(
        tmp_path / "lastfmstats-somebody.csv",
        "\ufeffArtist;Album;AlbumId;Track;Date#somebody\r\n"
        'A|B;"One; two";7;"Say ""it""";1717150800000\r\n'
        "A;;;B | C;1717150800500\r\n",
    )
    found, rows = plays(path)
    assert [row["track"] for row in rows] == ['a||b | say "it"', "a | b | c"]
    assert rows[0]["track"] == artist_and_title("a|b", 'say "it"'), "as other sources write it"
    assert rows[0]["time"] == FIRST
    assert rows[1]["time"] == FIRST.replace(microsecond=500_000)
    assert rows[0]["album"] == "One; two"
    assert len(found.notes) == 1


def test_ghan(tmp_path: Path) -> None:
    path = write(
        tmp_path / "recenttracks-somebody-1717150900.csv",
        "uts,utc_time,artist,artist_mbid,album,album_mbid,track,track_mbid\n"
        '"1717150860","31 May 2024, 10:21","Nelly, F.","m1","Loose","m2","Say It Right",""\n'
        '"1717150800","31 May 2024, 10:20","Air","","","","Ce matin-là",""\n',
    )
    _, rows = plays(path)
    assert [(row["track"], row["time"].minute) for row in rows] == [
        ("air | ce matin-là", 20),
        ("nelly, f. | say it right", 21),
    ]


def test_lastexport(tmp_path: Path) -> None:
    """Tabs, no header, no quoting: a quote is a letter."""
    path = write(
        tmp_path / "exported.txt", '1717150860\t"Heroes"\tDavid Bowie\t\t\tm\t\n1717150800\tLow"\tX\tAlbum\t\t\t\n'
    )
    _, rows = plays(path)
    assert [(row["track"], row["album"]) for row in rows] == [('x | low"', "Album"), ('david bowie | "heroes"', None)]


def test_columns_by_their_names(tmp_path: Path) -> None:
    """As a table on Kaggle has them: an index without a name, a user, and date and clock in two columns."""
    path = write(
        tmp_path / "Last.fm_data.csv",
        ",Username,Artist,Track,Album,Date,Time\n"
        "0,ann,Air,All I Need,,31 May 2024, 10:21\n"
        "1,ann,Air,La Femme,,31 May 2024, 10:20\n"
        "2,bob,Air,La Femme,,31 May 2024, 10:20\n",
    )
    found, rows = plays(path)
    assert [(row["user"], row["track"], row["time"].minute) for row in rows] == [
        ("bob", "air | la femme", 20),
        ("ann", "air | la femme", 20),
        ("ann", "air | all i need", 21),
    ]
    assert found.columns.user == "user"


def test_files_of_several_listeners(tmp_path: Path) -> None:
    """Each file is a listener, and each folder; the account that lastfmstats puts into the header is left there."""
    folder = tmp_path / "all"
    (folder / "bob").mkdir(parents=True)
    write(folder / "ann.csv", "A,,x,31 May 2024 10:20\n")
    write(folder / "bob" / "stats.csv", "Artist;Album;AlbumId;Track;Date#bobby\nA;;;x;1717150800000\n")
    write(folder / "bob" / "recenttracks-c-1717150900.csv", "uts,artist,track\n1717150800,A,x\n")
    write(folder / "README.txt", "not plays")
    write(folder / "._ann.csv", "\0\1")
    found, rows = plays(folder)
    assert [row["user"] for row in rows] == ["ann", "bob", "bob"]
    assert [source["file"] for source in found.sources] == [
        "ann.csv", "bob/recenttracks-c-1717150900.csv", "bob/stats.csv"
    ]  # fmt: skip
    assert {row["user"] for row in plays(folder / "bob")[1]} == {"recenttracks-c-1717150900", "stats"}


def test_time_zone_of_local_times(tmp_path: Path) -> None:
    """A clock in Berlin shows 10:20 two hours before one in London's winter time would; offsets and numbers stand."""
    path = write(
        tmp_path / "plays.csv",
        "artist,track,date\nA,x,2024-05-31 10:20\nA,x,2024-05-31T10:20:00Z\nA,x,2024-05-31T10:20:00+03:00\n"
        "A,x,1717150800\nA,x,31 Jan 2024 10:20\n",
    )
    _, rows = plays(path, time_zone="Europe/Berlin")
    assert sorted(row["time"].isoformat()[:16] for row in rows) == [
        "2024-01-31T09:20",
        "2024-05-31T07:20",
        "2024-05-31T08:20",
        "2024-05-31T10:20",
        "2024-05-31T10:20",
    ]
    assert "no such zone; write it as Europe/Berlin" in message(path, time_zone="Berlin")
    numbers = write(tmp_path / "numbers.csv", "artist,track,date\nA,x,1717150800\n")
    assert "means nothing: the times in" in message(numbers, time_zone="Europe/Berlin")


# --------------------------------------------------------------------------------------------------------- lastfm-1K


ROWS_1K = (
    "user_000001\t2009-05-04T23:08:57Z\tf1b1cf71\tDeep Dish\t\tFuck Me Im Famous (Pacha Ibiza)-09-28-2007\n"
    'user_000001\t2009-05-04T13:54:10Z\ta7f7df4a\t"Weird Al" Yankovic\t7b3d1c1a\tEat It"\n'
    "user_000001\t2009-05-04T13:54:10Z\ta7f7df4a\tBjörk\t\tJóga\n"
    "user_000762\t2013-09-29T18:32:04Z\td8354b38\t30 Seconds To Mars\tb5b40605\tA Beautiful Lie\n"
    "user_000762\t2009-05-02T02:01:47Z\t91f7a868\tThe Cab\t\t\n"
)


@pytest.mark.parametrize("packed", [False, True])
def test_lastfm_1k(tmp_path: Path, packed: bool) -> None:
    """Six columns without header and quoting; one listener's clock was wrong; profiles are no plays."""
    folder = tmp_path / "lastfm-dataset-1K"
    folder.mkdir()
    write(
        folder / "userid-profile.tsv", "#id\tgender\tage\tcountry\tregistered\nuser_000001\tm\t\tJapan\tAug 13, 2006\n"
    )
    if packed:
        (folder / f"{lastfm.ONE_K}.gz").write_bytes(gzip.compress(ROWS_1K.encode()))
    else:
        write(folder / lastfm.ONE_K, ROWS_1K)
    found, rows = plays(folder)
    assert [(row["user"], row["track"], row["time"].isoformat()) for row in rows] == [
        ("user_000001", "björk | jóga", "2009-05-04T13:54:10+00:00"),
        ("user_000001", '"weird al" yankovic | eat it"', "2009-05-04T13:54:10+00:00"),
        ("user_000001", "deep dish | fuck me im famous (pacha ibiza)-09-28-2007", "2009-05-04T23:08:57+00:00"),
    ]
    assert found.dropped == [
        ("no artist or no title", 1),
        ("a time after May 2010, when lastfm-1K was published: a wrong clock", 1),
    ]


def test_newer_rows_in_a_file_of_ones_own_are_kept(tmp_path: Path) -> None:
    _, rows = plays(write(tmp_path / "plays.tsv", ROWS_1K.splitlines(keepends=True)[3]))
    assert rows[0]["time"].year == 2013


# ------------------------------------------------------------------------------------------------------------ errors


def test_errors_name_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'A,,x,"31 May 2024, 10:20"\n\nA,"B\nC",x,yesterday\n')
    assert f"{path}, line 4: the time is 'yesterday', not one that is read" in message(path)
    path = write(tmp_path / "b.csv", 'A,,x,"31 May 2024, 10:20"\nA,B,C,x,"31 May 2024, 10:20"\n')
    assert f"{path}, line 2: 5 fields, not 4 (artist, album, title, time)" in message(path)
    path = write(tmp_path / "c.tsv", ROWS_1K + "user_000762\t2009-05-02T02:01:47Z\tx\tThe Cab\n")
    assert f"{path}, line 6: 4 fields, not 6 (user, time" in message(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"track": 1}]', "is JSON; give a text file with one play a line"),
        ('{"username": "x", "scrobbles": []}', "is JSON"),
        ("PK\3\4", "is a zip file"),
        ("artist,album\nA,B\n", "is of no form that is known: its first line is 'artist,album'"),
        ("a,b,c,d\n", "Known are artist, album, title, 31 May 2024, 10:20 without a header"),
        ("", "is empty"),
        ("artist,track,date\n", "has no plays"),
        ("artist,track,date\nA,,2024-05-31\n", "has no plays of tracks: 1 no artist or no title"),
    ],
)
def test_files_of_other_kinds(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path / "plays.csv", text)
    assert str(path) in message(path)
    assert said in message(path)


def test_other_errors(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "missing.csv")
    (tmp_path / "empty").mkdir()
    assert "holds no .csv, .tsv, .txt files" in message(tmp_path / "empty")
    path = tmp_path / "latin.csv"
    path.write_bytes("artist,track,date\nSigur Rós,x,2024-05-31\n".encode("latin-1"))
    assert f"{path}, line 2: this is not UTF-8" in message(path)
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(gzip.compress(b"artist,track,date\nA,x,2024-05-31\n" * 100)[:-9])
    assert "cut off or damaged" in message(path)
    with pytest.raises(UserError, match="skip_below has no meaning for --source lastfm"):
        lastfm.read(path, tmp_path, SourceOptions(skip_below=0.3))


def test_the_files_of_a_folder(tmp_path: Path) -> None:
    """A folder may be called as a file is, and may be a link; a file given twice would be two listeners."""
    text = "artist,track,date\n" + "".join(f"A,x{i},2024-05-31 10:{i}0\n" for i in range(3))
    folder = tmp_path / "all"
    (folder / "old.csv").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    anna = write(tmp_path / "elsewhere" / "anna.csv", text)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    assert [play["track"] for play in plays(folder)[1]] == ["a | x0", "a | x1", "a | x2"]
    again = write(folder / "linked (1).csv", text)
    assert message(folder) == f"{folder}/linked/{anna.name} and {again} hold the same plays; remove one of them"
    again.unlink()
    again.symlink_to(tmp_path / "nowhere.csv")
    assert message(folder) == f"{again} is a link to nothing; mend or remove it"


@pytest.mark.parametrize("byte", [12, 60, -30, -6])
def test_a_flipped_byte_of_a_gzip_file_is_an_error(tmp_path: Path, byte: int) -> None:
    rows = "".join(f"A{i * 7919 % 101},x{i * 31337 % 10007},2024-05-31\n" for i in range(500))
    damaged = bytearray(gzip.compress(f"artist,track,date\n{rows}".encode()))
    damaged[byte] ^= 0x55
    (tmp_path / "x.csv.gz").write_bytes(damaged)
    assert message(tmp_path / "x.csv.gz").startswith(f"{tmp_path}/x.csv.gz is cut off or damaged (")


def test_the_zone_of_the_machine_is_no_zone(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "artist,track,date\nA,x,2024-05-31 10:00\n")
    assert "'localtime': no such zone" in message(path, time_zone="localtime")
