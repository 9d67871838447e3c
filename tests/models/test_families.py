"""Every member of every family: JSON to module and back, meta device, state_dict, copies, gradients, precision, and what is refused.

The samples are in `family_samples.py`. Whatever is registered without one fails `test_every_member_has_a_sample`, which says what to add.
"""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from family_samples import KINDS, SAMPLES, Kind, Sample, make_file, noise, randomise
from pydantic import BaseModel

from stable_audio_tools.cli.schema import schema_of
from stable_audio_tools.configs.errors import ConfigError, path_text
from stable_audio_tools.configs.parse import validate
from stable_audio_tools.models.codebook_patterns import PatternName

ALL = [
    pytest.param((kind, name), id=f"{kind} {name}", marks=[pytest.mark.slow] if sample.slow else [])
    for kind, samples in SAMPLES.items()
    for name, sample in samples.items()
]
FILE = re.compile(r"<(\w+)>")


class Subject:
    """A sample with its files in place."""

    def __init__(self, kind: Kind, sample: Sample, files: dict[str, str]):
        self.kind, self.sample = kind, sample
        text = json.dumps(sample.config)
        self.config: dict[str, Any] = json.loads(FILE.sub(lambda found: files[found[1]], text))

    def parse(self, config: dict[str, Any] | None = None) -> Any:
        config = self.config if config is None else config
        return validate(self.kind.annotation, config, "sample", json.dumps(config))

    def build(self) -> Any:
        """The module with weights that make every branch count."""
        torch.manual_seed(0)
        module = self.kind.build(self.parse())
        randomise(module)
        return module

    def run(self, module: Any, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return self.kind.run(module, self.parse(), dtype)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths by the name in angle brackets, made when first asked for."""

    class Files(dict):
        def __missing__(self, name):
            if name in ("t5", "clap"):
                pytest.importorskip("transformers")
            self[name] = str(make_file(name, tmp_path_factory.mktemp(name)))
            return self[name]

    return Files()


@pytest.fixture(params=ALL)
def subject(request, files):
    kind, name = request.param
    return Subject(KINDS[kind], SAMPLES[kind][name], files)


@pytest.mark.parametrize("kind", KINDS)
def test_every_member_has_a_sample(kind):
    sampled = {name.partition(":")[0] for name in SAMPLES[kind]}
    missing = set(KINDS[kind].names) - sampled
    assert not missing, f'add SAMPLES["{kind}"] entries for {sorted(missing)} to tests/models/family_samples.py'
    assert sampled == set(KINDS[kind].names), "a sample of something that is not registered"


def test_every_codebook_pattern_has_a_sample():
    sampled = {sample.config["model"]["lm"]["codebook_pattern"] for name, sample in SAMPLES["model"].items() if name.startswith("lm")}
    assert sampled == set(PatternName.__args__)


def test_the_schema_for_editors_names_every_member():
    text = json.dumps(schema_of("model"))
    for kind in KINDS.values():
        assert [name for name in kind.names if f'"const": "{name}"' not in text] == []


@pytest.mark.slow
def test_a_config_survives_validation_and_is_only_read(subject):
    before = copy.deepcopy(subject.config)
    parsed = subject.parse()
    dumped = parsed.model_dump(mode="json", exclude_unset=True, by_alias=True)
    assert subject.parse(json.loads(json.dumps(dumped))) == parsed
    first, second = subject.kind.build(parsed), subject.kind.build(parsed)
    assert layout(first) == layout(second)
    assert subject.config == before


@pytest.mark.slow
def test_it_builds_without_memory(subject):
    with torch.device("meta"):
        module = subject.kind.build(subject.parse())
    assert layout(module) == layout(subject.build())
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.slow
def test_saved_weights_and_copies_compute_the_same(subject):
    module = subject.build().eval()
    torch.manual_seed(9)
    loaded = subject.kind.build(subject.parse()).eval()
    loaded.load_state_dict(module.state_dict())
    want = subject.run(module)
    for other in (loaded, copy.deepcopy(module)):
        assert_same(subject.run(other), want)


def test_shapes_are_as_documented_and_gradients_reach_every_trained_weight(subject):
    module = subject.build().train()
    outputs = subject.run(module)
    assert {name: tuple(value.shape) for name, value in outputs.items() if not name.startswith("loss ")} == expected_shapes(subject)
    assert_finite(outputs, torch.float32)

    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if trained:
        weigh(outputs).backward()
    silent = tuple(subject.sample.silent)
    without = [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()]
    assert [name for name in without if not name.startswith(silent)] == []
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in trained.values())
    assert [name for name in silent if not any(other.startswith(name) for other in without)] == []
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad and parameter.grad is not None]
    assert frozen == []


@pytest.mark.slow
def test_bfloat16_runs_forward_and_backward(subject):
    module = subject.build().train().to(torch.bfloat16)
    outputs = subject.run(module, torch.bfloat16)
    assert_finite(outputs, torch.bfloat16)
    if any(parameter.requires_grad for parameter in module.parameters()):
        weigh(outputs).backward()


def test_a_slip_in_a_key_is_refused_with_the_right_one(subject):
    """In the outer object, and in its `config` or `model`."""
    parsed = subject.parse()
    for inside in ((), ("config",), ("model",)):
        part = parsed if not inside else getattr(parsed, inside[0], None)
        if not isinstance(part, BaseModel) or not type(part).model_fields:
            continue
        key = max((field.alias or name for name, field in type(part).model_fields.items()), key=len)
        slip = key[:-2] + key[-1]
        changed = copy.deepcopy(subject.config)
        target = changed.setdefault(inside[0], {}) if inside else changed
        target[slip] = target.pop(key, 1)
        problem = only(problems(subject, changed), (*inside, slip))
        assert f'did you mean "{key}"?' in problem.fix


def test_a_size_that_does_not_fit_is_refused_with_its_place_and_a_fix(subject):
    changed = copy.deepcopy(subject.config)
    for path, value in subject.sample.wrong.items():
        put(changed, path, value)
    found = {path_text(problem.path): problem for problem in problems(subject, changed)}
    assert subject.sample.place in found
    problem = found[subject.sample.place]
    assert subject.sample.says in f"{problem.message} {problem.fix}"


SLIPS = (None, True, "x", "", -1, 0, 1, 2, 3, 5, 7, 1.5, [], [1], [2, 2], [1, 2, 3, 4, 5], {})
DRAWS = 40


@pytest.mark.slow
def test_whatever_is_accepted_can_be_built(subject):
    """Any value anywhere: either a `ConfigError`, or a module."""
    generator = random.Random(0)
    places = [*paths(subject.config), *absent_options(subject)]
    for _ in range(DRAWS):
        path, value = generator.choice(places), generator.choice(SLIPS)
        target = changed = copy.deepcopy(subject.config)
        for key in path[:-1]:
            target = target.setdefault(key, {}) if isinstance(target, dict) else target[key]
        target[path[-1]] = value
        try:
            parsed = subject.parse(changed)
        except ConfigError as error:
            assert "validation error for" not in str(error), (path, value)
            continue
        with torch.device("meta"):
            assert isinstance(subject.kind.build(parsed), torch.nn.Module), (path, value)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a document but names of components and files."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in entries:
        if key not in ("type", "model_type", "id") and not str(key).endswith(("_name", "path")):
            yield (*path, key)
            yield from paths(item, (*path, key))


def absent_options(subject: Subject) -> Iterator[tuple[str, str]]:
    """Keys of the inner `config` that the sample leaves to their defaults."""
    inner = getattr(subject.parse(), "config", None)
    for name, field in type(inner).model_fields.items() if isinstance(inner, BaseModel) else ():
        key = field.alias or name
        if key not in subject.config.get("config", {}) and not key.endswith(("_name", "path")):
            yield "config", key


def expected_shapes(subject: Subject) -> dict[str, tuple[int, ...]]:
    shapes, cut = subject.kind.shapes(subject.parse()), subject.sample.cut
    return {name: (*shape[:-1], shape[-1] - cut) if name.startswith("audio") else shape for name, shape in shapes.items()}


def layout(module: Any) -> dict[str, tuple[Any, ...]]:
    return {key: (value.shape, value.dtype) for key, value in module.state_dict().items()}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    assert got.keys() == want.keys() and want
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


def assert_finite(outputs: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    """Losses may be of higher precision than what they judge."""
    floating = {name: value for name, value in outputs.items() if value.is_floating_point()}
    assert [name for name, value in floating.items() if not value.isfinite().all()] == []
    assert {value.dtype for name, value in floating.items() if value.ndim} <= {dtype}


def weigh(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A scalar in which neither entries nor outputs cancel by symmetry."""
    floating = [value for value in outputs.values() if value.is_floating_point() and value.requires_grad]
    return torch.stack([(value.float() * noise(*value.shape, seed=seed)).sum() for seed, value in enumerate(floating)]).sum()


def problems(subject: Subject, config: dict[str, Any]) -> tuple[Any, ...]:
    with pytest.raises(ConfigError) as caught:
        subject.parse(config)
    assert "validation error for" not in str(caught.value) and "Traceback" not in str(caught.value)
    return caught.value.problems


def only(found: tuple[Any, ...], path: tuple[str, ...]) -> Any:
    (problem,) = (problem for problem in found if problem.path == path)
    return problem


def put(document: Any, path: str, value: Any) -> None:
    *outer, last = path.split(".")
    for key in outer:
        document = document[key]
    document[last] = value
