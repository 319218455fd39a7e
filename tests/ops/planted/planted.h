// Wrong on purpose: what the sanitizers must report. Never part of the library.
#pragma once

#include <cstdint>

#include "cpu/dispatch.h"

// out[i] = x[i] for i < count, with the mistake of that number; 0 is none.
PFN_FOR_EACH_ISA(void planted(const float* x, float* out, int64_t count, int64_t mistake);)
