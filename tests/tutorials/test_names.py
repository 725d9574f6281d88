"""Names of the code that the written pages use exist, and what the home says to type does."""

import dataclasses
import re
import shlex

import pytest
from written import PAGES, text

import vipatterns as vip
from vipatterns import catalogue, cli

COMMANDS = ("list", "show", "copy", "fit", "compare")


def code(name: str) -> str:
    """What stands in blocks and in backticks."""
    return "\n".join(block or span for block, span in re.findall(r"```\w+\n(.*?)```|`([^`\n]+)`", text(name), re.S))


def attributes(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)} | set(dir(record))


@pytest.mark.parametrize("name", PAGES)
def test_names_exist(name):
    records = {"fit": vip.Fit, "cmp": vip.Comparison, "trained": vip.Trained, "certificate": vip.Certificate, "c": vip.Certificate}
    for owner, attribute in re.findall(r"(?<![\w.])(fit|cmp|trained|c)\.([a-z]\w*)", code(name)):
        if (owner, attribute) != ("fit", "nc"):
            assert attribute in attributes(records[owner]), f"{owner}.{attribute}"
    for attribute in re.findall(r"certificate\.([a-z]\w*)", code(name)):
        assert attribute in attributes(vip.Certificate), f"certificate.{attribute}"
    for path in re.findall(r"(?<![\w.])vip\.(\w+(?:\.\w+)?)", code(name)):
        owner = vip
        for part in path.split("."):
            owner = getattr(owner, part)


def test_names_of_the_notation_are_fields():
    """Names that stand alone in the last column are those of a record, a method's settings, or a pattern."""
    records = (vip.Fit, vip.Certificate, vip.MeanField, vip.NUTS, vip.DADVI)
    known = set().union(*map(attributes, records)) | {"mean_error", "sd_ratio", "wasserstein"}
    for name in ("elbo", "elbo_mcse", "losses", "khat", "khat_threshold", "ess", "rhat", "mcse", "log_evidence", "log_evidence_mcse"):
        assert f"`{name}`" in text("notation")
        assert name in known
    for name in (
        "num_samples",
        "num_restarts",
        "num_chains",
        "num_steps",
        "num_warmup",
        "num_particles",
        "batch_size",
        "proposal_certificate",
    ):
        assert f"`{name}`" in text("notation")
        assert name in known


@pytest.mark.parametrize("name", PAGES)
def test_commands_name_what_exists(name):
    patterns = {p.name for p in catalogue.patterns()}
    for line in re.findall(r"(?m)^uv run vipatterns (.+)$", text(name)):
        command, *rest = shlex.split(line, comments=True)
        assert command in COMMANDS
        assert command in {c.name or c.callback.__name__ for c in cli.app.registered_commands}
        assert not rest or rest[0].removesuffix(".py") in patterns | {"my_model"}


@pytest.mark.parametrize("name", PAGES)
def test_no_decimal_figure_is_typed_into_prose(name):
    """These pages are not computed, so that nothing would keep a figure true: code, equations and quotations aside."""
    prose = re.sub(r"(?m)^>.*$", "", text(name))
    prose = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", "", prose, flags=re.S)
    assert re.findall(r"\d+\.\d+", prose) == []
