"""Codebooks that follow their vectors: start, dead entries, dropout, several processes; scalar levels."""

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from stable_audio_tools.nn.quantize import Codebook, ResidualVQ, VectorQuantizer, draw_vectors, kmeans, straight_through
from stable_audio_tools.nn.quantize_factorized import ResidualFactorizedVQ
from stable_audio_tools.nn.quantize_scalar import FSQ, DitheredFSQ


def residual(size=8, stages=3, dim=4, *, dropout=False, cutoff=0, multiple_of=1, **options):
    torch.manual_seed(0)
    stage = [VectorQuantizer(Codebook(dim, size, **options)) for _ in range(stages)]
    return ResidualVQ(dim, dim, stage, dropout=dropout, cutoff=cutoff, multiple_of=multiple_of)


def clustered(count=400, seed=0):
    """Vectors around four corners, and the corners."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[4.0, 0.0], [-4.0, 0.0], [0.0, 4.0], [0.0, -4.0]])
    return corners[torch.randint(4, (count,), generator=generator)] + 0.1 * torch.randn(count, 2, generator=generator), corners


def test_straight_through_is_exact_and_hands_the_gradient_on():
    x = torch.randn(100, requires_grad=True)
    quantized = torch.randn(100) * 1e3
    out = straight_through(x, quantized)
    assert torch.equal(out, quantized)
    out.sum().backward()
    assert x.grad.eq(1).all()


def test_kmeans_finds_clusters_and_counts_them():
    x, corners = clustered()
    torch.manual_seed(2)
    means, counts = kmeans(x, 16, 20)
    assert counts.sum() == 400
    assert torch.cdist(corners, means).min(1).values.max() < 0.2


def test_entries_start_as_clusters_of_the_first_training_batch_only():
    x, corners = clustered()
    book = VectorQuantizer(Codebook(2, 8, kmeans_iters=20))
    book.eval()(x[None], follow=False)
    assert not book._codebook.initted and book._codebook.embed.eq(0).all()
    book.train()(x[None], follow=True)
    first = book._codebook.embed.clone()
    assert book._codebook.initted == 1 and torch.cdist(corners, first[0]).min(1).values.max() < 0.3
    book(10 * x[None], follow=True)
    assert (book._codebook.embed - first).abs().max() < 25  # followed, not clustered again
    assert book._codebook.cluster_size.sum() == pytest.approx(400)


def test_loaded_entries_are_not_clustered_again():
    x, _ = clustered()
    trained = residual(dim=2, kmeans_iters=5).train()
    trained(x[None])
    other = residual(dim=2, kmeans_iters=5, decay=1.0).train()
    other.load_state_dict(trained.state_dict())
    embed = other.layers[0]._codebook.embed.clone()
    other(x[None] + 100)
    torch.testing.assert_close(other.layers[0]._codebook.embed, embed, rtol=1e-4, atol=1e-4)
    empty = residual(dim=2, kmeans_iters=5)
    other.load_state_dict(empty.state_dict())
    other(x[None])
    assert other.layers[0]._codebook.initted == 1 and other.layers[0]._codebook.embed.abs().sum() > 0


def test_entries_come_to_the_means_of_their_vectors():
    _, corners = clustered()
    quantizer = residual(size=4, stages=1, dim=2, decay=0.5, kmeans_iters=3, dead_below=1.0).train()
    for seed in range(20):
        quantizer(clustered(seed=seed)[0][None])
    assert torch.cdist(corners, quantizer.layers[0]._codebook.embed[0]).min(1).values.max() < 0.1


def test_dead_entries_move_to_vectors_of_the_batch():
    book = Codebook(2, 4, dead_below=0.5).train()
    book.embed.copy_(torch.tensor([[[0.0, 0.0], [50.0, 0.0], [60.0, 0.0], [70.0, 0.0]]]))
    book.embed_avg.copy_(book.embed)
    x, _ = clustered(50)
    VectorQuantizer(book).train()(x[None], follow=True)
    distances = (book.embed[0, 1:, None] - x).norm(dim=-1).min(1).values
    assert distances.max() < 1e-6 and len(book.embed[0].unique(dim=0)) == 4
    assert book.cluster_size[0, 1:].eq(0.5).all()
    torch.testing.assert_close(book.embed_avg[0, 1:], 0.5 * book.embed[0, 1:])


@pytest.mark.parametrize("vectors", [3, 10])
def test_no_vector_is_drawn_twice_before_all_were(vectors):
    x = torch.arange(vectors, dtype=torch.float32)[:, None]
    wanted = torch.tensor([True, False, True, True, False, True, True])
    drawn = draw_vectors(x, wanted)[wanted].flatten()
    assert len(drawn.unique()) == min(vectors, 5)


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_a_draw_prefers_the_near(temperature):
    book = Codebook(1, 2, temperature=temperature).train()
    book.embed.copy_(torch.tensor([[[0.0], [1.0]]]))
    torch.manual_seed(0)
    x = torch.full((20000, 1), 0.3)
    share = book.choose(book.scores(x, book.entries(x))).float().mean()
    want = torch.softmax(torch.tensor([-0.3, -0.7]) / temperature, 0)[1] if temperature else torch.tensor(0.0)
    assert share == pytest.approx(float(want), abs=0.015)
    assert book.eval().choose(book.scores(x, book.entries(x))).eq(0).all()


def test_more_stages_leave_less():
    quantizer, x = residual(stages=6, kmeans_iters=10).train(), torch.randn(2, 200, 4)
    quantizer(x)
    tokens = quantizer.eval().tokenize(x)
    errors = [(quantizer.lookup(tokens[:, :count]) - x).square().mean() for count in range(1, 7)]
    assert all(later < earlier for earlier, later in pairwise(errors))


@pytest.mark.parametrize(("cutoff", "multiple_of", "counts"), [(0, 1, {1, 2, 3, 4}), (2, 1, {3, 4}), (0, 2, {2, 4}), (1, 3, {3, 4})])
def test_dropout_uses_the_first_stages(cutoff, multiple_of, counts):
    quantizer, x = residual(stages=4, dropout=True, cutoff=cutoff, multiple_of=multiple_of).train(), torch.randn(1, 10, 4)
    seen = set()
    for _ in range(40):
        before = [layer._codebook.embed.clone() for layer in quantizer.layers]
        _, tokens, _ = quantizer(x)
        used = tokens[0, :, 0].ge(0)
        moved = [not torch.equal(old, layer._codebook.embed) for old, layer in zip(before, quantizer.layers, strict=True)]
        assert moved == used.tolist() and used.tolist() == sorted(used.tolist(), reverse=True)
        seen.add(int(used.sum()))
    assert seen == counts
    assert quantizer.eval()(x)[1].ge(0).all()


def test_commitment_moves_the_encoder_and_not_the_entries_unless_they_learn():
    for learnable in (False, True):
        book = Codebook(4, 8, learnable=True, follows=False)
        x = torch.randn(1, 10, 4, requires_grad=True)
        VectorQuantizer(book, entries_commit=learnable).train()(x, follow=True)[2].backward()
        assert x.grad.abs().sum() > 0
        assert (book.embed.grad is not None) == learnable


def test_entries_that_move_do_not_disturb_the_gradient():
    """The cross entropy reads the entries in its backward pass, after they followed."""
    grads = []
    for decay in (1.0, 0.1):
        quantizer = residual(stages=1, decay=decay).train()
        quantizer.layers[0].cross_entropy_commitment = True
        x = torch.linspace(-1, 1, 40).view(1, 10, 4).requires_grad_()
        quantizer(x)[2].backward()
        grads.append(x.grad)
    assert torch.equal(*grads)


def test_orthogonal_loss_is_zero_for_orthogonal_entries():
    book = Codebook(4, 4, learnable=True, follows=False)
    stage = VectorQuantizer(book, commitment_weight=0.0, orthogonal_weight=1.0).train()
    x = torch.randn(1, 10, 4)
    book.embed.data.copy_(3 * torch.eye(4))
    assert stage(x, follow=True)[2].abs() < 1e-6
    book.embed.data.copy_(torch.ones(4, 4))
    assert stage(x, follow=True)[2].item() == pytest.approx(0.75)
    stage.orthogonal_max_codes = 2
    assert stage(x, follow=True)[2].item() == pytest.approx(0.5)


def test_factorized_codebooks_learn_from_the_codebook_loss_and_encoders_from_commitment():
    torch.manual_seed(0)
    quantizer, x = ResidualFactorizedVQ(4, 16, (2, 2)), torch.randn(2, 4, 9, requires_grad=True)
    entries = [stage.codebook.weight for stage in quantizer.quantizers]
    out = quantizer(x)
    grads = torch.autograd.grad(out.commitment, [x, *entries], retain_graph=True, allow_unused=True)
    # The second stage's residual depends on the first's entries only through the straight-through step.
    assert grads[0].abs().sum() > 0 and all(grad is None or grad.eq(0).all() for grad in grads[1:])
    grads = torch.autograd.grad(out.codebook, entries)
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_factorized_dropout_shortens_the_first_items():
    torch.manual_seed(0)
    quantizer, x = ResidualFactorizedVQ(4, 16, (2, 2, 2), dropout=0.5).train(), torch.randn(4, 4, 9)
    used = torch.stack([quantizer._used(x) for _ in range(60)])
    assert used[:, 2:].eq(1).all() and used[:, :, 0].eq(1).all()
    assert {1.0, 2.0, 3.0} == set(used[:, :2].sum(-1).unique().tolist())
    full = quantizer.eval()(x).latents
    torch.testing.assert_close(quantizer.train()(x).latents[2:], full[2:])
    assert ResidualFactorizedVQ(4, 16, (2,), dropout=1.0).eval()._used(x).eq(1).all()


@pytest.mark.parametrize("levels", [(2,), (3,), (5, 4, 3, 3), (99, 2), (256,)])
def test_every_level_is_reached_and_told_apart(levels):
    """Also where k / half * half in float is just below k, which rounding down would miss."""
    fsq = FSQ(levels)
    ramp = torch.linspace(-6, 6, 20001)[None, :, None].expand(1, -1, len(levels))
    codes, tokens = fsq(ramp)
    positions = fsq.grid.positions(tokens[0, 0])
    for channel, count in enumerate(levels):
        assert positions[:, channel].unique().tolist() == list(range(count))
        assert codes[0, :, channel].unique().numel() == count
    torch.testing.assert_close(fsq.lookup(tokens), codes, rtol=0, atol=1e-6)
    every = torch.arange(fsq.grid.size)
    assert torch.equal(fsq.grid.tokens(fsq.grid.positions(every)), every)


def test_dither_is_one_step_of_noise_without_bias():
    torch.manual_seed(0)
    quantizer = DitheredFSQ((5,), noise_dropout=0.0).train()
    x = torch.full((2000, 10, 1), 0.2)
    codes, tokens = quantizer(x)
    error = codes - torch.tanh(x)
    assert error.abs().max() <= 0.25 and error.mean().abs() < 5e-3
    assert error.std() == pytest.approx(0.5 / 12**0.5, rel=0.02)
    assert tokens.min() >= 0 and tokens.max() < 5
    silent, _ = DitheredFSQ((5,), noise_dropout=1.0).train()(x)
    torch.testing.assert_close(silent, torch.tanh(x))


def test_tokens_of_dithered_extremes_stay_in_range():
    torch.manual_seed(0)
    _, tokens = DitheredFSQ((4, 4), noise_dropout=0.0).train()(torch.full((50, 40, 2), 9.0))
    assert tokens.max() == 15


PROCESS = """
import sys, torch
from torch import distributed
from stable_audio_tools.nn.quantize import Codebook, ResidualVQ, VectorQuantizer
rank, count, file, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if count > 1:
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=count)
for name, options, dropout in (("plain", {}, False), ("busy", {"kmeans_iters": 5, "dead_below": 2.0}, True)):
    torch.manual_seed(0)
    vq = ResidualVQ(4, 4, [VectorQuantizer(Codebook(4, 8, **options)) for _ in range(3)], dropout=dropout).train()
    torch.manual_seed(rank + 1)  # each process draws its own
    for step in range(4):
        batch = torch.randn(4, 10, 4, generator=torch.Generator().manual_seed(step))
        vq(batch.chunk(count)[rank])
    torch.save(vq.state_dict(), f"{folder}/{name}{rank}of{count}.pt")
