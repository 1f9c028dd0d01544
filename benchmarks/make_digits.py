"""Makes idlewheel/examples/data/digits.onnx and digits.npz; needs scikit-learn and skl2onnx, which users do not.

Run `python -m benchmarks.make_digits`. The network learns from every second row alone.
"""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

TARGET = Path(__file__).parent.parent / "idlewheel" / "examples" / "data"


def main() -> None:
    digits = load_digits()
    rows, labels = digits.data.astype(np.float32), digits.target
    network = MLPClassifier(hidden_layer_sizes=(128,), max_iter=500, random_state=0).fit(rows[::2], labels[::2])
    # Without zipmap False the probabilities would be a sequence of maps, which are no rows.
    model = to_onnx(network, rows[:1], options={"zipmap": False}, target_opset=17)
    (TARGET / "digits.onnx").write_bytes(model.SerializeToString())
    np.savez_compressed(TARGET / "digits.npz", pixels=digits.data.astype(np.uint8), labels=labels.astype(np.uint8))
    for file in ("digits.onnx", "digits.npz"):
        print(file, (TARGET / file).stat().st_size, "bytes")
    print(f"right on rows it has not seen: {network.score(rows[1::2], labels[1::2]):.1%}")


if __name__ == "__main__":
    main()
