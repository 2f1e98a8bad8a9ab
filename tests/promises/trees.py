"""Ways to change the folder of a signed patch so that it holds other files than were signed."""

import os
from collections.abc import Callable
from pathlib import Path

Change = Callable[[Path, str], None]  # of the folder, at the file of this name


def read(path: Path) -> bytes:
    """The bytes of a regular file; OSError where an earlier change left something else, which might block."""
    if path.is_symlink() or not path.is_file():
        raise FileNotFoundError(path)
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    read(path)
    path.write_bytes(data)


def extra(name: str) -> Change:
    return lambda folder, _: (folder / name).write_bytes(b"x") and None


def extra_folder(folder: Path, _: str) -> None:
    (folder / "more").mkdir()


def missing(folder: Path, name: str) -> None:
    (folder / name).unlink()


def renamed(folder: Path, name: str) -> None:
    (folder / name).rename(folder / f"{name}.bak")


def case_twin(folder: Path, name: str) -> None:
    (folder / name.swapcase()).write_bytes(read(folder / name))


def look_alike(folder: Path, name: str) -> None:
    (folder / f"{name[:2]}\u200b{name[2:]}").write_bytes(read(folder / name))


def linked(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / f"outside-{name}")
    (folder / name).symlink_to(folder.parent / f"outside-{name}")


def dangling(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to("nowhere")


def a_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def a_pipe(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def emptied(folder: Path, name: str) -> None:
    write(folder / name, b"")


def longer(folder: Path, name: str) -> None:
    write(folder / name, read(folder / name) + b"\n")


def shorter(folder: Path, name: str) -> None:
    write(folder / name, read(folder / name)[:-1])


def exchanged(folder: Path, name: str) -> None:
    """Two files change places."""
    other = next(path for path in sorted(folder.iterdir()) if path.name != name)
    data = read(other)
    write(other, read(folder / name))
    write(folder / name, data)


CHANGES: dict[str, Change] = {
    "an extra file": extra("notes.txt"),
    "an extra hidden file": extra(".gitattributes"),
    "an extra pickle": extra("pytorch_model.bin"),
    "an extra folder": extra_folder,
    "a missing file": missing,
    "a renamed file": renamed,
    "a twin in another case": case_twin,
    "a twin with an invisible letter": look_alike,
    "a link in place of a file": linked,
    "a dangling link": dangling,
    "a folder in place of a file": a_folder,
    "a pipe in place of a file": a_pipe,
    "an empty file": emptied,
    "a longer file": longer,
    "a shorter file": shorter,
    "two files exchanged": exchanged,
}
