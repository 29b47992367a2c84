"""paper.py: which trainings there are, that it goes on, and what its page says of their results."""

import json
import sys

import paper
import pytest
from sparse_transformer import config, table2


@pytest.mark.parametrize("scale, count", [("laptop", 6), ("card", 18)])
def test_every_training_is_a_configuration(scale, count):
    wanted = table2.trainings(scale)
    assert len(wanted) == len({training.folder(paper.Path("x")) for training in wanted}) == count
    for training in wanted:
        config.load(training.config).override([*training.overrides, f"seed={training.seed}"])


def test_patterns_of_a_scale_differ_in_the_pattern_alone():
    modes = {}
    for training in table2.trainings("laptop"):
        settings = config.load(training.config).override(list(training.overrides))
        modes.setdefault(training.kind, set()).add(settings.layer_modes)
        assert (settings.precision, settings.steps) == ("float32", 300)
    assert all(len(each) == 3 for each in modes.values())


def result(folder, bits, step):
    """What train.py and evaluate.py leave, as far as it is read."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.json").write_text(json.dumps({"bits": bits}))
    rows = [f"{i},5.0,1.0,{step if i > 2 else 60}" for i in range(10)]
    (folder / "metrics.csv").write_text("step,bits,gradient_norm,seconds\n" + "\n".join(rows) + "\n")


BITS = {"fixed": (1.0, 1.02, 1.04), "dense": (1.05, 1.05, 1.08), "strided": (1.2, 1.2, 1.2)}


def test_the_page_has_means_errors_ratios_and_the_order(tmp_path):
    wanted = table2.trainings("card")
    for training in wanted:
        if training.kind == "text":
            step = 0.4 if training.pattern == "dense" else 0.2
            result(training.folder(tmp_path), BITS[training.pattern][training.seed - 1], step)
    lines = table2.page(tmp_path, wanted).splitlines()
    assert "| dense | 1.0600 +- 0.0100 | 3 | 1.00 | 0.400 | 1.00 | 1.00 |" in lines
    assert "| fixed | 1.0200 +- 0.0115 | 3 | 0.99 | 0.200 | 2.00 | 2.38 |" in lines
    assert "Best first: fixed, dense, strided; the paper's too." in lines
    assert (
        "| strided | not trained yet | 0 | 2.80 | | | 1.42 |" in lines
        and "The order is not known yet." in lines
    )


def test_another_order_and_a_single_seed_are_said_plainly(tmp_path):
    wanted = table2.trainings("laptop")
    for training in wanted:
        result(training.folder(tmp_path), {"dense": 3.0, "fixed": 3.2, "strided": 3.1}[training.pattern], 0.1)
    page = table2.page(tmp_path, wanted)
    assert "| dense | 3.0000 | 1 |" in page and "+-" not in page
    assert "Best first: dense, strided, fixed; the paper's is strided, dense, fixed." in page


@pytest.fixture
def commanded(tmp_path, monkeypatch):
    """Calls paper.py with commands that leave a result instead of training; returns those it ran."""
    ran = []

    def run(words):
        words = [str(word) for word in words]
        ran.append(words[1:])
        if words[1].endswith("evaluate.py"):
            result(paper.Path(words[2]), 4.0, 0.1)
        return type("Result", (), {"returncode": int(len(ran) == 3)})  # the second training fails

    monkeypatch.setattr(paper.subprocess, "run", run)
    monkeypatch.setattr(
        sys, "argv", ["paper.py", "laptop", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    )
    return ran


def test_data_that_is_missing_is_fetched_by_name(commanded, tmp_path):
    with pytest.raises(
        SystemExit, match=r"there is no .*gcide\.dict\.dz; python examples/fetch\.py gcide --out"
    ):
        paper.main()
    assert not commanded


def test_it_stops_where_a_command_fails_and_goes_on_from_there(commanded, tmp_path):
    for path in table2.DATA.values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    with pytest.raises(
        SystemExit, match=r"train\.py ended with status 1; the same command goes on from there"
    ):
        paper.main()
    assert len(commanded) == 3 and commanded[2][1] == "enwik8_small"
    paper.main()
    assert len(commanded) == 3 + 10  # the first one's score is there
    assert "The order is not known yet" not in (tmp_path / "out" / "laptop" / "report.md").read_text()
