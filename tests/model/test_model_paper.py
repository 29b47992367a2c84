"""paper.py: which trainings there are, that it goes on, the whole of it at a tiny scale, and what its page says."""

import html.parser
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import paper
import pytest
from PIL import Image
from sparse_transformer import config
from sparse_transformer.paper import html as as_html
from sparse_transformer.paper import page, quality, scales, speed
from sparse_transformer.paper.results import Mean, seconds
from sparse_transformer.paper.scales import SCALES, Training
from sparse_transformer.paper.steps import Places, absent, plan
from training_runs import EXAMPLES


@pytest.mark.parametrize("scale, count", [("laptop", 9), ("card", 21), ("full", 21)])
def test_every_training_is_a_configuration_and_every_step_leaves_a_file_of_its_own(scale, count, tmp_path):
    places = Places(SCALES[scale], tmp_path, tmp_path)
    trainings = places.scale.trainings
    assert len(trainings) == len({training.folder(tmp_path) for training in trainings}) == count
    for training in trainings:
        settings = training.settings()
        assert config.load(training.config).override(settings.changes()) == settings
    steps = plan(places, [])
    assert len(steps) == len({step.makes for step in steps})
    for words in (step.words for step in steps):
        assert (EXAMPLES / words[0]).is_file()
    runs = {str(training.folder(tmp_path).relative_to(tmp_path)) for training in trainings}
    named = (*places.scale.shown.values(), *places.scale.looked_at)
    assert {name for name in named if "/" in name} <= runs


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", ["text", "images"])
def test_patterns_of_a_scale_differ_in_the_pattern_alone(scale, kind):
    pattern = {"name", "seed", "layer_modes", "blocksize", "num_verts", "vertsize"}
    rows = {each.pattern: each.settings() for each in SCALES[scale].of_kind(kind)}
    assert set(rows) == set(scales.PATTERNS)
    assert len({each.layer_modes for each in rows.values()}) == 3
    for each in rows.values():
        differing = {key for key in vars(each) if getattr(each, key) != getattr(rows["dense"], key)}
        assert differing <= pattern


# The whole of it, of a few steps, on data that the test makes.

TEXT = ("enwik8_small", "grid=(4, 16)", "local_attn_ctx=16", "num_verts=2")
SOUND = ("music_small", "grid=(16, 16)", "local_attn_ctx=16", "blocksize=8")
TINY = replace(
    scales.LAPTOP,
    name="tiny",
    data={"text": "words.txt", "images": "pictures", "sound": None},
    trainings=(
        Training("text", "fixed", 1, TEXT[0], TEXT[1:]),
        Training("text", "fixed", 2, TEXT[0], TEXT[1:]),
        Training(
            "images", "strided", 1, "cifar10_small", ("grid=(8, 8, 3)", "local_attn_ctx=24", "blocksize=8")
        ),
        Training("sound", "256", 1, SOUND[0], SOUND[1:]),
    ),
    windows="8",
    scored=None,
    contexts=(0, 32),
    context_tokens=512,
    context_shift=16,
    shown={"text": "text/fixed_1", "images": "images/strided_1", "sound": "sound/256_1"},
    looked_at=("images/strided_1",),
    drawn={"text": 40, "sound": 64},
)
CHANGES = [
    "steps=4",
    "layers=1",
    "width=16",
    "heads=2",
    "batch=2",
    "warmup=2",
    "average=0.9",
    "recompute=none",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    rng = np.random.default_rng(0)
    words = rng.choice([b"sparse ", b"dense ", b"fixed "], 3000)
    (folder / "words.txt").write_bytes(b"".join(words))
    (folder / "pictures").mkdir()
    for number in range(24):
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number:02}.png")
    return Places(TINY, folder, folder / "out")


def here(words):
    """Runs a command of examples/ in this process, which has TensorFlow already."""
    module, earlier = importlib.import_module(Path(words[0]).stem), sys.argv
    sys.argv = list(words)
    try:
        module.main()
    finally:
        sys.argv = earlier


@pytest.fixture(scope="module")
def made(tiny):
    """The page of the tiny scale, all steps done."""
    steps = plan(tiny, CHANGES)
    patch = pytest.MonkeyPatch()
    patch.setattr(paper, "run", here)
    paper.make(tiny, steps)
    patch.setattr(paper, "run", lambda words: pytest.fail(f"{words} runs again"))
    paper.make(tiny, steps)
    patch.undo()
    return tiny


