"""A search: what is on the front, what is given up, and what goes on after a stop."""

import itertools
import pathlib

import keras
import numpy as np
import optuna
import pytest

import tfcompress as tfc
from tfcompress.pareto.attempt import Attempt
from tfcompress.pareto.words import described
from tfcompress.recipes.reproduce import reproduce


def small_space(trial):
    """Four recipes: with two numbers of epochs, and with two sparsities."""
    sparsity = trial.suggest_categorical("sparsity", [0.5, 0.95])
    epochs = trial.suggest_categorical("epochs", [1, 4])
    return tfc.Recipe.from_dict(
        {
            "stages": [
                {"prune": {"sparsity": sparsity, "until": 0.5}},
                "quantize",
                {"fit": {"epochs": epochs, "batch_size": 64, "learning_rate": 3e-3}},
                "export",
            ]
        }
    )


def searched(model, data, trials, **options):
    grid = optuna.samplers.GridSampler({"sparsity": [0.5, 0.95], "epochs": [1, 4]}, seed=0)
    options = {"space": small_space, "sampler": grid, "verbose": False, **options}
    options = {"objectives": ("accuracy", "gzip_bytes"), **options}
    return tfc.search(model, data, data, trials=trials, **options)


def test_the_front_is_what_no_other_file_beats(model, data, tmp_path):
    found = searched(model, data, 4)
    assert [trial.state for trial in found.trials] == ["complete"] * 4
    for trial in found.trials:  # the figures are those of the files
        file = tfc.TFLiteModel(trial.file)
        assert trial.values["accuracy"] == pytest.approx(file.evaluate(*data))
        assert trial.values["gzip_bytes"] == tfc.inspect_tflite(trial.file).gzip_bytes
    values = [(t.values["accuracy"], -t.values["gzip_bytes"]) for t in found.trials]
    wanted = {
        n
        for n, one in enumerate(values)
        if not any(all(np.subtract(other, one) >= 0) and other != one for other in values)
    }
    assert {trial.number for trial in found.front()} == wanted
    smallest = min(found.trials, key=lambda t: t.values["gzip_bytes"])
    assert found.best(max_drop=1.0) == smallest
    closest = max(t.values["accuracy"] for t in found.trials)
    drop = found.reference["accuracy"] - closest
    assert found.best(max_drop=drop + 1e-9).values["accuracy"] == closest
    with pytest.raises(ValueError, match="No trial loses at most"):
        found.best(max_drop=drop - 0.001)
    with pytest.raises(ValueError, match="minimize must be one of 'gzip_bytes'"):
        found.best(minimize="bytes")

    written = found.write_front(tmp_path / "front")
    assert len(written) == len(wanted)
    again = tfc.Recipe.from_yaml(written[0].replace(".tflite", ".yaml"))
    assert again in [trial.recipe for trial in found.front()]
    assert set(found.importances()) == {"sparsity", "epochs"}
    assert "on the front" in str(found) and "95% zeros, QAT int8" in str(found)
    found.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5000


def test_a_file_of_a_search_can_be_made_again(model, data):
    best = searched(model, data, 2).trials[0]
    content = pathlib.Path(best.file).read_bytes()
    assert reproduce(content, model, data, verbose=False).same_bytes


def test_a_study_goes_on_and_repeats_nothing(model, data, tmp_path, monkeypatch):
    journal = tmp_path / "journal.log"
    first = searched(model, data, 2, storage=journal)
    tried = []
    original = Attempt._measured
    monkeypatch.setattr(
        Attempt,
        "_measured",
        lambda self, recipe, key, *more: tried.append(key) or original(self, recipe, key, *more),
    )
    again = searched(model, data, 4, storage=journal)
    assert len(tried) == 2 and len(again.trials) == 4
    assert again.trials[:2] == first.trials
    same = searched(model, data, 4, storage=journal)
    assert len(tried) == 2 and same.trials == again.trials
    with pytest.raises(ValueError, match="of other data"):
        searched(model, (data[0] + 1, data[1]), 4, storage=journal)
    with pytest.raises(ValueError, match="of other objectives"):
        searched(model, data, 4, storage=journal, objectives=("accuracy", "bytes"))


def test_a_space_with_few_recipes_is_tried_once(model, data):
    """The sampler proposes the same again: that counts for nothing, and ends at last."""

    def space(trial):
        scheme = trial.suggest_categorical("scheme", ["int8", "float16"])
        return tfc.Recipe.from_dict({"stages": [{"export": {"scheme": scheme}}]})

    options = {"objectives": ("accuracy", "bytes"), "space": space, "verbose": False}
    found = tfc.search(model, data, data, trials=10, **options)
    assert sorted(trial.recipe.export.scheme for trial in found.trials) == ["float16", "int8"]
    assert 31 <= len(found.study.get_trials()) < 60


def test_trials_that_others_dominate_are_given_up(model, data):
    """With nothing to learn from, the second of two equal recipes is worse half of the way."""
    calls = itertools.count()

    def space(trial):
        rate = [3e-2, 1e-9][next(calls) % 2]
        trial.suggest_categorical("rate", [0, 1])
        stages = [
            "quantize",
            {"fit": {"epochs": 4, "batch_size": 16, "learning_rate": rate}},
            "export",
        ]
        return tfc.Recipe.from_dict({"stages": stages})

    worse, generator = keras.models.clone_model(model), np.random.default_rng(1)
    worse.set_weights([generator.normal(size=w.shape) for w in worse.weights])
    worse.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    found = tfc.search(
        worse, data, data, trials=2, objectives=("accuracy", "bytes"), space=space, verbose=False
    )
    assert [trial.state for trial in found.trials] == ["complete", "pruned"]
    assert "trial 0 was better at rung 0" in found.trials[1].note
    assert found.trials[1].values["accuracy"] <= found.trials[0].values["accuracy"]
    assert found.front() == [found.trials[0]]
    with pytest.raises(ValueError, match="has no file"):
        found.trials[1].export("m.tflite")


