"""Label spaces and the tables between them."""

from __future__ import annotations

import pytest
import torch

from ssrseg.config import assignments, merge, resolve
from ssrseg.data import SPACES, SPECS, code_for, resolve_space
from ssrseg.data.label_mapping import lookup_table, map_ids, space_of
from ssrseg.data.label_spaces import MAPPINGS
from ssrseg.errors import UserError

GTA5 = SPECS["gta5"].ids or {}


def settings(**tree):
    return resolve({"source": {"root": "nowhere"}, **tree})


def named(table, spec, wanted):
    """What a table does, in names: raw value -> class of `wanted`."""
    return {raw: SPACES[wanted].names[i] for raw, i in enumerate(table.tolist()) if i != 255}


def test_spaces_are_complete_and_distinct():
    assert {name: space.num_classes for name, space in SPACES.items()} == {
        "cityscapes19": 19,
        "synthia16": 16,
        "synthia13": 13,
        "camvid11": 11,
        "camvid31": 31,
        "idd26": 26,
        "vistas65": 65,
        "binary": 2,
    }
    for space in SPACES.values():
        assert len(set(space.names)) == len(set(space.colors)) == space.num_classes


def test_an_unknown_class_names_the_nearest():
    assert SPACES["cityscapes19"].index("car") == 13
    with pytest.raises(UserError, match=r"Did you mean 'sidewalk'\?") as raised:
        SPACES["cityscapes19"].index("sidewalks")
    assert SPACES["cityscapes19"].index(str(raised.value).split("'")[3]) == 1
    with pytest.raises(UserError, match="road, sidewalk"):
        SPACES["cityscapes19"].index("zzz")


def test_values_that_are_not_listed_become_ignore():
    table = lookup_table({7: 0, 33: 18, 4: 255})
    labels = torch.tensor([[7, 33], [0, 255]], dtype=torch.uint8)
    mapped = map_ids(labels, table)
    assert mapped.tolist() == [[0, 18], [255, 255]]
    assert mapped.dtype == torch.uint8
    assert table[4] == 255


@pytest.mark.parametrize("id_map", [{65536: 0}, {-1: 0}, {0: 19}, {0: -1}])
def test_an_id_map_outside_the_classes_is_refused(id_map):
    with pytest.raises(UserError, match="id map"):
        lookup_table(id_map, 19)


def test_synthia_spaces_fold_by_name():
    for name, absent in (("synthia16", 3), ("synthia13", 6)):
        fold = MAPPINGS["cityscapes19", name]
        assert len(fold) == 19 - absent
        assert all(SPACES["cityscapes19"].names[old] == SPACES[name].names[new] for old, new in fold.items())


def test_gta5_values_reach_camvids_classes():
    run = settings(classes="camvid11", source={"root": "nowhere", "spec": "gta5"})
    found = named(code_for(run.source, run.classes).table, "gta5", "camvid11")
    assert found[7] == "Road"
    assert found[20] == found[19] == "SignSymbol"
    assert found[27] == found[28] == found[31] == "Car"
    assert 12 not in found  # walls are mostly Building in CamVid, some Fence


def test_own_classes_take_their_position_or_their_raw_values():
    space, ids = space_of(settings(classes=["road", "car"]).classes)
    assert (space.names, ids) == (("road", "car"), None)
    assert len(set(space.colors)) == 2
    own = [{"name": "road", "ids": [7, 6], "color": [1, 2, 3]}, {"name": "car", "ids": [26]}]
    space, ids = space_of(settings(classes=own).classes)
    assert ids == {7: 0, 6: 0, 26: 1}
    assert space.colors[0] == (1, 2, 3)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("cityscape19", "no label space"),
        (["a", "a"], "twice"),
        ([], "empty"),
        ([str(i) for i in range(256)], "at most 255"),
        ([{"name": "a", "ids": [3]}, {"name": "b", "ids": [3]}], "claimed by 'a' and 'b'"),
    ],
)
def test_classes_that_cannot_be_meant_are_refused(classes, message):
    with pytest.raises(UserError, match=message):
        space_of(settings(classes=classes).classes)


def test_a_folder_needs_classes_and_a_known_layout_does_not():
    with pytest.raises(UserError, match="Set `classes`"):
        resolve_space(None, settings().source)
    assert resolve_space(None, settings(source={"root": "nowhere", "spec": "gta5"}).source) == SPACES["cityscapes19"]


def test_the_data_sets_own_id_map_wins():
    run = settings(classes="cityscapes19", source={"root": "nowhere", "spec": "gta5", "id_map": {1: 13}})
    assert named(code_for(run.source, run.classes).table, "gta5", "cityscapes19") == {1: "car"}


