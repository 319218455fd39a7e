// The extension module `_C`: importing it runs the operator registrations of this library.
#include <Python.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "cpu/dispatch.h"

namespace {

// Lowers the instruction set in use to `level` (0 plain, 1 AVX2, 2 AVX-512; the processor's own is
// the ceiling), or only asks when `level` is negative. Returns the level now in use.
int64_t cpu_capability(int64_t level) {
  const int best = static_cast<int>(pfn::cpu::detect_isa());
  if (level >= 0) {
    pfn::cpu::isa_in_use().store(level < best ? static_cast<int>(level) : best);
  }
  return pfn::cpu::isa_in_use().load();
}

PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr,
};

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pyfast_nas, m) { m.def("cpu_capability(int level) -> int"); }

STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&cpu_capability));
}

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C() {
  return PyModule_Create(&module_definition);
}