def test_the_whole_of_it_is_made_and_is_not_made_again(made):
    text = (made.out / "report.md").read_text()
    assert "Not complete" not in text and "not drawn" not in text
    assert (
        "| images | strided | 192 | 0." in text
        and "| images | dense |  | not trained yet |  | 1.00 |" in text
    )
    assert "The order is not known yet." in text
    lines = text.splitlines()
    (table3,) = (
        lines[at + 2 : at + 4] for at, line in enumerate(lines) if line.startswith("| minimum context")
    )
    assert table3[0].startswith("| 0 | ") and table3[1].startswith("| 32 | ") and table3[1].count(" +- ") == 2
    assert "Not trained at this scale: 65,536, 262,144, 1,048,576." in text
    assert "| xz -9e | " in text and "| PNG, a file each | " in text
    assert (
        f"$ python examples/train.py enwik8_small --data {made.data / 'words.txt'} --test 8 "
        f"--out {made.out}/text/fixed_1 --override 'grid=(4, 16)'" in text
    )
    assert f"Python {sys.version.split()[0]}; kernels: " in text


def test_the_numbers_of_the_page_are_in_a_file(made):
    found = json.loads((made.out / "report.json").read_text())
    run = found["runs"]["text/fixed_1"]
    assert len(found["runs"]) == 4 and len(found["contexts"]) == 2 and found["scale"] == "tiny"
    assert run["test"]["windows"] == 8 and "steps=4" in run["changes"] and run["device"]["parameters"] > 0
    text = (made.out / "report.md").read_text()
    assert f"| {run['test']['bits']:.4f} |" in text
    assert f"| {found['runs']['images/strided_1']['seconds']:.4f} |" in text


def test_training_scores_as_evaluate_does(made, tmp_path):
    folder, again = made.out / "images" / "strided_1", tmp_path / "again.json"
    here(
        ("evaluate.py", str(folder), "--split", "test", "--limit", "8", "--batch", "3", "--json", str(again))
    )
    (trained,), (evaluated,) = (json.loads(path.read_text()) for path in (folder / "score.json", again))
    assert trained == pytest.approx(evaluated, rel=1e-5) and trained["windows"] == 2


class Loads(html.parser.HTMLParser):
    """Every address that a browser would load, and every kind of element."""

    def __init__(self):
        super().__init__()
        self.addresses, self.elements = [], set()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "data", "srcset")]


def test_the_html_holds_everything_and_loads_nothing(made):
    loads = Loads()
    loads.feed((made.out / "report.html").read_text())
    pictures = {path.name for path in made.out.glob("*.png")}
    assert len(pictures) == 8 and len(loads.addresses) == len(pictures) + 1
    assert all(
        each.startswith(("data:image/png;base64,", "data:audio/wav;base64,")) for each in loads.addresses
    )
    assert {"table", "audio", "img"} <= loads.elements and not {"script", "link", "iframe"} & loads.elements


def test_what_is_given_up_to_html_is_text(tmp_path):
    shown = as_html.page("# A & B\n\n~~~~\n<script>alert(1)</script>\n~~~~\n", tmp_path)
    assert "<script" not in shown and "<title>A &amp; B</title>" in shown


def test_the_page_of_nothing_says_so(tmp_path):
    places = Places(SCALES["card"], tmp_path, tmp_path)
    text = page.text(places, plan(places, []))
    assert "**Not complete: 0 of " in text and "Empty: nothing has been trained yet." in text
    assert text.count("Empty: ") == 6 and "| strided | not trained yet | 0 of 3 | 2.80 |" in text
    assert "| fixed: `text`, 8,207 steps | 1.0294 | 1 |  |" in text


def test_notes_beside_the_page_are_part_of_it(tmp_path):
    places = Places(SCALES["card"], tmp_path, tmp_path)
    assert "## Notes" not in page.text(places, plan(places, []))
    (tmp_path / "notes.md").write_text("Seeds 1 are of *another* day.\n", encoding="utf-8")
    assert "\n## Notes\n\nSeeds 1 are of *another* day.\n\n## All runs\n" in page.text(places, [])


