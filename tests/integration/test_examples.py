"""The built-in examples: rows as their models expect them, the same by the same seed, and answers that are right."""

import io
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from magika import Magika
from magika.types import Seekable, Status

from fleet_wire.tensors import Array
from idlewheel.examples import EXAMPLES, ExampleRows, count_agreement
from idlewheel.examples.magika import ACCEPTED_LABELS, file_features


def run(model: bytes, rows: ExampleRows) -> dict[str, Array]:
    session = onnxruntime.InferenceSession(model)
    return dict(zip([spec.name for spec in session.get_outputs()], session.run(None, rows.inputs), strict=True))


@pytest.fixture(scope="module")
def files() -> list[Path]:
    rows = EXAMPLES["magika"].rows(150, 3)
    roots = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "purelib", "platlib")]
    return [next(root / title for root in roots if (root / title).exists()) for title in rows.titles]


def test_rows_of_files_are_those_of_the_magika_package(files: list[Path]) -> None:
    for path in files:
        theirs = Magika._extract_features_from_seekable(
            Seekable(io.BytesIO(path.read_bytes())), 1024, 0, 1024, 256, 4096, use_inputs_at_offsets=False
        )
        ours = file_features(path)
        assert ours is not None
        assert ours.tolist() == theirs.beg + theirs.end, path.name


def test_labels_of_files_are_those_of_the_magika_package(files: list[Path]) -> None:
    example = EXAMPLES["magika"]
    features = np.stack([row for path in files if (row := file_features(path)) is not None])
    answers = example.answers(run(example.model(), ExampleRows({"bytes": features}, [], [])))
    results = Magika().identify_paths(files)
    assert [result.status for result in results] == [Status.OK] * len(files)
    assert answers == [str(result.prediction.dl.label) for result in results]


def test_most_files_are_what_their_extension_says() -> None:
    example = EXAMPLES["magika"]
    rows = example.rows(300, 7)
    agreeing, judged = count_agreement(rows, example.answers(run(example.model(), rows)))
    assert judged >= 150
    assert agreeing >= 0.9 * judged


def test_accepted_labels_are_labels_of_the_model() -> None:
    known = {str(label) for label in Magika().get_model_content_types()}
    assert frozenset().union(*ACCEPTED_LABELS.values()) <= known


def test_a_tiny_file_is_no_row(tmp_path: Path) -> None:
    file = tmp_path / "tiny"
    file.write_bytes(b"  \n 1234567")
    assert file_features(file) is None


def test_digits_are_read_right() -> None:
    example = EXAMPLES["digits"]
    rows = example.rows(1797, 0)
    agreeing, judged = count_agreement(rows, example.answers(run(example.model(), rows)))
    assert judged == 1797
    assert agreeing >= 0.95 * judged


def test_a_digit_is_drawn() -> None:
    rows = EXAMPLES["digits"].rows(1, 7)
    assert (rows.accepted, EXAMPLES["digits"].picture(rows, 0)) == (
        [frozenset({"2"})],
        ["  ███▄  ", "  ▀ ██  ", "  ▄█▀   ", "  ▀▀█▄▄ "],
    )


@pytest.mark.parametrize(("name", "limit"), [("digits", 10), ("digits", 3000), ("magika", 40)])
def test_the_seed_alone_decides_the_rows(name: str, limit: int) -> None:
    first, again, other = (EXAMPLES[name].rows(limit, seed) for seed in (1, 1, 2))
    assert len(first) == limit
    assert first.titles == again.titles != other.titles
    for key, rows in first.inputs.items():
        assert len(rows) == limit
        assert np.array_equal(rows, again.inputs[key])
