"""Every configuration builds, has the paper's number of parameters and starts at 8 bits."""

from dataclasses import asdict, replace
from itertools import chain

import keras
import numpy as np
import pytest
from sparse_transformer import config
from sparse_transformer.model import SparseTransformer, bits

PARAMETERS = {  # millions: the paper's 59, 95, 152, 300, 25 and 3 to the digits that its architecture gives
    "cifar10": 59.20,
    "enwik8": 94.95,
    "imagenet64": 151.65,
    "imagenet64_300m": 302.96,
    "music_65536": 151.84,
    "music_262144": 25.67,
    "music_1048576": 3.11,
}
OWN = {  # millions: what their docstrings say of models that are not the paper's
    "fashion": 11.22,
    "fashion_pocket": 3.84,
    "gcide": 21.55,
    "gcide_pocket": 3.86,
}


@pytest.mark.parametrize("name", [*PARAMETERS, *OWN])
def test_parameter_count(name):
    with keras.StatelessScope():  # shapes without values
        model = SparseTransformer(config.load(name))
    assert round(model.count_params() / 1e6, 2) == {**PARAMETERS, **OWN}[name]


def shallow(name):
    """One layer of each mode, and no longer than 32 rows: bits at the start depend on neither."""
    full = config.load(name)
    grid = full.grid if len(full.grid) == 3 else (min(full.grid[0], 32), full.grid[1])
    return replace(full, grid=grid, layers=len(set(full.layer_modes)))


@pytest.mark.parametrize(
    "name", ["cifar10_small", "enwik8", "enwik8_small", "fashion", "gcide", "music_65536", "music_small"]
)
def test_training_starts_at_8_bits(name):
    model = SparseTransformer(shallow(name))
    tokens = np.random.default_rng(0).integers(0, 256, (1, model.config.n_ctx)).astype(np.int32)
    assert bits(model(tokens), tokens).numpy().mean() == 8.0


VARIANTS = {
    "cifar10": ["cifar10_dense", "cifar10_fixed"],
    "enwik8": ["enwik8_dense", "enwik8_strided"],
    "fashion": ["fashion_dense", "fashion_fixed"],
    "gcide": ["gcide_dense", "gcide_strided"],
}


def test_the_rows_of_table_2_differ_in_the_pattern_alone():
    for base, variants in VARIANTS.items():
        for variant in map(config.load, variants):
            names = ["name", "layer_modes", "num_verts", "vertsize"]
            if base in config.IMAGES:  # a block is the least summary, and their rows are short
                names.append("blocksize")
            pattern = {name: getattr(variant, name) for name in names}
            assert replace(config.load(base), **pattern) == variant


def test_every_configuration_names_itself_and_is_tested():
    assert all(config.load(name).name == name for name in config.names())
    full = {name for name in config.names() if not name.endswith("_small")}
    assert full == {*PARAMETERS, *OWN, *chain(*VARIANTS.values())}


def test_only_columns_that_are_no_whole_blocks_are_padded():
    padded = {name for name in config.names() if config.load(name).padded != config.load(name).n_ctx}
    assert padded == {"fashion", "fashion_pocket"}
    assert config.load("fashion").padded == 32 * 28  # 28 rows in blocks of 16
    SparseTransformer(
        replace(config.load("fashion_pocket"), local_attn_ctx=27)
    ).check_patterns()  # any length


def test_override():
    changed = config.load("enwik8").override(["layers=2", "layer_modes=('all',)", "data=audio"])
    assert (changed.layers, changed.layer_modes, changed.data) == (2, ("all",), "audio")


@pytest.mark.parametrize("assignment", ["depth=2", "layers"])
def test_a_wrong_override_names_the_keys(assignment):
    with pytest.raises(
        ValueError, match=rf"--override {assignment}: wanted key=value with key one of .*layers"
    ):
        config.load("enwik8").override([assignment])


def test_an_unknown_configuration_lists_the_known():
    with pytest.raises(ValueError, match=r"no configuration 'enwik9'; choose one of cifar10, .*enwik8"):
        config.load("enwik9")


def test_runs_from_before_heads_could_share_keys():
    fields = asdict(config.load("enwik8_small"))
    del fields["kv_heads"]
    assert config.Config.from_fields(fields) == config.load("enwik8_small")
    assert config.load("enwik8_small").override(["kv_heads=1"]).kv_heads == 1


def test_recompute_as_older_runs_have_it():
    fields = asdict(config.load("enwik8_small"))
    for old, new in ((True, "whole"), (False, "none")):
        assert config.Config.from_fields({**fields, "recompute": old}).recompute == new
    for damaged in ([], 1, "some"):
        with pytest.raises(ValueError, match="recompute"):
            config.Config.from_fields({**fields, "recompute": damaged})