def test_scores_without_a_row_of_the_scale_are_named(tmp_path):
    places = Places(SCALES["card"], tmp_path, tmp_path)
    rows = [{"min_context": n, "bits": 1.0} for n in SCALES["card"].contexts if n != 256]
    (tmp_path / "context_1.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"context_1\.json has no minimum context of 256; delete it"):
        page.text(places, [])


def test_rows_of_one_model_have_the_errors_that_evaluate_found(tmp_path):
    places = Places(SCALES["card"], tmp_path, tmp_path)
    rows = [
        {"min_context": n, "bits": 1.0 - n / 1e4, "less": 0.01, "less_error": 0.002}
        for n in scales.CARD.contexts
    ]
    (tmp_path / "context_1.json").write_text(json.dumps(rows))
    text = page.text(places, [])
    assert "| 0 | 1.0000 |  |" in text and "| 256 | 0.9744 | 0.0100 +- 0.0020 |" in text
    assert "standard error over stretches of text" in text


# What the tables say of results.


def result(folder, bits, step=0.1):
    """What train.py leaves, as far as tables read it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.json").write_text(json.dumps([{"min_context": 0, "bits": bits}]))
    rows = [f"{i},5.0,1.0,{step if i > 2 else 60}" for i in range(10)]
    (folder / "metrics.csv").write_text("step,bits,gradient_norm,seconds\n" + "\n".join(rows) + "\n")
    here = EXAMPLES / "pretrained" / "text" / "config.json"
    (folder / "config.json").write_text(here.read_text())


BITS = {"fixed": (1.0, 1.02, 1.04), "dense": (1.05, 1.05, 1.08), "strided": (1.2, 1.2, 1.2)}


def test_tables_have_means_errors_ratios_and_the_order(tmp_path):
    places = Places(SCALES["card"], tmp_path, tmp_path)
    for training in places.scale.of_kind("text"):
        step = 0.4 if training.pattern == "dense" else 0.2
        result(training.folder(tmp_path), BITS[training.pattern][training.seed - 1], step)
    lines = quality.section(places)
    assert "| dense | 1.0600 +- 0.0100 | 3 of 3 | 1.00 |" in lines
    assert "| fixed | 1.0200 +- 0.0115 | 3 of 3 | 0.99 |" in lines
    assert (
        "Best first: fixed, dense, strided; the paper's too. Gaps: dense less fixed 0.0400 +- 0.0153 (paper 0.01); "
        "strided less dense 0.1400 +- 0.0100 (paper 0.13)."
    ) in lines
    assert "| text | fixed | 2,048 | 0.2000 | 2.00 | 2.38 |" in speed.section(places)
    result(tmp_path / "text" / "fixed_2", 1.02, step=0.9)  # beside others
    (tmp_path / "text" / "fixed_1" / "alone.json").write_text('{"first": 4, "last": 8}')
    lines = speed.section(places)  # dense shared the device: none of its steps says how long it takes alone
    assert "| text | fixed | 2,048 | 0.2000 |  | 2.38 |" in lines
    assert "| text | dense |  | not timed alone |  | 1.00 |" in lines
    (tmp_path / "text" / "dense_2" / "alone.json").write_text('{"first": 4, "last": 8}')
    assert "| text | fixed | 2,048 | 0.2000 | 2.00 | 2.38 |" in speed.section(places)


def test_the_papers_own_configurations_have_their_recorded_steps(tmp_path):
    places = Places(SCALES["card"], tmp_path, tmp_path)
    text = page.text(places, plan(places, []))
    for name in ("enwik8_dense", "enwik8", "enwik8_strided", "cifar10_dense", "cifar10"):
        assert f"| {name} | " in text
    assert all(f"| {n:,} | NVIDIA H" in text for n in (65_536, 262_144, 1_048_576))
    assert "| 64x64x3 image | 154 GB / 154.6 GB / does not fit | 2.4 GB / 2.4 GB / 11.5 GB |" in text


@pytest.mark.parametrize("damage", ["", '[{"bits": 1.0', "[[1, 2]]", "[]", "7"])
def test_a_damaged_result_is_named(damage, tmp_path):
    places = Places(SCALES["card"], tmp_path, tmp_path)
    names = ["text/dense_1/score.json", "text/dense_1/device.json", "context_1.json", "yardsticks_text.json"]
    for name in map(Path, names):
        result(tmp_path / "text" / "dense_1", 1.0)
        (tmp_path / name).write_text(damage)
        with pytest.raises(
            ValueError, match=rf"{name} is damaged .*delete it, and the same command goes on$"
        ):
            page.text(places, plan(places, []))
        (tmp_path / name).unlink()


def test_another_order_and_a_single_seed_are_said_plainly(tmp_path):
    places = Places(SCALES["laptop"], tmp_path, tmp_path)
    for training in places.scale.of_kind("images"):
        result(training.folder(tmp_path), {"dense": 3.0, "fixed": 3.2, "strided": 3.1}[training.pattern])
    (said,) = (line for line in quality.section(places) if line.startswith("Best first"))
    assert "Best first: dense, strided, fixed; the paper's is strided, dense, fixed." in said
    assert (
        "Gaps, of one seed, so that their errors are not known: dense less strided -0.1000 (paper 0.02)"
        in said
    )


def test_a_mean_of_one_has_no_error():
    assert str(Mean((1.5,))) == "1.5000" and str(Mean((1.0, 2.0))) == "1.5000 +- 0.5000"


def test_steps_that_shared_a_device_are_not_timed(tmp_path):
    result(tmp_path, 1.0)
    rows = [f"{i},5.0,1.0,{0.1 if 40 <= i <= 60 else 0.9}" for i in range(100)]
    (tmp_path / "metrics.csv").write_text("step,bits,gradient_norm,seconds\n" + "\n".join(rows) + "\n")
    assert seconds(tmp_path) == 0.9
    (tmp_path / "alone.json").write_text('{"first": 41, "last": 59}')
    assert seconds(tmp_path) == 0.1


def test_the_readme_shows_the_numbers_of_the_committed_page():
    root = EXAMPLES.parent
    readme, report = ((root / name).read_text() for name in ("README.md", "docs/paper/report.md"))
    found = json.loads((root / "docs" / "paper" / "report.json").read_text())
    for kind in quality.PAPER:
        row = f"| {kind} |"
        for pattern in scales.PATTERNS:
            scores = [r["test"]["bits"] for name, r in found["runs"].items() if f"{kind}/{pattern}_" in name]
            mean = Mean(tuple(scores))
            error = f" ± {mean.error:.3f}" if mean.error else ""
            row += f" {mean.value:.3f}{error} ({quality.PAPER[kind][pattern]:.2f}) |"
            assert f"| {pattern} | {mean} | {len(scores)} of 3 |" in report
        assert row in readme
    scores = [{row["min_context"]: row["bits"] for row in rows} for rows in found["contexts"]]
    means = [Mean(tuple(each[n] for each in scores)) for n in SCALES["card"].contexts]
    assert "| `fixed`, text | " + " | ".join(f"{mean.value:.4f}" for mean in means) + " |" in readme


# That it goes on.


@pytest.fixture
def commanded(tmp_path, monkeypatch):
    """Calls paper.py with commands that leave a result instead of working; returns those it ran."""
    ran = []

    def run(words):
        ran.append(words)
        if len(ran) == 3:
            raise ValueError("train.py ended with status 1; the same command goes on from there")
        for step in plan(Places(SCALES["laptop"], tmp_path, tmp_path / "out" / "laptop"), []):
            if words == step.words:
                step.makes.parent.mkdir(parents=True, exist_ok=True)
                if step.makes.name == "score.json":
                    result(step.makes.parent, 4.0)
                elif step.makes.stem.startswith("context"):
                    scores = [{"min_context": n, "bits": 4.0} for n in scales.LAPTOP.contexts]
                    step.makes.write_text(json.dumps(scores))
                else:
                    step.makes.write_text('[{"name": "xz", "bits": 1.8, "note": ""}]')

    monkeypatch.setattr(paper, "run", run)
    words = ["paper.py", "laptop", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", words)
    return ran


def test_data_that_is_missing_is_fetched_by_name(commanded, tmp_path):
    with pytest.raises(SystemExit) as ended:
        paper.main()
    assert f"there is no {tmp_path}/gcide/gcide.dict.dz; python examples/fetch.py gcide --out" in str(
        ended.value
    )
    assert "python examples/fetch.py fashion --out" in str(ended.value) and not commanded


def test_the_full_scale_says_what_it_wants(tmp_path):
    said = absent(Places(SCALES["full"], tmp_path, tmp_path))
    assert [line.partition(";")[0] for line in said] == [
        f"there is no {tmp_path / name}" for name in ("enwik8", "cifar10", "music")
    ]
    assert "mattmahoney.net/dc/enwik8.zip" in said[0]


def test_it_stops_where_a_command_fails_and_goes_on_from_there(commanded, tmp_path):
    for path in (tmp_path / "gcide/gcide.dict.dz", tmp_path / "fashion"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    report = tmp_path / "out" / "laptop" / "report.md"
    with pytest.raises(SystemExit, match=r"train\.py ended with status 1; the same command goes on"):
        paper.main()
    assert len(commanded) == 3 and commanded[2][0] == "train.py"
    assert "**Not complete: 2 of 25 steps are done" in report.read_text()
    paper.main()
    assert commanded[3] == commanded[2]  # the first trainings' scores are there
    assert "Not complete" not in report.read_text()


SLOW = """
import signal, sys, time
def note(number, _):
    print("got", number, flush=True)
    signals.append(number)
signals = []
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
print("ready", flush=True)
while not signals:
    time.sleep(0.01)
time.sleep(0.3)
print("checkpoint written after", len(signals), flush=True)
sys.exit(128 + signals[0])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_training_once_and_is_waited_for(number, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW)
    program = f"import paper, pathlib; paper.HERE = pathlib.Path({str(tmp_path)!r}); paper.run(('slow.py',))"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=EXAMPLES,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    os.killpg(process.pid, number)  # as a terminal does with Ctrl-C
    output, _ = process.communicate(timeout=60)
    assert output == f"got {int(number)}\ncheckpoint written after 1\n" and process.returncode == 128 + number
