"""The page that leads from symptom to pattern: it misses no pattern, its links lead somewhere, its lines of code run."""

import re

import pytest
import yaml
from written import PAGES, ROOT, text

from vipatterns import catalogue


def targets(page: str) -> set[str]:
    """What the page links to within the site."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text(page), flags=re.S)
    return {link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link}


def anchors(page: str) -> set[str]:
    """The ids that MkDocs gives to the headings of a page."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"```.*?```", "", text(page), flags=re.S))
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def in_navigation() -> set[str]:
    def leaves(entry):
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values() if isinstance(entry, dict) else entry:
                yield from leaves(value)

    settings = re.search(r"(?m)^nav:\n(?:[ ].*\n)+", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return set(leaves(yaml.safe_load(settings[0])["nav"]))


def test_every_pattern_is_reached():
    reached = {link.partition("#")[0] for link in targets("symptoms")}
    assert {p.name for p in catalogue.patterns() if f"patterns/{p.name}.md" not in reached} == set()


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    pages = in_navigation() | {f"patterns/{p.name}.md" for p in catalogue.patterns()}
    for link in targets(name):
        path, _, anchor = link.partition("#")
        assert not path or path in pages or (ROOT / "tutorials" / path).is_file(), link
        to = path.removesuffix(".md") or name
        if anchor and to in PAGES and to != "api":
            assert anchor in anchors(to), link


def test_a_symptom_is_led_somewhere():
    """Every section holds a link or names what of the library to use."""
    for section in re.split(r"(?m)^##+ ", text("symptoms"))[2:]:
        heading, _, body = section.partition("\n")
        assert not body.strip() or re.search(r"\]\(|vip\.", body), heading


@pytest.fixture(scope="module")
def names(rng_key, tmp_path_factory):
    """What the page says its lines of code stand on, small."""
    import jax
    import numpy as np
    import optax
    import pandas as pd
    from numpyro.infer import Trace_ELBO

    import vipatterns as vip
    from vipatterns.patterns import eight_schools, vae_linear

    data = eight_schools.data()
    cmp = vip.compare(
        rng_key,
        eight_schools.model,
        data,
        methods=[vip.MeanField(num_steps=2_000), vip.NUTS(num_warmup=1_000, num_samples=3_000)],
        progress=False,
    )
    x = np.random.default_rng(0).normal(size=(400, 4)) * [2.0, 1.0, 0.5, 0.5]
    trained = vip.train(
        rng_key, vae_linear.model, vae_linear.guide, {"x": x, "num_columns": 4, "num_latents": 2},
        num_epochs=5, optimizer=optax.adam(1e-2), progress=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pd.DataFrame({"pixels": list(x)}).to_parquet(path)
    fit = cmp.fits["MeanField"]
    params = eight_schools_parameters(eight_schools.guide, data)
    return {
        **{"vip": vip, "jax": jax, "key": rng_key, "model": eight_schools.model, "guide": eight_schools.guide, "data": data},
        **{"cmp": cmp, "fit": fit, "losses": fit.losses[0], "trained": trained, "path": path, "objective": Trace_ELBO(), "params": params},
    }


def eight_schools_parameters(guide, data):
    from numpyro import handlers

    trace = handlers.trace(handlers.seed(guide, 0)).get_trace(**data)
    return {name: site["value"] for name, site in trace.items() if site["type"] == "param"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_lines_of_code_run(names, capsys):
    blocks = re.findall(r"```python\n(.*?)```", text("symptoms"), re.S)
    assert len(blocks) > 20
    for block in blocks:
        exec(compile(block, block, "exec"), dict(names))
