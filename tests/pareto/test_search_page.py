"""The page of a search: all of it in one file."""

import re

import keras
import numpy as np
import optuna
import pytest

import tfcompress as tfc


@pytest.fixture(scope="module")
def found():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(3)])
    data = np.random.default_rng(0).normal(size=(64, 8)), np.arange(64) % 3

    def space(trial):
        layers = trial.suggest_categorical("layers", ["*", "<none> & co"])
        bits = trial.suggest_categorical("bits", [4, 8])
        rounding = trial.suggest_categorical("rounding", ["nearest", "adaround"])
        scheme = {"weight_bits": bits, "rounding": rounding}
        stages = [] if layers == "*" else [{"prune": {"layers": layers}}, {"fit": {"epochs": 1}}]
        return tfc.Recipe.from_dict({"stages": [*stages, {"export": {"scheme": scheme}}]})

    choices = {"layers": ["*", "<none> & co"], "bits": [4, 8], "rounding": ["nearest", "adaround"]}
    return tfc.search(
        model,
        data,
        data,
        trials=8,
        objectives=("accuracy", "gzip_bytes"),
        space=space,
        sampler=optuna.samplers.GridSampler(choices, seed=0),
        verbose=False,
    )


def test_the_page_has_every_trial_and_needs_nothing_beside_it(found, tmp_path):
    found.to_html(tmp_path / "search.html")
    text = (tmp_path / "search.html").read_text()
    assert not re.search(r"(?:src|href)=\"(?!#)", text) and "<script" not in text
    assert "8 trials: " in text and "4 failed" in text
    assert "&lt;none&gt; &amp; co" in text and "<none>" not in text
    assert text.count("<details>") == 8
    assert "Importance of each choice for gzip_bytes" in text
    front = text[text.index("<h2>The front") : text.index("<h2>What each")]
    for trial in found.front():
        assert f"<td>{trial.number}</td>" in front and f"trial {trial.number}: " in front
        assert f"{trial.values['gzip_bytes']:,.0f}" in front


def test_importances_wait_for_enough_trials(found, tmp_path):
    few = tfc.Search(found.trials[:2], found.names, found.reference, found.study)
    few.to_html(tmp_path / "few.html")
    assert "Not known before 4 trials" in (tmp_path / "few.html").read_text()
