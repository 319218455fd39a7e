// The launches of passes over lists of tensors: functions that registration/ includes; launch.h
// says what holds for all of them.
#pragma once

#include <cstdint>

#include "cuda/list_geometry.h"
#include "cuda/runtime.h"
#include "math/tensor_list.h"

namespace pfn::cuda {

// Where a pass of conjugate gradients finds its factor: state[number], unless it has stopped.
struct StateFactor {
  const double* state;
  int number;
};

// Pass::apply on every value. Pointers travel in the parameter block; where there are more segments
// than fit, further launches take them.
template <typename Pass, typename T>
cudaError_t launch_list_pass(const math::Segment* segments,  // [count] host array
                             int64_t count,
                             const math::ScalarFactor& factor,  // of the device
                             cudaStream_t stream);
template <typename Pass, typename T>
cudaError_t launch_list_pass(const math::Segment* segments,  // [count] host array
                             int64_t count,
                             const StateFactor& factor,
                             cudaStream_t stream);

// Partial sums that launch_list_dot leaves: one a tile.
int64_t list_partials(const math::Segment* segments, int64_t count, int value_bytes);

// partial[tile] = sum of at[0][i] * at[1][i] over the tile, in float64.
template <typename T>
cudaError_t launch_list_dot(const math::Segment* segments,  // [count] host array
                            int64_t count,
                            double* partial,  // [list_partials]
                            cudaStream_t stream);

// Adds the partial sums up in their order; `out` takes what finished() makes of the sum.
template <typename Out>
cudaError_t launch_list_merge(const double* partial,  // [partials]
                              int64_t partials,
                              math::Finish finish,
                              double radius,
                              Out* out,
                              cudaStream_t stream);

// The same for the state of conjugate gradients, which takes the sum as curvature or as residual.
cudaError_t launch_cg_merge(const double* partial,  // [partials]
                            int64_t partials,
                            bool is_curvature,
                            double* state,
                            cudaStream_t stream);

}  // namespace pfn::cuda
