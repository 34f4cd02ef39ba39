"""Recipes: what is read, and what is refused, by line and with the nearest name."""

import json

import jsonschema
import pytest
import yaml

import tfcompress as tfc
from tfcompress.recipes.parse import FOLDER
from tfcompress.recipes.stages import STAGES

WRONG = {
    "stages:\n  - prune\n  - quantise\n": "line 3: there is no stage 'quantise'.*mean 'quantize'",
    "stages:\n  - fit: {epochs: 1, learning_rat: 1}\n": "line 2: fit: there is no argument "
    "'learning_rat'. There are epochs, .*mean 'learning_rate'",
    "stages:\n  - fit:\n      batch_size: 8\n": "line 2: fit: the argument 'epochs' is missing",
    "stages:\n  - fit:\n      batch_size: 8\n      epochs: 0\n": "line 4: fit: epochs: .*: 0",
    "stages:\n  - prune_channels:\n      criterion: l3\n": "line 3: .*criterion: .*Received: 'l3'"
    ".*mean 'l1'|'l2'",
    "stages:\n  - fit:\n      epochs: 1\n      distill: {alpha: 3}\n": "line 4: fit: distill.alpha",
    "stages:\n  - fit:\n      epochs: 1\n      distill: {alfa: 1}\n": "distill.alfa'.*mean 'alpha'",
    "stages:\n  - fit: {epochs: 1, distill: {loss: RKDAngle, temperature: 2}}\n": "no temperature",
    "stages:\n  - quantize:\n      scheme: int9\n": "line 2: quantize: scheme .*mean 'int8'",
    "stages:\n  - export: {scheme: {weight_bit: 4}}\n": "field of scheme.*mean 'weight_bits'",
    "stages:\n  - prune: {sparsity: 0.5}\n  - export\n": "line 2: prune: it needs a 'fit'",
    "stages:\n  - prune\n  - factorize\n  - fit: {epochs: 1}\n": "line 3: factorize: .*before",
    "stages:\n  - prune\n  - prune\n  - fit: {epochs: 1}\n": "line 3: prune: .*from stage 1",
    "stages:\n  - export\n  - strip\n": "line 2: export: .*last stage",
    "stages: {prune: 1}\n": "whose 'stages' is a list",
    "stages: []\nstage: []\n": "line 2: unknown key 'stage'",
    "stages:\n  - [prune]\n": "line 2: a stage is one name",
    "stages: [\n": "no YAML",
    "stages:\n  - strip: {hard: true}\n": "It takes no arguments",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said_with_its_line(text):
    with pytest.raises(tfc.RecipeError, match=WRONG[text]):
        tfc.Recipe.from_yaml(text)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"smallest.*Did you mean 'qat-int8'"):
        tfc.Recipe.from_yaml("qat-int")
    file = tmp_path / "mine.yaml"
    file.write_text("stages:\n  - qantize\n")
    with pytest.raises(tfc.RecipeError, match="mine.yaml, line 2"):
        tfc.Recipe.from_yaml(file)


@pytest.mark.parametrize("name", tfc.Recipe.names())
def test_recipes_that_come_with_the_package_are_valid_for_editors_too(name):
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    jsonschema.validate(content, tfc.Recipe.schema())
    recipe = tfc.Recipe.from_yaml(name)
    assert tfc.Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert tfc.Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_the_schema_refuses_what_reading_refuses():
    schema = tfc.Recipe.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for stage in ({"quantise": {}}, {"fit": {}}, {"fit": {"epochs": 1, "speed": 2}}, "fit"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"stages": [stage]}, schema)
    described = [schema["$defs"][kind.__name__] for kind in STAGES.values()]
    assert all("description" in definition for definition in described)


def test_an_order_that_python_builds_is_checked_as_well():
    from tfcompress.recipes.stages import Prune

    with pytest.raises(tfc.RecipeError, match="stage 1, prune: it needs a 'fit'"):
        tfc.Recipe((Prune(),))
    assert tfc.Recipe((Prune(sparsity="keep"),)).export is None