if count > 1:
    distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_hold_the_codebooks_of_one(tmp_path):
    def start(rank, count):
        command = [sys.executable, "-c", PROCESS, str(rank), str(count), str(tmp_path / "store"), str(tmp_path)]
        return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})

    for count in (1, 2):
        processes = [start(rank, count) for rank in range(count)]
        assert [process.wait(timeout=120) for process in processes] == [0] * count
    load = lambda name: torch.load(tmp_path / f"{name}.pt", weights_only=True)  # noqa: E731
    for key, value in load("plain0of1").items():
        torch.testing.assert_close(load("plain0of2")[key], value)
        assert torch.equal(load("plain0of2")[key], load("plain1of2")[key])
    # Clusters, dead entries and the number of stages are drawn, but alike in both.
    assert all(torch.equal(value, load("busy1of2")[key]) for key, value in load("busy0of2").items())


def test_stages_left_out_have_a_gradient_of_zero_where_entries_are_learned():
    stages = [VectorQuantizer(Codebook(4, 8, learnable=True, follows=False), entries_commit=True) for _ in range(3)]
    quantizer, left_out = ResidualVQ(4, 4, stages, dropout=True), 0
    for seed in range(6):
        torch.manual_seed(seed)
        quantizer.zero_grad()
        _, tokens, loss = quantizer(torch.randn(2, 5, 4))
        loss.backward()
        assert all(parameter.grad is not None for parameter in quantizer.parameters())
        unused = (tokens < 0).all(2).all(0)
        left_out += int(unused.sum())
        assert all(stage._codebook.embed.grad.any() != unused[place] for place, stage in enumerate(stages))
    assert left_out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.slow
def test_quantizers_compile_into_one_graph(dtype):
    x = torch.randn(2, 8, 4, dtype=dtype)
    for quantizer in (ResidualVQ(4, 4, [VectorQuantizer(Codebook(4, 8)) for _ in range(2)]), FSQ((3, 5), dim=4), DitheredFSQ((3,) * 4)):
        quantizer = quantizer.to(dtype).eval()
        compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
        assert torch.equal(compiled(x)[0], quantizer(x)[0])
