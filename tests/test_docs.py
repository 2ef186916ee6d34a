"""What the documents promise: short lines, links that lead somewhere, and an architecture that is the code's."""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from loffta_cli.main import COMMANDS

from loffta.config import TrainConfig
from loffta.heads import HEADS, HeadEntry
from loffta.heads.recipe import Recipe
from loffta.machine.process import StopFlag
from loffta.tasks import TASKS
from loffta.tasks.bootstrap import image_weights
from loffta.tasks.figures import FIGURES
from loffta.training.train import train
from tests.caches import toy_cache

REPO = Path(__file__).parent.parent
DOCS = REPO / "docs"
PAGES = [REPO / "README.md", *sorted(DOCS.glob("*.md"))]


def part(heading: str) -> str:
    """A section of the page on the architecture."""
    return (DOCS / "architecture.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def rows(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def words(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_is_wider_than_120_columns(page):
    """An address cannot be wrapped, and does not count."""
    lines = [re.sub(r"\]\([^)]*\)|https?://\S+", "]", line) for line in page.read_text().splitlines()]
    assert [line for line in lines if len(line) > 120] == []


def anchors(page: Path) -> set[str]:
    """What GitHub makes of headings: letters, digits, hyphens and underscores stay, spaces become hyphens."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if "//" in target:
            continue
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_wings_are_those_of_the_contract():
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(
        contract["layers"] for contract in contracts if contract["type"] == "layers" and "containers" in contract
    )
    told = [set(words(cells[0])) for cells in rows(part("The wings"))]
    assert told == [set(re.findall(r"\w+", layer)) for layer in layers]


def test_other_rules_are_those_of_the_contracts():
    contracts = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rules = [line for line in re.findall(r"^\* .*(?:\n  .*)*", part("The wings"), re.MULTILINE) if "(`" in line]
    told = [set(words(rule)[0].split()) for rule in rules]
    sources = [contract["source_modules"] for contract in contracts if contract["type"] == "forbidden"]
    assert told == [{name.removeprefix("loffta.") for name in names} for names in sources if names != ["loffta"]]


def test_registries_are_where_the_page_says():
    for cells in rows(part("Where a new thing goes")):
        if len(found := words(cells[2])) == 2:
            name, file = found
            tree = ast.parse((REPO / file).read_text())
            assert name in {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)} | {
                target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
            }, cells


def test_reading_order_tells_lengths_that_hold():
    found = rows(part("Reading order"))
    assert len(found) > 15
    for file, lines, _ in found:
        there = len((REPO / words(file)[0]).read_text().splitlines())
        assert abs(there - int(lines)) <= max(0.2 * there, 10), f"{file}: {there} lines"


def test_glossary_is_in_the_order_of_the_alphabet():
    terms = [cells[0] for cells in rows((DOCS / "glossary.md").read_text())]
    assert terms == sorted(set(terms))
    needed = "tap unit store kind view control member recipe cache head run grid prefix row key split window shard"
    assert set(needed.split()) | {"done file", "quarantine", "protocol"} <= set(terms)


def load(name: str):
    """A template as a module."""
    spec = importlib.util.spec_from_file_location(f"template_{name}", DOCS / "templates" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where pydantic looks names up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def registered(monkeypatch):
    """Head and task of the templates, under the name `template`, as if they were added to the registries."""
    head, task = load("head"), load("task")
    monkeypatch.setitem(HEADS, "template", HeadEntry(head.TemplateHead, head.TemplateRecipe))
    monkeypatch.setitem(TASKS, "template", task.TASK)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")


@pytest.mark.usefixtures("registered")
def test_templates_train_on_a_cache(tmp_path):
    cache = toy_cache(tmp_path / "cache")
    recipe = {"epochs": 20, "batch_size": 16, "lr": 1e-2, "hidden": 8}
    config = TrainConfig(cache=cache.paths.root, head="template", task="template", device="cpu", recipe=recipe)
    results = train(config, tmp_path / "run", StopFlag())
    assert results["task"] == "template"
    assert set(results["metrics"]) == {"top1"}
    assert results["metrics"]["top1"]["mean"] == 1.0
    assert results["images_of_class"] == [6, 7, 7]  # of the 20 test images: labels 1, 2, 0, 1, 2, ...


def test_template_head_is_its_formula():
    """Means side by side, a hidden layer with GELU, logits: by hand, image by image."""
    module = load("head")
    specs = [toy_spec("a", 2, 3), toy_spec("b", 1, 4)]
    head = module.TemplateHead(specs, 5, rng=torch.Generator().manual_seed(0), hidden=6)
    features = [torch.randn(3, len(s.taps), s.dim, generator=torch.Generator().manual_seed(1)) for s in specs]
    found = head(head.prepare(features)).detach()
    for i in range(3):
        x = torch.cat([features[0][i, 0], features[0][i, 1], features[1][i, 0]])
        hidden = head.project.weight @ x + head.project.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        torch.testing.assert_close(found[i], (head.classify.weight @ hidden + head.classify.bias).detach())
    assert issubclass(module.TemplateRecipe, Recipe)


def toy_spec(name, n_taps, dim):
    from loffta.tokens import FeatureSpec

    return FeatureSpec(name, tuple(f"t.{i}" for i in range(n_taps)), "mean", (dim,), 32)


def test_template_task_gives_loss_probabilities_and_metrics():
    task = load("task").TASK
    logits = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 1.0, 3.0]]])
    labels = torch.tensor([0, 1])
    shares = logits[0].double().exp() / logits[0].double().exp().sum(dim=1, keepdim=True)
    smooth = torch.full((2, 3), 0.1 / 3, dtype=torch.float64)
    smooth[[0, 1], labels] += 0.9
    torch.testing.assert_close(task.loss(logits[0], labels).double(), -(smooth * shares.log()).sum(dim=1))
    torch.testing.assert_close(task.activation(logits[0]).double(), shares)
    assert task.metrics(logits[0].numpy(), labels.numpy(), "abc") == {"top1": 0.5}
    assert set(task.metrics(logits[0].numpy(), labels.numpy(), "abc")) <= set(FIGURES)
    weights = next(image_weights(2, 4))
    expected = [draw[0] / 2 for draw in weights]  # the first image alone is right
    np.testing.assert_allclose(task.resampled(logits.numpy(), labels.numpy(), "abc", [weights])["top1"], expected)
    np.testing.assert_allclose(task.recount(labels.numpy(), np.array([[0, 2]]), None)(weights)[:, 0], expected)


def command_lines() -> list[tuple[str, list[str]]]:
    """Every `loffta` line in the code blocks of all pages; a backslash joins lines, `#` begins a comment."""
    found = []
    for page in PAGES:
        for body in re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for line in re.sub(r"\\\n\s*", " ", body).splitlines():
                said = re.sub(r"\s#.*", "", line).removeprefix("$ ").removeprefix("srun ")
                if said.startswith("loffta ") and "..." not in said:
                    found.append((page.name, said.split()[1:]))
    return found


def test_commands_in_the_pages_exist_with_their_options():
    """Each command line as click parses it, without being run."""
    assert len(command_lines()) > 40
    for page, (name, *rest) in command_lines():
        assert name in COMMANDS, (page, name)
        module, _, attribute = COMMANDS[name][0].partition(":")
        command = getattr(importlib.import_module(module, "loffta_cli"), attribute)
        known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
        assert {word for word in rest if word.startswith("--")} <= known, (page, name, rest)


def test_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    """On a toy cache in place of the demo's, whose classes a linear map tells apart."""
    toy_cache(tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    block = re.search(r"^```python\n(.*?)^```", (REPO / "README.md").read_text(), re.MULTILINE | re.DOTALL)[1]
    assert len([line for line in block.splitlines() if line]) == 5
    exec(block.replace("tf_efficientnet_lite0", "good"), {})
    assert capsys.readouterr().out == "1.0\n"


def test_busy_workers_are_counted_right():
    """Worker i of N owns every N-th unit, and all wait for the one with the most."""
    text = (DOCS / "cluster.md").read_text().split("\n## Unit size and number of workers\n")[1].split("\n## ")[0]
    (head, *_), found = re.findall(r"^\| images.*", text, re.MULTILINE), rows(text)
    workers = [int(n) for n in re.findall(r"of (\d+)(?: workers)? ", head.split("units of 256")[1])]
    assert workers == [16, 64, 500]
    for images, units, *busy in found:
        n_units = -(-int(images.replace(",", "")) // 256)
        owned = [[len(range(i, n_units, n)) for i in range(n)] for n in workers]
        assert n_units == int(units.replace(",", ""))
        assert busy == [f"{100 * n_units / (n * max(own)):.0f} %" for n, own in zip(workers, owned, strict=True)]
