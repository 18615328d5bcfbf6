"""The images hold what they should and nothing else, read from the Dockerfile and .dockerignore."""

import fnmatch
import re

import pytest
from containers import ROOT, Dockerfile

IMAGES = Dockerfile.read()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def copied(stages: set[str]) -> set[str]:
    """What the stages copy from the repository."""
    lines = [line for name in stages for line in IMAGES.all(name, "COPY") if not line.startswith("--from")]
    return {source for line in lines for source in line.split()[:-1]}


def test_a_build_without_a_target_makes_the_serving_image() -> None:
    assert list(IMAGES.parents)[-1] == "serve"
    assert {"serve", "gpu", "train", "load"} <= set(IMAGES.parents)


@pytest.mark.parametrize("target", ["serve", "gpu", "train", "load"])
def test_every_image_runs_as_an_account_without_rights(target: str) -> None:
    assert IMAGES.last(target, "USER") == "sequitur"
    assert any("useradd --uid 10001" in run for name in IMAGES.lineage(target) for run in IMAGES.all(name, "RUN"))


@pytest.mark.parametrize("target", ["serve", "gpu", "train", "load"])
def test_each_image_installs_its_own_extra_and_no_other(target: str) -> None:
    runs = " ".join(run for name in IMAGES.sources(target) for run in IMAGES.all(name, "RUN"))
    extras = {extra for found in re.findall(r"\[([\w,]+)\]\"", runs) for extra in found.split(",")}
    assert extras == ({target} - {"serve"}) | ({"trace"} if target in ("serve", "gpu") else set())
    assert "torch" not in runs
    # No compiler. OpenMP is the one library of the system that a wheel does without, and only training meets it.
    assert re.findall(r"apt-get install \S+ \S+ (.*?) &&", runs) == (["libgomp1"] if target == "train" else [])


def test_the_serving_image_holds_the_service_and_the_core_and_nothing_else() -> None:
    assert copied(IMAGES.sources("serve")) == {
        "pyproject.toml",
        "README.md",
        "requirements/dev.txt",
        "service",
        "retrieval",
    }


def test_the_load_generator_holds_no_part_of_what_it_loads() -> None:
    assert copied(IMAGES.sources("load")) == {"pyproject.toml", "README.md", "requirements/dev.txt", "loadtests"}


def test_every_source_that_is_copied_exists_and_reaches_the_build() -> None:
    sources = copied(set(IMAGES.parents))
    assert sources == {line[1:] for line in IGNORED if line.startswith("!")}
    assert [name for name in sources if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "path", ["deploy/keys.txt", "artifacts/demo", ".env", ".git", "tests", ".state/sessions.sqlite"]
)
def test_no_key_bundle_or_data_can_enter_an_image(path: str) -> None:
    assert IGNORED[0] == "*"
    assert not any(fnmatch.fnmatch(path, rule[1:] + "*") for rule in IGNORED if rule.startswith("!"))


@pytest.mark.parametrize("target", ["serve", "gpu"])
def test_the_serving_images_own_the_directory_of_the_durable_log(target: str) -> None:
    runs = [run for name in IMAGES.lineage(target) for run in IMAGES.all(name, "RUN")]
    assert "install --directory --owner sequitur /log" in runs


@pytest.mark.parametrize("target", ["serve", "gpu"])
def test_the_serving_images_check_liveness_and_listen_where_they_say(target: str) -> None:
    assert "'/livez'" in IMAGES.healthcheck(target)[-1]
    command = IMAGES.command(target)
    assert command[:3] == ["python", "-m", "service"]
    assert command[command.index("--port") + 1] == IMAGES.last(target, "EXPOSE") == "8000"