def test_a_folder_holds_class_ids():
    run = settings(classes=["road", "car"])
    assert code_for(run.source, run.classes).table.tolist() == [0, 1] + [255] * 254


def test_an_id_map_beyond_the_classes_is_refused_before_training():
    run = settings(classes=["road", "car"], source={"root": "nowhere", "id_map": {0: 0, 1: 2}})
    with pytest.raises(UserError, match="1 -> 2, but there are 2 classes"):
        code_for(run.source, run.classes)


def test_spaces_without_a_known_fold_are_refused():
    run = settings(classes="synthia16", source={"root": "nowhere", "spec": "camvid"})
    with pytest.raises(UserError, match=r"classes of camvid11, the run those of synthia16.*`of`.*`id_map`"):
        code_for(run.source, run.classes)


def test_folds_hold_ids_of_both_spaces():
    for (old, new), fold in MAPPINGS.items():
        assert fold
        assert max(fold) < SPACES[old].num_classes
        assert set(fold.values()) <= set(range(SPACES[new].num_classes))


def test_vistas_becomes_cityscapes_as_others_compare_it():
    """The values of RobustNet, of DGInStyle and of the benchmark of foundation models, which are the same."""
    run = settings(classes="cityscapes19", source={"root": "nowhere", "spec": "mapillary-vistas"})
    groups = [[13, 24, 41], [2, 15], [17], [6], [3], [45, 47], [48], [50], [30], [29], [27], [19], [20, 21, 22]]
    groups += [[55], [61], [54], [58], [57], [52]]
    wanted = {raw: i for i, raws in enumerate(groups) for raw in raws}
    table = code_for(run.source, run.classes).table.tolist()
    assert {raw: i for raw, i in enumerate(table) if i != 255} == wanted


def own(of=True):
    """Two classes, made of those of Cityscapes and CamVid."""
    car = {"name": "vehicle", "of": ["car", "truck", "bus", "SUVPickupTruck"]} if of else "vehicle"
    return [{"name": "way", "of": ["road", "sidewalk", "Pavement"]}, car]


def test_source_and_val_of_different_data_sets_share_own_classes():
    run = settings(
        classes=own(), source={"root": "a", "spec": "synthia"}, val={"root": "b", "spec": "camvid", "split": "val"}
    )
    source, val = (code_for(data, run.classes, run.source).table.tolist() for data in (run.source, run.val))
    assert {raw: i for raw, i in enumerate(source) if i != 255} == {3: 0, 4: 0, 8: 1, 18: 1, 19: 1}
    assert {raw: i for raw, i in enumerate(val) if i != 255} == {3: 0, 4: 0, 8: 1}  # Road, Pavement; Car, whatever case


def test_the_rest_is_all_that_no_class_takes():
    classes = [{"name": "background", "of": ["*"]}, {"name": "car", "of": ["car"]}]
    run = settings(classes=classes, source={"root": "nowhere", "spec": "gta5"})
    table = code_for(run.source, run.classes).table
    assert table[26] == 1
    assert (table == 0).sum() == 18
    assert table[0] == 255  # unlabelled stays ignored


def test_a_class_that_says_nothing_takes_that_of_its_name():
    run = settings(classes=["car", {"name": "water", "of": []}, "Road"], source={"root": "nowhere", "spec": "gta5"})
    table = code_for(run.source, run.classes).table.tolist()
    assert {raw: i for raw, i in enumerate(table) if i != 255} == {26: 0, 7: 2}


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (own(of=False), "'vehicle' is none of them.*`of: "),
        ([{"name": "a", "of": ["raod"]}, "b"], "Did you mean 'road'"),
        ([{"name": "a", "of": ["road"]}, {"name": "b", "of": ["Road"]}], "taken by 'a' and by 'b'"),
        ([{"name": "a", "of": ["Fire Hydrant"]}, {"name": "b", "of": []}], "take none"),
    ],
)
def test_parts_that_cannot_be_meant_are_refused(classes, message):
    run = settings(classes=classes, source={"root": "nowhere", "spec": "gta5"})
    with pytest.raises(UserError, match=message):
        code_for(run.source, run.classes)


VEHICLE = ["classes=[vehicle, road]", "source.spec=gta5"]
NOTHING = ["classes=[{name: a, of: [Fire Hydrant]}, {name: b, of: []}]", "source.spec=gta5"]
ELSEWHERE = ["classes=synthia16", "source.spec=camvid"]


