"""Rows in files: what is read, what is written under which name, and what is refused in one line."""

import io
import os
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from idlewheel.errors import BadInput
from idlewheel.rows_files import as_rows, check_output, load_rows, save_rows


def test_a_single_array(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    for array in (np.arange(6).reshape(3, 2), np.zeros((0, 4)), np.array(["a", "été"]), np.asfortranarray(np.eye(3))):
        np.save(path, array)
        np.testing.assert_array_equal(load_rows(path), array)


def test_named_arrays_whatever_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "rows.data"
    with path.open("wb") as file:
        np.savez_compressed(file, a=np.arange(3), b=np.array([b"one", "zwölf".encode()]))
    rows = load_rows(path)
    assert isinstance(rows, dict)
    assert rows["a"].tolist() == [0, 1, 2]
    assert rows["b"].tolist() == ["one", "zwölf"]


def npy(array: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)  # type: ignore[arg-type]
    return buffer.getvalue()


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "neither"),
        (b"1,2,3\n", "neither"),
        (b"\x80\x04K\x01.", "neither"),
        (npy(np.array([{}, []], dtype=object)), "Python objects"),
        (npy(np.arange(100))[:200], "cannot be read"),
        (npy(np.arange(100))[:9], "cannot be read"),
        (npy(5), "single value"),
        (npy(np.array([b"\xff"])), "cannot be sent"),
        (npz(), "no arrays"),
        (npz(readme=b"hello"), "'readme' is no array"),
        (npz(**{"x.npy": npy(np.array([{}], dtype=object))}), "Python objects"),
        (npz(**{"x.npy": npy(np.arange(9))})[:60], "cannot be read"),
        (npz(**{"x.npy": npy(np.arange(9))[:20]}), "cannot be read"),
    ],
)
def test_what_is_no_file_of_rows(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "rows.npz"
    path.write_bytes(data)
    with pytest.raises(BadInput, match=words) as refused:
        load_rows(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_cut_anywhere_is_refused_and_never_breaks_us(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    for whole in (npy(np.arange(9)), npz(**{"x.npy": npy(np.arange(9))})):
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(BadInput):
                load_rows(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.npy", tmp_path):
        with pytest.raises(BadInput, match="cannot be read"):
            load_rows(path)


def test_lists_are_arrays_and_ragged_ones_are_not() -> None:
    assert as_rows("x", [[1, 2], [3, 4]]).shape == (2, 2)
    with pytest.raises(BadInput, match="x cannot be sent"):
        as_rows("x", [[1, 2], [3]])


def test_any_name_and_type_can_be_written(tmp_path: Path) -> None:
    outputs = {
        "file": np.array(["", "zwölf"], dtype=object),
        "args": np.array([], dtype=object),
        "a/b": np.arange(4, dtype=np.uint8).reshape(2, 2),
        "../up": np.array([True, False]),
        "x.npy": np.array([1 + 2j], dtype=np.complex64),
        "half": np.ones(2, dtype=ml_dtypes.bfloat16),
    }
    path = tmp_path / "out.npz"
    save_rows(path, outputs)
    with np.load(path) as written:
        assert written.files == list(outputs)
        assert written["file"].dtype.kind == "U"
        assert written["file"].tolist() == ["", "zwölf"]
        assert written["args"].shape == (0,)
        for name in ("a/b", "../up", "x.npy"):
            np.testing.assert_array_equal(written[name], outputs[name], strict=True)
        np.testing.assert_array_equal(written["half"].view(ml_dtypes.bfloat16), outputs["half"])
    assert [found.name for found in tmp_path.iterdir()] == ["out.npz"]


def test_a_single_output_may_be_npy(tmp_path: Path) -> None:
    path = tmp_path / "out.npy"
    save_rows(path, {"y": np.arange(3)})
    assert np.load(path).tolist() == [0, 1, 2]
    with pytest.raises(BadInput, match=r"2 \(y, z\): use .npz"):
        save_rows(path, {"y": np.arange(3), "z": np.arange(3)})
    assert np.load(path).tolist() == [0, 1, 2]


def test_an_output_that_cannot_be_is_said_before(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    for name, words in (("out", "must end in"), ("no/out.npz", "no folder"), ("folder.npz", "is a folder")):
        with pytest.raises(BadInput, match=words):
            check_output(tmp_path / name)


def test_strings_that_were_saved_as_objects_are_read(tmp_path: Path) -> None:
    words = np.array([["a", "zw\u00f6lf"], ["", "b"]], dtype=object)
    np.save(tmp_path / "words.npy", words, allow_pickle=True)
    np.savez(tmp_path / "words.npz", allow_pickle=True, words=words, numbers=np.arange(2))
    np.testing.assert_array_equal(load_rows(tmp_path / "words.npy"), words)
    loaded = load_rows(tmp_path / "words.npz")
    assert isinstance(loaded, dict)
    np.testing.assert_array_equal(loaded["words"], words)


def test_a_file_can_not_make_us_run_anything(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="Python objects in it that are no strings, as posix"):
        load_rows(tmp_path / "evil.npy")
    assert not (tmp_path / "made").exists()
