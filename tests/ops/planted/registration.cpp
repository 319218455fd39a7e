#include "cpu/planted.h"
#include "registration/tensor_args.h"

namespace pfn {
namespace {

Tensor planted_cpu(const Tensor& x, int64_t mistake) {
  Tensor out = empty_like(x, x);
  PFN_CPU_CALL(planted, const_data<float>("planted", "x", x),
               mutable_data<float>("planted", "out", out), x.numel(), mistake);
  return out;
}

}  // namespace
}  // namespace pfn

STABLE_TORCH_LIBRARY_FRAGMENT(pyfast_nas, m) { m.def("planted(Tensor x, int mistake) -> Tensor"); }

STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) { m.impl("planted", TORCH_BOX(&pfn::planted_cpu)); }
