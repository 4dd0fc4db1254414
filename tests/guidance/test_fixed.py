"""Steps with fixed shapes, and the closed form of their attention, equal their definitions."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pretended
from networks import VOCAB, configs
from test_backbone import build, history, ragged, reference
from trimtab.scoring import captured, fixed, merging, waves
from trimtab.scoring.captured import FixedSteps
from trimtab.scoring.fixed import FixedRow, Shape
from trimtab.scoring.pool import PrefixPool
from trimtab_models.networks import scalar_head, split


def served(family="llama", **options):
    """A network whose steps have fixed shapes, as on CUDA, but eager."""
    backbone = build(configs()[family], **options)
    backbone.fixed = FixedSteps(backbone.network, backbone.pool, graphs=False)
    return backbone


@pytest.mark.parametrize("window", [None, 5])
def test_the_closed_form_equals_dense_attention(window):
    """Over ragged prefixes and one own key, with a mask and keys that are repeated per head."""
    torch.manual_seed(0)
    rows, kv, fold, n, keys, dim, scale = 5, 2, 3, 7, 40, 16, 0.3
    lengths = torch.tensor([1, 3, 17, 32, 40])
    q = torch.randn(rows, kv, fold, n, dim)
    k, v = torch.randn(2, rows, kv, keys, dim)
    own_k, own_v = torch.randn(2, rows, kv, 1, n, dim)
    p = torch.arange(keys)
    visible = p < lengths[:, None]
    if window is not None:
        visible &= p > lengths[:, None] - window

    logits = torch.einsum("rgfnd,rgpd->rgfnp", q, k).masked_fill(
        ~visible[:, None, None, None], -torch.inf
    )
    logits = torch.cat((logits, (q * own_k).sum(-1, keepdim=True)), -1) * scale
    weights = logits.softmax(-1)
    dense = torch.einsum("rgfnp,rgpd->rgfnd", weights[..., :-1], v) + weights[..., -1:] * own_v

    bias = (~visible)[:, None, None].float() * merging.HIDDEN
    flat = q.reshape(rows, kv, fold * n, dim)
    for part in (merging.attend, merging.by_formula):
        out, lse = part(flat, k, v, bias, scale)
        out, lse = out.view_as(q), lse.view(rows, kv, fold, n)
        merged = merging.with_own(out, lse, q, own_k, own_v, scale)
        assert (merged - dense).abs().max() <= 1e-5
        assert (out - dense).abs().max() > 1e-2, "the control: the own key matters"


@pytest.mark.parametrize("family", configs())
def test_fixed_steps_equal_reforwarding(family):
    backbone, rng = served(family), np.random.default_rng(1)
    prefixes, candidates = ragged(rng, 6, longest=60)
    prefixes[5] = prefixes[4].copy()  # a prompt in common
    for step in range(4):
        actual = backbone.head(backbone.hidden(range(6), prefixes, candidates))
        expected = backbone.head(reference(backbone, prefixes, candidates))
        assert (actual - expected).abs().max() <= 1e-5, step
        chosen = [c[0] if i % 3 else (c[0] + 1) % VOCAB for i, c in enumerate(candidates)]
        prefixes = [np.append(p, c) for p, c in zip(prefixes, chosen, strict=True)]
        candidates = [rng.permutation(VOCAB)[: rng.integers(1, 30)] for _ in range(6)]
    last = backbone.hidden(range(6), prefixes, None)
    expected = reference(backbone, [p[:-1] for p in prefixes], [p[-1:] for p in prefixes])
    assert (last - expected).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MOST_QUERIES", 64), ("MOST_KEYS", 256), ("MAX_TOKENS", 16), (None, None)],
)
def test_any_history_gives_the_same_scores(limit, value, monkeypatch):
    """Rows that grow, shrink and fork, in a pool too small, over several forwards a step."""
    if limit is not None:
        monkeypatch.setattr(fixed if limit.startswith("MOST") else waves, limit, value)
    rng = np.random.default_rng(3)
    backbone = served(pool_bytes=200 * 3 * 2 * 2 * 16 * 4)
    for keys, prefixes, candidates in history(rng, steps=12, longest=29):
        actual = backbone.hidden(keys, prefixes, candidates)
        assert (actual - reference(backbone, prefixes, candidates)).abs().max() <= 1e-5
    for key in range(8):
        backbone.forget(key)
    assert backbone.pool.free_slots == backbone.pool.size - 1


def test_a_steady_step_reads_the_last_token_and_the_candidates():
    backbone, rng = served(), np.random.default_rng(4)
    prefixes = [rng.integers(VOCAB, size=50) for _ in range(3)]
    backbone.hidden(range(3), prefixes, [np.arange(4)] * 3)
    before = backbone.tokens_forwarded
    prefixes = [np.append(prefix, 3) for prefix in prefixes]
    backbone.hidden(range(3), prefixes, [np.arange(4)] * 3)
    assert backbone.tokens_forwarded - before == 3 * (1 + 4)
    assert backbone.pool.size - 1 - backbone.pool.free_slots == 3 * 51, "no candidate's K/V stay"


def test_a_network_that_cannot_be_captured_is_served_as_on_the_cpu(monkeypatch):
    class Failing(FixedSteps):
        def hidden(self, rows):
            raise RuntimeError("operation not permitted when stream is capturing")

    def failing(network, pool):
        return Failing(network, pool, graphs=False)

    monkeypatch.setattr(captured, "on_cuda", failing)
    backbone, rng = build(configs()["llama"]), np.random.default_rng(6)
    assert backbone.fixed is None
    prefixes, candidates = ragged(rng, 3)
    actual = backbone.hidden(range(3), prefixes, candidates)
    assert (actual - reference(backbone, prefixes, candidates)).abs().max() <= 1e-5


def test_padding_changes_nothing():
    """The same rows in a larger bucket, beside other rows."""
    backbone, rng = served(), np.random.default_rng(5)
    prefixes = [rng.integers(VOCAB, size=n) for n in (20, 80)]
    alone = backbone.hidden([0], prefixes[:1], [np.arange(3)])
    beside = backbone.hidden([0, 1], prefixes, [np.arange(3), np.arange(30)])
    torch.testing.assert_close(beside[:3], alone, rtol=1e-5, atol=1e-5)


@pytest.fixture
def no_cuda_needed():
    """PyTorch without CUDA has no guard for its devices; tensors without data need one that does
    nothing, such as the CPU's."""
    lib = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(lib, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[1] = guards[1], guards[1] or guards[0]  # of DeviceType::CUDA
    yield
    guards[1] = before


def faked(family, device="cuda:0"):
    """A network, its pool and a packed input without data, on a CUDA device that need not exist."""
    config, shape = configs()[family], Shape.of(3, 5, 40)
    model = scalar_head(config).requires_grad_(False)
    network, head = split(model)
    network.set_attn_implementation("trimtab_prefix")
    heads = config.num_attention_heads
    pool = PrefixPool(
        layers=config.num_hidden_layers,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        max_bytes=2**18,
    )
    rows = [FixedRow(np.arange(n), np.arange(1, n + 1), np.arange(4)) for n in (7, 33, 2)]
    packed = torch.from_numpy(shape.pack(rows)[0])
    mode = FakeTensorMode()

    def there(tensor):
        fake = mode.from_tensor(tensor.detach())
        with mode:
            return fake.to(device)

    pretended.move(model, there)
    pool.k, pool.v = there(pool.k), there(pool.v)
    return mode, network, head, pool, shape, there(packed)


class OneDevice(TorchDispatchMode):
    """Refuses whatever moves data between devices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if torch.is_tensor(t)}
        if len(devices) > 1 and "_scaled_dot_product" not in str(func):  # seeds of no dropout
            raise RuntimeError(f"{func} moves data between {devices}")
        return out


@pytest.mark.parametrize("family", configs())
def test_a_step_never_waits(family, no_cuda_needed):
    """On a device without data, whatever needs data on the host raises."""
    mode, network, head, pool, shape, packed = faked(family)
    with mode, torch.inference_mode(), OneDevice():
        hidden = fixed.forward(network, pool, shape, packed)
        scores = head(hidden)
    assert scores.device.type == "cuda"
    assert scores.shape == (shape.rows * shape.queries, 1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda lse: lse.max().item(),
        lambda lse: lse[lse > 0].sum(),
        lambda lse: lse.tolist()[0],
        lambda lse: lse.max().cpu(),
        lambda lse: torch.zeros(lse.shape).to(lse.device),
    ],
)
def test_a_step_that_waits_is_seen(wait, monkeypatch, no_cuda_needed):
    """The control: one number that is read on the host, or one that comes from it."""
    mode, network, _, pool, shape, packed = faked("llama")
    plain = merging.with_own

    def waits(out, lse, *rest):
        wait(lse)
        return plain(out, lse, *rest)

    monkeypatch.setattr(merging, "with_own", waits)
    refused = (DataDependentOutputException, DynamicOutputShapeException, RuntimeError)
    with mode, torch.inference_mode(), OneDevice(), pytest.raises(refused):
        fixed.forward(network, pool, shape, packed)
