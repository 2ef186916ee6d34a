import dataclasses
import hashlib
import json

import pytest

from loffta.errors import DamageFound
from loffta.store.recipe import StoreInfo, differing_fields, recipe_hash, store_name
from loffta.tokens import TokenSpec

RECIPE = {"backbone": "vit/tiny", "input": {"px": 224, "mean": [0.5, 0.25]}, "pool": None, "dtype": "float16"}
CANONICAL = b'{"backbone":"vit/tiny","dtype":"float16","input":{"mean":[0.5,0.25],"px":224},"pool":null}'


def test_the_hash_is_that_of_the_canonical_text() -> None:
    assert hashlib.sha256(CANONICAL).hexdigest()[:8] == "4ae238e9"  # for ever: it names stores on disk
    assert recipe_hash(RECIPE) == "4ae238e9"
    assert recipe_hash(dict(reversed(RECIPE.items()))) == "4ae238e9"
    assert recipe_hash({**RECIPE, "pool": "2x2"}) != "4ae238e9"


def test_a_store_name_is_one_plain_path_component() -> None:
    assert store_name(RECIPE) == "vit-tiny-4ae238e9"
    assert store_name({"backbone": "../.."}).startswith("-..-")
    assert "/" not in store_name({"backbone": "../a b\nc"})


def test_nan_has_no_canonical_form() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        recipe_hash({"mean": float("nan")})


def test_differing_fields() -> None:
    new = {**RECIPE, "input": {"px": 384, "mean": [0.5, 0.25]}, "view": 1}
    assert differing_fields(RECIPE, new) == ["input.px: 224 -> 384", "view: (absent) -> 1"]
    assert differing_fields(RECIPE, RECIPE) == []


def test_absent_and_none_differ_for_the_hash_differs() -> None:
    short = {key: value for key, value in RECIPE.items() if key != "pool"}
    assert recipe_hash(short) != recipe_hash(RECIPE)
    assert differing_fields(short, RECIPE) == ["pool: (absent) -> None"]


def make_info(spec: str = "hub") -> StoreInfo:
    weights = {"spec": spec, "path": None, "size": 3, "mtime_ns": 4}
    return StoreInfo(RECIPE, {"name": "x"}, weights, (TokenSpec("blocks.0", 2, 4, 1, 5),), {"torch": "2"})


def test_store_info_survives_the_disk() -> None:
    info = make_info()
    assert StoreInfo.from_json(info.to_json()) == info
    document = json.loads(info.to_json())
    assert (document["zarr_format"], document["node_type"]) == (3, "group")
    assert document["attributes"]["loffta"]["recipe"] == RECIPE


def test_registers_without_class_token_survive_the_disk_and_nothing_else_changes() -> None:
    info = make_info()
    alone = dataclasses.replace(info, taps=(TokenSpec("blocks.0", 2, 4, 4, 5, registers_only=True), *info.taps))
    assert StoreInfo.from_json(alone.to_json()) == alone
    first, second = json.loads(alone.to_json())["attributes"]["loffta"]["taps"]
    plain = {"tap": "blocks.0", "height": 2, "width": 4, "dim": 5}  # as every store was before the key existed
    assert first == {**plain, "n_prefix": 4, "registers_only": True}
    assert second == {**plain, "n_prefix": 1}


def test_random_weights_are_never_shown_without_saying_so() -> None:
    assert make_info().label == "vit/tiny"
    assert make_info("random:7").label == "vit/tiny [random:7 weights]"


def test_a_newer_format_is_refused() -> None:
    document = json.loads(make_info().to_json())
    document["attributes"]["loffta"]["format"] = 2
    with pytest.raises(ValueError, match=r"format 2 is newer than this loffta knows \(1\)"):
        StoreInfo.from_json(json.dumps(document).encode())


def test_the_name_follows_the_recipe_alone() -> None:
    assert dataclasses.replace(make_info(), versions={}).name == make_info("random:1").name == "vit-tiny-4ae238e9"


@pytest.mark.parametrize("said", [{}, {"image_px": "224"}, {"image_px": None}])
def test_a_recipe_without_the_size_of_its_input(said) -> None:
    info = dataclasses.replace(make_info(), recipe={"backbone": "vit", "input": said})
    with pytest.raises(DamageFound, match=f"where:  stores/{info.name}/zarr.json"):
        _ = info.image_px
