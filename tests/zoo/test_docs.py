"""The table of docs/backbones.md is what the zoo says; a failure prints the table to paste."""

from pathlib import Path

from loffta.zoo.facts import FACTS
from loffta.zoo.names import FAMILIES

DOC = Path(__file__).parents[2] / "docs" / "backbones.md"
STATISTICS = {  # by mean; each mean comes with one std
    (0.485, 0.456, 0.406): "ImageNet",
    (0.5, 0.5, 0.5): "0.5",
    (0.48145466, 0.4578275, 0.40821073): "CLIP",
    (0.43, 0.411, 0.296): "satellite",
    (0.0, 0.0, 0.0): "none",
}


def span(values):
    """All that differ, in order, with commas."""
    return ", ".join(dict.fromkeys(map(str, values)))


def row(family):
    facts = [FACTS[short] for short in FAMILIES[family].members]
    grids = [" ".join(dict.fromkeys(str(side) for side, _ in item.taps)) for item in facts]
    widths = [" ".join(dict.fromkeys(str(width) for _, width in item.taps)) for item in facts]
    cells = [
        f"**{family}**: {FAMILIES[family].advice}",
        " ".join(f"`{short}`" for short in FAMILIES[family].members),
        span(item.px for item in facts),
        span(f"{item.kind} {len(item.taps)}" for item in facts),
        span(grids),
        span(widths),
        span(f"{item.n_class}+{item.n_registers}" for item in facts),
        span(STATISTICS[item.mean] for item in facts),
        span(item.licence for item in facts),
    ]
    return f"| {' | '.join(cells)} |"


def test_table():
    table = "\n".join(row(family) for family in FAMILIES)
    assert table in DOC.read_text(), table


def test_one_std_per_mean():
    assert len({(item.mean, item.std) for item in FACTS.values()}) == len({item.mean for item in FACTS.values()})


def test_models_without_class_token_are_all_named():
    """What a head takes for the class token is prefix token 0."""
    without = {
        name
        for name, family in FAMILIES.items()
        for short in family.members
        if FACTS[short].n_class == 0 and FACTS[short].kind == "blocks"
    }
    sentence = next(line for line in DOC.read_text().splitlines() if line.startswith("No class token: "))
    assert without == {"SigLIP", "SigLIP 2", "AIMv2", "ViTamin", "SAM", "NaFlex", "NaFlex SigLIP 2", *PE_GIGANTIC}
    assert all(family in sentence for family in without - set(PE_GIGANTIC))
    assert all(f"`{short}`" in sentence for short in ("pe-core-g", "pe-spatial-g", "pe-lang-g", "naflex-b"))


PE_GIGANTIC = ("PE core", "PE spatial", "PE lang")  # their largest alone
