"""What a run is exported as loads in a process of its own."""

import subprocess
import sys

import export
import numpy as np
from training_runs import EXAMPLES

# The SavedModel with TensorFlow alone: the project cannot be imported yet.
ELSEWHERE = """
import sys
ours = ["sparse_attention", "blocksparse", "sparse_transformer"]
sys.modules.update(dict.fromkeys(ours))
import numpy as np, tensorflow as tf
module = tf.saved_model.load(sys.argv[2] + "/saved_model")
prompt = tf.constant([[73, 32], [1, 2]])
np.save(sys.argv[2] + "/drawn.npy", module.sample(prompt, tf.constant(0.0), tf.constant(0)))

for name in ours:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
import keras
import sparse_transformer.model
model = keras.saving.load_model(sys.argv[2] + "/model.keras")
np.save(sys.argv[2] + "/logits.npy", model(np.arange(64, dtype=np.int32)[None]))
"""


def test_both_formats_load_elsewhere(unbroken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["export.py", str(unbroken), "--out", str(tmp_path), "--count", "2"])
    export.main()
    assert capsys.readouterr().out == f"wrote {tmp_path / 'model.keras'} {tmp_path / 'saved_model'}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.keras", "saved_model"]

    from sparse_transformer.evaluation import load_model
    from sparse_transformer.generation import sample

    model = load_model(unbroken)
    words = [sys.executable, "-c", ELSEWHERE, EXAMPLES, tmp_path]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    want = model(np.arange(64, dtype=np.int32)[None])
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), want, rtol=1e-6, atol=1e-6)
    drawn = np.load(tmp_path / "drawn.npy")
    assert drawn.shape == (2, 64) and (drawn[:, :2] == [[73, 32], [1, 2]]).all()
    np.testing.assert_array_equal(drawn[:1], sample(model, drawn[0, :2], 1, 64, 0.0, 0))