@pytest.mark.parametrize(
    ("wrong", "said", "word", "meaning"),
    [
        (["classes=cityscape19"], "use cityscapes19, ", "classes=cityscapes19", {i: i for i in range(19)}),
        (["classes=cityscape19"], "or list your classes", "classes=[road, car]", {0: 0, 1: 1}),
        (["classes=[]"], "list at least one class", "classes=[road, car]", {0: 0, 1: 1}),
        ([], "'classes=[road, car, other]'", "classes=[road, car, other]", {0: 0, 1: 1, 2: 2}),
        (VEHICLE, "`of: [...]`", "classes=[{name: vehicle, of: [car, bus]}, road]", {7: 1, 26: 0, 28: 0}),
        (VEHICLE, "`of: []`", "classes=[{name: vehicle, of: []}, road]", {7: 1}),
        (VEHICLE, "`of: ['*']`", "classes=[{name: vehicle, of: ['*']}, road]", {7: 1} | {i: 0 for i in GTA5 if i != 7}),
        (VEHICLE, "an `id_map` (raw value: class id)", "source.id_map={26: 0, 7: 1}", {7: 1, 26: 0}),
        (
            ["classes=[{name: a, of: [raod]}, road]", "source.spec=gta5"],
            "Did you mean 'road'",
            "classes=[{name: a, of: [road]}, {name: road, of: []}]",
            {7: 0},
        ),
        (NOTHING, "say what each is made `of`", "classes=[{name: a, of: [road]}, {name: b, of: [car]}]", {7: 0, 26: 1}),
        (NOTHING, "or give an `id_map`", "source.id_map={7: 0, 26: 1}", {7: 0, 26: 1}),
        (ELSEWHERE, "what each is made `of`", "classes=[{name: a, of: [Road]}, {name: b, of: [Car]}]", {3: 0, 8: 1}),
        (ELSEWHERE, "or give an `id_map` (raw value: class id)", "source.id_map={3: 0}", {3: 0}),
    ],
)
def test_what_a_message_about_classes_advises_gives_them(wrong, said, word, meaning):
    tree = merge({"source": {"root": "nowhere"}}, assignments(wrong))
    run = resolve(tree)
    with pytest.raises(UserError) as raised:
        code_for(run.source, run.classes)
    assert said in str(raised.value)
    run = resolve(merge(tree, assignments([word])))
    assert {raw: i for raw, i in enumerate(code_for(run.source, run.classes).table.tolist()) if i != 255} == meaning


def test_raw_values_and_parts_serve_a_folder_and_a_published_set():
    classes = [{"name": "way", "of": ["road"], "ids": [9]}, {"name": "rest", "of": ["*"], "ids": [4, 5]}]
    run = settings(classes=classes, source={"root": "a", "spec": "gta5"}, val={"root": "b"})
    assert code_for(run.source, run.classes).table[[7, 26, 9]].tolist() == [0, 1, 255]
    assert code_for(run.val, run.classes, run.source).table[[7, 9, 4, 5]].tolist() == [255, 0, 1, 1]


def test_masks_are_0_against_1_or_255():
    run = settings(classes="binary")
    assert code_for(run.source, run.classes).table[[0, 1, 2, 255]].tolist() == [0, 1, 255, 1]


def test_colours_are_known_for_published_sets_and_where_every_class_gives_its_own():
    def colors(classes, spec="folders"):
        run = settings(classes=classes, source={"root": "nowhere", "spec": spec})
        return code_for(run.source, run.classes).colors

    red, blue = {"name": "a", "color": [255, 0, 0]}, {"name": "b", "color": [0, 0, 255]}
    assert colors([red, blue]) == {(255, 0, 0): 0, (0, 0, 255): 1}
    assert colors([red, "b"]) is None
    assert colors([red, {**red, "name": "b"}]) is None
    assert colors("cityscapes19")[0, 0, 142] == 13
    assert colors(own(), "gta5")[0, 0, 70] == 1  # a truck is a vehicle
    assert colors(own(), "gta5")[70, 130, 180] == 255
    assert colors("camvid11", "camvid-full")[64, 128, 192] == 8  # SUVPickupTruck
    assert colors("cityscapes19", "urbansyn") is None


def test_folding_cityscapes_into_camvid_covers_every_class():
    fold = MAPPINGS["cityscapes19", "camvid11"]
    names = SPACES["cityscapes19"].names
    assert {names[i] for i in range(19)} - {names[i] for i in fold} == {"wall"}
    assert set(fold.values()) == set(range(11))
