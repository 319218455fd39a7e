"""Largest eigenvalues from products: known spectra, early ends, lists of tensors."""

import pytest
import torch

from pyfast_nas.hypergradients.lanczos import lanczos


def symmetric(spectrum, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(spectrum)
    q, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=generator))
    return q @ torch.diag(torch.tensor(spectrum, dtype=torch.float64)) @ q.t()


def of(matrix, **options):
    like = [matrix.new_zeros(len(matrix))]
    generator = torch.Generator().manual_seed(1)
    return lanczos(lambda u: [matrix @ u[0]], like, generator=generator, **options)


def test_the_largest_by_value_not_by_magnitude():
    found = of(symmetric([-5.0, 3.0, 1.0, 0.5]))
    assert found.values.tolist() == pytest.approx([3.0], abs=1e-12)
    assert found.products == 4


@pytest.mark.parametrize("seed", range(5))
def test_several_of_a_full_spectrum(seed):
    spectrum = torch.linspace(-1, 1, 12, dtype=torch.float64).tolist()
    found = of(symmetric(spectrum, seed), count=3)
    assert found.values.tolist() == pytest.approx(sorted(spectrum)[::-1][:3], abs=1e-10)
    assert found.residuals.max() < 1e-8


def test_few_steps_are_off_by_no_more_than_the_residual_says():
    torch.manual_seed(0)
    spectrum = torch.rand(200, dtype=torch.float64).sort().values
    found = of(symmetric(spectrum.tolist()), steps=15)
    assert found.products == 15
    gap = (spectrum - found.values).abs().min()
    assert 0 < gap <= found.residuals


def test_a_cluster_and_a_gap_need_few_products():
    matrix = symmetric([7.0] + [1.0] * 223)
    found = of(matrix, steps=20)
    assert found.products == 2  # the start lies in a plane
    assert found.values.tolist() == pytest.approx([7.0], abs=1e-10)


def test_zero_operator():
    found = of(torch.zeros(3, 3, dtype=torch.float64))
    assert found.values.tolist() == [0.0] and found.products == 1


def test_lists_of_shapes_and_dtypes():
    matrix = symmetric([4.0, -6.0, 2.0, 1.0, 0.0, 3.0, 3.5]).float()

    def product(parts):
        assert [p.shape for p in parts] == [(2, 3), ()] and parts[0].dtype is torch.float32
        flat = matrix @ torch.cat([p.flatten() for p in parts])
        return [flat[:6].view(2, 3), flat[6]]

    found = lanczos(product, [torch.zeros(2, 3), torch.zeros(())])
    assert found.values.tolist() == pytest.approx([4.0], abs=1e-5)


def test_the_start_is_the_generators():
    matrix = symmetric(torch.rand(50).tolist())
    before = torch.get_rng_state()
    assert torch.equal(of(matrix, steps=5).values, of(matrix, steps=5).values)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("options", [{"steps": 0}, {"count": 0}])
def test_refusals(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        of(torch.eye(2), **options)
    with pytest.raises(ValueError, match="at least one number"):
        lanczos(lambda u: u, [])
