"""Getting published archives: from a server of our own on this machine, well-behaved or not, and from the user's hand."""

import hashlib
import io
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets.voc import DATASET_YEAR_DICT

from corruptions import make_voc
from ohem.data.download import ATTEMPTS, get, in_words
from ohem.data.published import PUBLISHED, Archive, Published, find_published
from ohem.data.sources import load_dataset
from ohem.data.unpack import check_space, is_unpacked
from ohem.errors import OhemError

NOISE = np.random.default_rng(0).integers(0, 256, 10_000, dtype=np.uint8).tobytes()
FILES = {"images/one.jpg": NOISE, "images/two.jpg": NOISE[::-1], "list.txt": b"one\ntwo\n"}


@dataclass
class Server:
    """What a machine out there offers.

    Attributes:
        url: its address.
        files: name -> content.
        ranges: whether it knows the header Range.
        cut: bytes after which it breaks off each connection; None: never.
        asked: name and Range of every request.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    cut: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)

    def archive(self, name: str, checksum: str | None = "right", size: int | None = None) -> Archive:
        """What is published of one of its files."""
        content = self.files[name]
        if checksum == "right":
            checksum = f"md5:{hashlib.md5(content).hexdigest()}"
        return Archive(f"{self.url}/{name}", len(content) if size is None else size, checksum)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, wanted = self.path.lstrip("/"), self.headers.get("Range")
            state.asked.append((name, wanted))
            if name not in state.files:
                self.send_error(404)
                return
            content = state.files[name]
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.ranges else 0
            if start >= len(content) and start:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][: state.cut])

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def tar_of(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def published(*archives: Archive) -> Published:
    return Published("set", "a small set", "free", archives, ("--data {folder}/images",))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, also the hidden ones."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def visible(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in tree(folder).items() if not name.startswith(".")}


def refusal(*archives: Archive, folder: Path) -> OhemError:
    with pytest.raises(OhemError) as caught:
        get(published(*archives), folder)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.tar", tar_of(FILES)), ("a.tgz", tar_of(FILES, "w:gz")), ("a.zip", zip_of(FILES))],
    ids=["tar", "tgz", "zip"],
)
def test_an_archive_is_downloaded_verified_unpacked_and_never_fetched_again(
    name: str, content: bytes, server: Server, tmp_path: Path
) -> None:
    server.files[name] = content
    folder, said, bars = tmp_path / "new" / "folder", [], []
    archive = server.archive(name)
    arguments = get(
        published(archive), folder, say=said.append, progress=lambda task, done, total: bars.append((done, total))
    )
    assert arguments == [f"--data {folder}/images"]
    assert visible(folder) == {**FILES, name: content}
    assert server.asked == [(name, None)]
    assert bars
    assert all(0 <= done <= total for done, total in bars)
    (folder / name).unlink()
    assert get(published(archive), folder, say=said.append) == arguments
    assert said[-1] == f"set: already in {folder}"
    assert server.asked == [(name, None)]
    (folder / "images/one.jpg").unlink()
    get(published(archive), folder)
    assert visible(folder) == {**FILES, name: content}


def test_a_download_that_breaks_off_goes_on_from_there(server: Server, tmp_path: Path) -> None:
    content = server.files["a.tar"] = tar_of(FILES)
    server.cut = 2000
    archive = server.archive("a.tar")
    have = ATTEMPTS * server.cut
    assert have < len(content)
    message = str(refusal(archive, folder=tmp_path))
    assert message.startswith(f"{tmp_path}/a.tar.part: found {have} bytes when the connection broke off")
    assert tree(tmp_path) == {"a.tar.part": content[:have]}
    assert server.asked == [("a.tar", None), *(("a.tar", f"bytes={i * server.cut}-") for i in range(1, ATTEMPTS))]
    server.cut = None
    get(published(archive), tmp_path)
    assert server.asked[-1] == ("a.tar", f"bytes={have}-")
    assert visible(tmp_path) == {**FILES, "a.tar": content}


def test_a_server_without_ranges_is_asked_for_everything(server: Server, tmp_path: Path) -> None:
    content = server.files["a.tar"] = tar_of(FILES)
    server.ranges = False
    (tmp_path / "a.tar.part").write_bytes(content[:500])
    get(published(server.archive("a.tar")), tmp_path)
    assert visible(tmp_path) == {**FILES, "a.tar": content}


@pytest.mark.parametrize("exact_size", [True, False])
def test_what_was_received_whole_needs_no_bytes_more(exact_size: bool, server: Server, tmp_path: Path) -> None:
    content = server.files["a.tar"] = tar_of(FILES)
    (tmp_path / "a.tar.part").write_bytes(content)
    get(published(server.archive("a.tar", size=None if exact_size else 50_000)), tmp_path)
    assert visible(tmp_path) == {**FILES, "a.tar": content}
    assert server.asked == ([] if exact_size else [("a.tar", f"bytes={len(content)}-")])


def test_a_part_longer_than_the_archive_is_dropped(server: Server, tmp_path: Path) -> None:
    content = server.files["a.tar"] = tar_of(FILES)
    (tmp_path / "a.tar.part").write_bytes(content + b"more")
    get(published(server.archive("a.tar")), tmp_path)
    assert visible(tmp_path) == {**FILES, "a.tar": content}


def test_a_wrong_download_is_thrown_away_and_not_unpacked(server: Server, tmp_path: Path) -> None:
    good = server.files["a.tar"] = tar_of(FILES)
    archive = server.archive("a.tar")
    server.files["a.tar"] = b"<html>This file has moved</html>"
    error = refusal(archive, folder=tmp_path)
    found = hashlib.md5(server.files["a.tar"]).hexdigest()
    assert f"found 32 bytes with md5:{found}, not {archive.checksum}, and threw them away" in str(error)
    assert error.__notes__ == [f"  {archive.url} to {tmp_path}/a.tar (1 MB, {archive.checksum})"]
    assert tree(tmp_path) == {}
    server.files["a.tar"] = good
    get(published(archive), tmp_path)
    assert visible(tmp_path) == {**FILES, "a.tar": good}


def test_without_a_published_checksum_the_users_are_told_so_and_given_one(server: Server, tmp_path: Path) -> None:
    content = server.files["a.tar"] = tar_of(FILES)
    said: list[str] = []
    get(published(server.archive("a.tar", checksum=None)), tmp_path, say=said.append)
    digest = hashlib.sha256(content).hexdigest()
    assert said[0] == f"a.tar: not verified, since no checksum of it is published; it has sha256:{digest}"


def test_without_a_network_every_missing_file_is_named_and_can_be_put_in_place_by_hand(
    server: Server, tmp_path: Path
) -> None:
    first, second = tar_of(FILES), zip_of({"more.txt": b"more"})
    server.files = {"a.tar": first, "b.zip": second}
    a, b = server.archive("a.tar"), server.archive("b.zip")
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as closed:
        nowhere = f"http://127.0.0.1:{closed.server_port}"
    a, b = (Archive(f"{nowhere}/{one.name}", one.size, one.checksum) for one in (a, b))
    error = refusal(a, b, folder=tmp_path)
    assert str(error).startswith(f"{nowhere}/a.tar: found no way there (")
    assert "Connection refused" in str(error)
    assert error.__notes__ == [
        f"  {a.url} to {tmp_path}/a.tar (1 MB, {a.checksum})",
        f"  {b.url} to {tmp_path}/b.zip (1 MB, {b.checksum})",
    ]
    assert tree(tmp_path) == {}
    # The second one alone is unpacked, and only the first is asked for then.
    (tmp_path / "b.zip").write_bytes(second)
    assert refusal(a, b, folder=tmp_path).__notes__ == [f"  {a.url} to {tmp_path}/a.tar (1 MB, {a.checksum})"]
    assert is_unpacked(tmp_path, "b.zip")
    (tmp_path / "a.tar").write_bytes(first)
    assert get(published(a, b), tmp_path) == [f"--data {tmp_path}/images"]
    assert visible(tmp_path) == {**FILES, "more.txt": b"more", "a.tar": first, "b.zip": second}
    assert server.asked == []


def test_a_refusing_server_is_named_with_its_words(server: Server, tmp_path: Path) -> None:
    archive = Archive(f"{server.url}/gone.tar", 10, "md5:0")
    assert f"{archive.url}: found no way there (HTTP 404 Not Found)" in str(refusal(archive, folder=tmp_path))


def test_a_truncated_file_from_the_users_hand_is_refused_and_left_alone(server: Server, tmp_path: Path) -> None:
    content = server.files["a.tar"] = tar_of(FILES)
    archive = server.archive("a.tar")
    (tmp_path / "a.tar").write_bytes(content[:5000])
    message = str(refusal(archive, folder=tmp_path))
    assert message.startswith(f"{tmp_path}/a.tar: found 5000 bytes with md5:")
    assert f"not {archive.checksum}; allowed: the whole archive, or no file of this name" in message
    assert tree(tmp_path) == {"a.tar": content[:5000]}
    assert server.asked == []


def symlink_out(name: str, target: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo(name)
        link.type, link.linkname = tarfile.SYMTYPE, target
        tar.addfile(link)
    return buffer.getvalue()


def pipe(name: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.type = tarfile.FIFOTYPE
        tar.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tar", tar_of({"good.txt": b"", "../evil.txt": b""})),
        ("a.tar", tar_of({"good.txt": b"", "images/../../evil.txt": b""})),
        ("a.tar", tar_of({"good.txt": b"", "/tmp/evil.txt": b""})),
        ("a.tar", symlink_out("evil", "../..")),
        ("a.tar", symlink_out("evil", "/etc/passwd")),
        ("a.tar", pipe("evil")),
        ("a.zip", zip_of({"good.txt": b"", "../evil.txt": b""})),
        ("a.zip", zip_of({"good.txt": b"", "/tmp/evil.txt": b""})),
        ("a.tar", b""),
        ("a.tar", b"no archive at all"),
        ("a.tar", tar_of(FILES)[:15_000]),
        ("a.tgz", tar_of(FILES, "w:gz")[:-2000]),
        ("a.zip", zip_of(FILES)[:-100]),
        ("a.zip", zip_of(FILES).replace(NOISE[:100], NOISE[100:200])),
    ],
)
def test_of_a_harmful_or_damaged_archive_nothing_is_unpacked(
    name: str, content: bytes, server: Server, tmp_path: Path
) -> None:
    server.files[name] = content
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(content)
    assert str(refusal(server.archive(name), folder=folder)).startswith(f"{folder / name}: found ")
    assert tree(tmp_path) == {f"folder/{name}": content}


def test_links_inside_an_archive_are_kept(server: Server, tmp_path: Path) -> None:
    buffer = io.BytesIO(tar_of({"weights/one.bin": NOISE}))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        link = tarfile.TarInfo("weights/two.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "one.bin"
        tar.addfile(link)
    server.files["a.tar"] = buffer.getvalue()
    for _ in range(2):
        get(published(server.archive("a.tar")), tmp_path)
        assert (tmp_path / "weights/two.bin").is_symlink()
        assert (tmp_path / "weights/two.bin").read_bytes() == NOISE
        next(tmp_path.glob(".*.json")).unlink()  # as if it had been stopped just before the end


def test_the_users_own_files_are_not_written_over(server: Server, tmp_path: Path) -> None:
    content = server.files["a.tar"] = tar_of(FILES)
    (tmp_path / "images").mkdir()
    (tmp_path / "images/mine.jpg").write_bytes(b"mine")
    (tmp_path / "images/one.jpg").write_bytes(FILES["images/one.jpg"])
    (tmp_path / "list.txt").write_bytes(b"one\n")
    archive = server.archive("a.tar")
    assert str(refusal(archive, folder=tmp_path)).startswith(f"{tmp_path}/list.txt: found another file than in a.tar;")
    mine = {"images/mine.jpg": b"mine", "images/one.jpg": NOISE, "list.txt": b"one\n", "a.tar": content}
    assert tree(tmp_path) == mine
    (tmp_path / "list.txt").unlink()
    get(published(archive), tmp_path)
    assert visible(tmp_path) == {**FILES, "images/mine.jpg": b"mine", "a.tar": content}


def test_a_folder_that_cannot_be_one_is_named(server: Server, tmp_path: Path) -> None:
    server.files["a.tar"] = tar_of(FILES)
    (tmp_path / "file").write_text("")
    assert str(refusal(server.archive("a.tar"), folder=tmp_path / "file")).startswith(f"{tmp_path}/file: found ")


def test_space_is_looked_at_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    check_space(tmp_path, needed=10**9, free=10**9)
    with pytest.raises(OhemError, match=r"found 1\.00 GB free; allowed: at least 2\.50 GB"):
        check_space(tmp_path, needed=25 * 10**8, free=10**9)
    server.files["a.tar"] = tar_of(FILES)
    huge = server.archive("a.tar", size=10**18)
    # Received and unpacked, it is there twice.
    assert str(refusal(huge, folder=tmp_path)).endswith("allowed: at least 2000000000.00 GB")
    assert server.asked == []


@pytest.mark.parametrize(
    ("size", "text"), [(1, "1 MB"), (252_872_794, "253 MB"), (999_499_999, "999 MB"), (13_510_573_713, "13.5 GB")]
)
def test_sizes_in_words(size: int, text: str) -> None:
    assert in_words(size) == text


def test_what_is_printed_at_the_end_is_a_data_source(server: Server, tmp_path: Path) -> None:
    make_voc(tmp_path / "made" / "VOCdevkit" / "VOC2007")
    made = {
        str(p.relative_to(tmp_path / "made")): p.read_bytes() for p in (tmp_path / "made").rglob("*") if p.is_file()
    }
    server.files["voc.tar"] = tar_of(made)
    use = find_published("voc07").use
    [first, _] = get(Published("voc", "", "", (server.archive("voc.tar"),), use), tmp_path / "voc")
    assert first.startswith("--data ")
    assert len(load_dataset([first.removeprefix("--data ")])) == 3


def test_the_list_of_what_is_published() -> None:
    names = [one.name for one in PUBLISHED]
    assert len(set(names)) == len(names)
    for one in PUBLISHED:
        assert all("{folder}" in argument and argument.format(folder="x") for argument in one.use)
        for archive in one.archives:
            assert re.fullmatch(r"https?://[\w.]+/[\w./-]+\.(tar|tgz|zip)", archive.url)
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", archive.checksum or "")
    with pytest.raises(OhemError, match="did you mean voc07"):
        find_published("voc-07")


@pytest.mark.parametrize(("name", "editions"), [("voc07", ("2007", "2007-test")), ("voc12", ("2012",))])
def test_voc_is_published_where_torchvision_says(name: str, editions: tuple[str, ...]) -> None:
    known = [DATASET_YEAR_DICT[edition] for edition in editions]
    ours = [(one.url, one.checksum) for one in find_published(name).archives]
    assert ours == [(entry["url"], f"md5:{entry['md5']}") for entry in known]
