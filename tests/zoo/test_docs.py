"""The lists of docs/backbones.md are what the zoo says; a failure prints what to paste."""

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


def once(values):
    """All that differ, in order."""
    return " ".join(dict.fromkeys(map(str, values)))


def row(short):
    facts = FACTS[short]
    cells = [
        f"`{short}`",
        str(facts.px),
        f"{facts.kind} {len(facts.taps)}",
        once(side for side, _ in facts.taps),
        once(width for _, width in facts.taps),
        f"{facts.n_class}+{facts.n_registers}",
        STATISTICS[facts.mean],
        facts.licence,
    ]
    return f"| {' | '.join(cells)} |"


def test_every_backbone_has_its_row():
    table = "\n".join(row(short) for family in FAMILIES.values() for short in family.members)
    assert table in DOC.read_text(), table


def test_every_family_has_its_advice():
    advice = " ".join(f"* **{name}**: {family.advice}" for name, family in FAMILIES.items())
    assert advice in " ".join(DOC.read_text().split()), advice


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
    sentence = next(text for text in DOC.read_text().split("\n\n") if text.startswith("No class token: "))
    assert without == {"SigLIP", "SigLIP 2", "AIMv2", "ViTamin", "SAM", "NaFlex", "NaFlex SigLIP 2", *PE_GIGANTIC}
    assert all(family in sentence for family in without - set(PE_GIGANTIC))
    assert all(f"`{short}`" in sentence for short in ("pe-core-g", "pe-spatial-g", "pe-lang-g", "naflex-b"))


PE_GIGANTIC = ("PE core", "PE spatial", "PE lang")  # their largest alone
