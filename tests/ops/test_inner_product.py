"""inner_product: values, dtypes, layouts and derivatives, by kernels and by plain PyTorch."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from pyfast_nas.ops.inner_product import inner_product
from pyfast_nas.testing import DTYPES, LAYOUTS, arrange


@pytest.mark.promise("K1")
@pytest.mark.parametrize("dtypes", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_values_and_dtypes(dtypes, backend):
    for shape in ((), (0,), (1,), (31,), (4, 16, 9, 9), (9001,)):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(shape, generator=generator).to(dtype) for dtype in dtypes)
        got, terms = inner_product(a, b), a.double() * b.double()
        assert got.shape == ()
        assert got.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
        unit = 2.0**-53 if got.dtype == torch.float64 else 2.0**-24
        assert abs(got.double() - terms.sum()) <= 100 * unit * terms.abs().sum()


@pytest.mark.promise("K9")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_does_not_matter(layout, backend):
    a, b = torch.randn(2, 3, 5, 7).double(), torch.randn(2, 3, 5, 7).double()
    for x, y in ((arrange(a, layout), b), (a, arrange(b, layout))):
        torch.testing.assert_close(inner_product(x, y), (x * y).sum(), rtol=1e-12, atol=1e-12)


@pytest.mark.promise("K3")
@pytest.mark.promise("K4")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_derivatives(backend):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 3, dtype=torch.float64, generator=generator).unbind()
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    options = {"check_batched_grad": True}
    assert gradcheck(inner_product, (a, b), check_forward_ad=True, **options)
    assert gradgradcheck(lambda a, b: inner_product(a, b) ** 2, (a, b), **options)