def test_what_fails_is_noted_and_the_search_goes_on(model, data):
    def space(trial):
        layers = trial.suggest_categorical("layers", ["no_such", "dense*"])
        stages = [{"quantize": {"layers": layers}}, {"fit": {"epochs": 1}}, "export"]
        return tfc.Recipe.from_dict({"stages": stages})

    sampler = optuna.samplers.GridSampler({"layers": ["no_such", "dense*"]}, seed=0)
    options = {"objectives": ("accuracy", "bytes"), "space": space, "sampler": sampler}
    found = tfc.search(model, data, data, trials=2, verbose=False, **options)
    assert sorted(trial.state for trial in found.trials) == ["complete", "failed"]
    (failed,) = [trial for trial in found.trials if trial.state == "failed"]
    assert "no_such" in failed.note


def measured_on(target, model, data, **options):
    """Returns the only trial of a search for a target, which is PTQ in int8, and its float."""
    found = tfc.search(
        model, data, data, trials=1, space="ptq", target=target, verbose=False, **options
    )
    (trial,) = found.trials
    return trial, found.reference


def test_costs_of_devices_are_those_of_their_tools(model, data):
    pytest.importorskip("tflite_micro")
    pytest.importorskip("ethosu")
    names = ("accuracy", "arena_bytes", "macs")
    trial, reference = measured_on("tflite-micro", model, data, objectives=names)
    assert trial.values["arena_bytes"] == tfc.run_micro(trial.file).arena_bytes
    assert trial.values["macs"] == reference["macs"] == 8 * 16 + 16 * 3
    assert "arena_bytes" not in reference  # that of another runtime
    names = ("accuracy", "cycles", "flash_bytes", "arena_bytes")
    trial, _ = measured_on("ethos-u55-64", model, data, objectives=names)
    compiled = tfc.compile_ethos_u(trial.file, "ethos-u55-64")
    assert trial.values["cycles"] == compiled.cycles > 0
    assert trial.values["flash_bytes"] == compiled.flash_bytes
    assert trial.values["arena_bytes"] == compiled.sram_bytes
    assert trial.recipe.export.target == "ethos-u55-64"
    for target, wrong in (("ethos-u55-64", "latency_ms"), (None, "cycles"), ("gpu", "arena_bytes")):
        with pytest.raises(ValueError, match=f"'{wrong}' is not known for target={target!r}"):
            measured_on(target, model, data, objectives=("accuracy", wrong))


def test_a_target_has_only_its_schemes():
    from tfcompress.pareto.space import space_of

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    for target, missing in ((None, set()), ("ethos-u55-128", {"w4a8", "float16"})):
        chosen, _ = space_of("ptq", model, target)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(30):
            chosen(study.ask())
        tried = {trial.params["scheme"] for trial in study.get_trials()}
        assert "int8" in tried and not tried & missing
        assert missing or tried == {"int8", "w4a8", "float16", "dynamic_int8"}


def test_a_student_is_trained_and_measured(data):
    from tfcompress.pareto.space import space_of

    generator = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Add()([x, keras.layers.Conv2D(8, 3, padding="same")(x)])
    pooled = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    images = generator.normal(size=(64, 8, 8, 1)), np.arange(64) % 3
    chosen, beginnings = space_of("student", model)
    fixed = {**beginnings[-1], "epochs": 4}
    recipe = chosen(optuna.trial.FixedTrial(fixed))
    found = tfc.search(
        model,
        images,
        images,
        trials=1,
        objectives=("accuracy", "macs"),
        space=lambda trial: recipe,
        verbose=False,
    )
    (trial,) = found.trials
    assert described(trial.recipe).startswith("50% as wide, separable")
    # Half of eight channels: 3x3 on the image, then depthwise and 1x1.
    assert trial.values["macs"] == 64 * (9 * 4 + 9 * 4 + 4 * 4) + 4 * 3


@pytest.mark.parametrize("space", ["ptq", "fast", "thorough", "student"])
def test_presets_make_recipes_that_can_be_run(space, model):
    from tfcompress.pareto.space import space_of

    chosen, beginnings = space_of(space, model)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for choices in beginnings:
        study.enqueue_trial(choices)
    recipes = [chosen(study.ask()) for _ in range(60)]
    assert len(set(map(str, recipes))) > 5
    for recipe in recipes:
        assert tfc.Recipe.from_dict(recipe.as_dict()) == recipe
        assert recipe.export is not None and described(recipe)


def test_the_best_lose_no_more_than_allowed(model, data):
    found = searched(model, data, 4, max_drop=0.01)
    for trial, frozen in zip(found.trials, found.study.get_trials(), strict=True):
        drop = found.reference["accuracy"] - trial.values["accuracy"]
        assert frozen.constraints["max_drop"] == pytest.approx(drop - 0.01)


def test_wrong_arguments(model, data):
    with pytest.raises(ValueError, match="objectives must be one of"):
        searched(model, data, 1, objectives=("accuracy", "byte"))
    with pytest.raises(ValueError, match="objectives are 'accuracy' and one or more"):
        searched(model, data, 1, objectives=("bytes",))
    with pytest.raises(ValueError, match="space must be one of .*'fast'"):
        searched(model, data, 1, space="fas")
    with pytest.raises(ValueError, match="validation holds no labels"):
        tfc.search(model, data, data[0], trials=1)
