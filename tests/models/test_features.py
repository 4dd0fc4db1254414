"""The base's states of answers: the right ones, computed once, whatever happens to the files."""

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from trimtab_models import base_weights, cache, demo, features, probe
from trimtab_models.features import States
from trimtab_models.rows import Rollout


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, and shards of three answers."""
    torch.set_num_threads(1)
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "SHARD", 3)
    monkeypatch.setattr(features, "BATCH", 24)
    return tmp_path / "cache"


def answers(n: int, seed: int) -> list[Rollout]:
    """Answers of random tokens and many lengths."""
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(4, 1000) for _ in range(draw.randint(1, most))]

    return [Rollout(tokens(9), tokens(7), 0.0) for _ in range(n)]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of answers in every forward of the base."""
    sizes: list[int] = []
    forward = features._forward

    def counted(*arguments: object) -> list[torch.Tensor]:
        states = forward(*arguments)  # type: ignore[arg-type]
        sizes.append(len(states))
        return states

    monkeypatch.setattr(features, "_forward", counted)
    return sizes


def test_states_are_those_that_the_output_embedding_reads_alone(kept: Path) -> None:
    items = answers(8, 0)
    states = States(demo.base())
    states.add(items)
    model = AutoModelForCausalLM.from_pretrained(demo.base(), dtype=torch.float32)
    read: list[torch.Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: read.append(inputs[0])
    )
    for item in items:
        with torch.no_grad():
            model(input_ids=torch.tensor([item.prompt + item.completion]))
        at = len(item.prompt) - 1
        expected = read.pop()[0, at : at + len(item.completion)]
        torch.testing.assert_close(states.of(item).float(), expected, atol=2e-3, rtol=2e-3)
    both = states.batch(items)
    longest = max(len(item.completion) for item in items)
    assert both.shape == (8, longest, expected.shape[-1])
    assert both.dtype == torch.float16
    for row, item in zip(both, items, strict=True):
        assert torch.equal(row[: len(item.completion)], states.of(item))
        assert not row[len(item.completion) :].any()


def test_they_are_computed_once(computed: list[int], kept: Path) -> None:
    items = answers(8, 1)
    first = States(demo.base())
    first.add(items)
    first.add(items[2:4])
    assert sum(computed) == 8
    places = {path.parents[2].name for path in kept.rglob("*.safetensors")}
    assert places == {base_weights.fingerprint(demo.base())}
    again = States(demo.base())
    again.add([item._replace(label=1.0) for item in reversed(items)])
    assert sum(computed) == 8
    assert torch.equal(first.batch(items), again.batch(items))


def test_states_of_another_dtype_are_kept_apart(
    computed: list[int], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = answers(4, 6)
    whole = States(demo.base())
    whole.add(items)
    monkeypatch.setattr(features, "_dtype", lambda _: torch.bfloat16)
    rounded = States(demo.base())
    rounded.add(items)
    assert sum(computed) == 8
    assert not torch.equal(rounded.batch(items), whole.batch(items))
    torch.testing.assert_close(rounded.batch(items), whole.batch(items), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("own", "capability", "expected"),
    [
        (torch.bfloat16, "AVX512", torch.bfloat16),
        (torch.bfloat16, "AVX2", torch.float32),
        (torch.float16, "AVX512", torch.float32),
        (None, "AVX512", torch.float32),
    ],
)
def test_a_processor_computes_in_the_bases_dtype_if_it_is_fast_in_it(
    monkeypatch: pytest.MonkeyPatch, own: object, capability: str, expected: torch.dtype
) -> None:
    monkeypatch.setattr(features.pretrained, "configuration", lambda _: SimpleNamespace(dtype=own))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert features._dtype("base") == expected


@pytest.mark.parametrize("damage", ["absent", "short", "other bytes", "no file at all"])
def test_what_is_damaged_is_computed_again(computed: list[int], kept: Path, damage: str) -> None:
    items = answers(8, 2)
    whole = States(demo.base())
    whole.add(items)
    expected = whole.batch(items).clone()
    del whole
    file = sorted(kept.rglob("shard-*"))[1]
    content = file.read_bytes()
    file.unlink()
    if damage == "short":
        file.write_bytes(content[:-10])
    elif damage == "other bytes":
        file.write_bytes(content[:-4] + bytes(255 - byte for byte in content[-4:]))
    elif damage == "no file at all":
        file.write_bytes(b"")
    computed.clear()
    again = States(demo.base())
    again.add(items)
    assert sum(computed) == 3
    assert torch.equal(again.batch(items), expected)
    assert file.read_bytes() == content


def test_an_interrupted_run_goes_on(
    computed: list[int], kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = answers(8, 3)
    forward = features._forward

    def failing(*arguments: object) -> list[torch.Tensor]:
        if sum(computed) >= 3:
            raise KeyboardInterrupt
        return forward(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(features, "_forward", failing)
        with pytest.raises(KeyboardInterrupt):
            States(demo.base()).add(items)
    assert len(list(kept.rglob("*.safetensors"))) == 1
    assert not list(kept.rglob("*.part"))
    States(demo.base()).add(items)
    assert sum(computed) == 8


def test_another_base_or_other_tokens_have_their_own(kept: Path) -> None:
    States(demo.base()).add(answers(2, 4))
    States(demo.base()).add(answers(2, 5))
    assert len(list(kept.rglob("shard-*"))) == 2
    with pytest.raises(ValueError, match="at least one token"):
        States(demo.base()).add([Rollout([1], [], 0.0)])


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("TRIMTAB_CACHE")
    assert cache.directory() == Path("/x/trimtab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.directory() == Path.home() / ".cache" / "trimtab"


def test_means_run_over_the_answer() -> None:
    states = torch.randn(3, 5, 7)
    both = probe.running(states)
    for row in range(3):
        for step in range(5):
            assert torch.equal(both[row, step, 0], states[row, step])
            mean = states[row, : step + 1].mean(0)
            torch.testing.assert_close(both[row, step, 1], mean)
