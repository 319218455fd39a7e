// What one pass over lists of tensors does to the values at one place, and to the scalars that one
// pass leaves for the next.
#pragma once

#include <cstdint>

#include "math/macros.h"

namespace pfn::math {

constexpr int kMaxLists = 4;

// A stretch of values that lies without a gap in each of the lists: a tensor, or several that are
// neighbours in all of them.
struct Segment {
  void* at[kMaxLists];
  int64_t numel;
};

// Names the type of the values that segments point to.
template <typename T>
struct ValueType {
  using type = T;
};

// A pass takes kLists values of one place, one from each list, and a factor. It reads those from
// kFirstRead on and stores the first kStored.

// y + a x
struct AxpyPass {
  static constexpr int kLists = 2, kStored = 1, kFirstRead = 0;
  template <typename Value, typename Factor>
  PFN_HD void apply(Value* at, Factor a) {
    at[0] += a * at[1];
  }
};

// a x
struct ScalePass {
  static constexpr int kLists = 1, kStored = 1, kFirstRead = 0;
  template <typename Value, typename Factor>
  PFN_HD void apply(Value* at, Factor a) {
    at[0] *= a;
  }
};

// w + a v; w itself, minus zero included, where nothing is to be added.
struct PerturbPass {
  static constexpr int kLists = 3, kStored = 1, kFirstRead = 1;
  template <typename Value, typename Factor>
  PFN_HD void apply(Value* at, Factor a) {
    at[0] = a == Factor{0} ? at[1] : at[1] + a * at[2];
  }
};

// a (x - y); zero for a = 0, whatever x and y are.
struct DifferencePass {
  static constexpr int kLists = 3, kStored = 1, kFirstRead = 1;
  template <typename Value, typename Factor>
  PFN_HD void apply(Value* at, Factor a) {
    at[0] = a == Factor{0} ? Value{} : a * (at[1] - at[2]);
  }
};

// u - a h, then p + u: the next term of a Neumann series and its sum.
struct NeumannPass {
  static constexpr int kLists = 3, kStored = 2, kFirstRead = 0;
  template <typename Value, typename Factor>
  PFN_HD void apply(Value* at, Factor a) {
    at[1] -= a * at[2];
    at[0] += at[1];
  }
};

// Conjugate gradients on lists (z, r, p, h = A p): the solution and the residual ...
struct CgSolvePass {
  static constexpr int kLists = 4, kStored = 2, kFirstRead = 0;
  template <typename Value, typename Factor>
  PFN_HD void apply(Value* at, Factor a) {
    at[0] += a * at[2];
    at[1] -= a * at[3];
  }
};

// ... and, on (p, r), the next direction.
struct CgDirectionPass {
  static constexpr int kLists = 2, kStored = 1, kFirstRead = 0;
  template <typename Value, typename Factor>
  PFN_HD void apply(Value* at, Factor b) {
    at[0] = at[1] + b * at[0];
  }
};

// The factor of a pass: a number times a scalar, or, inverted, over it; anything over zero is zero,
// so that a step along a vector of length zero leads nowhere, and over infinity NaN.
struct ScalarFactor {
  double number;
  const float* narrow;  // the scalar, in either type; both null for one
  const double* wide;
  bool inverted;
};

PFN_HD double factor_of(const ScalarFactor& factor) {
  double scalar = 1.0;
  if (factor.narrow != nullptr) scalar = static_cast<double>(*factor.narrow);
  if (factor.wide != nullptr) scalar = *factor.wide;
  if (!factor.inverted) return factor.number * scalar;
  return scalar == 0.0 ? 0.0 : factor.number / scalar + (scalar - scalar);
}

// What becomes of a sum over lists: itself; its root; or the distance that central differences go
// along a vector v, radius / |v|, zero for v = 0. Infinities in v do not pass for a short way.
enum class Finish : int { sum = 0, root = 1, step = 2 };

PFN_HD double finished(double sum, Finish finish, double radius) {
  if (finish == Finish::sum) return sum;
#if defined(__CUDA_ARCH__)
  const double length = sqrt(sum);
#else
  const double length = __builtin_sqrt(sum);
#endif
  if (finish == Finish::root) return length;
  if (length == 0.0) return 0.0;
  return radius / length + (length - length);  // NaN where the length is not finite
}

// The state of conjugate gradients: float64 numbers that stay where the lists are.
enum CgState : int { kResidual = 0, kAlpha = 1, kBeta = 2, kStopped = 3, kCgNumbers = 4 };

PFN_HD bool cg_is_stopped(const double* state) { return state[kStopped] != 0.0; }

// Takes <p, A p>: the length of the step, or the end where the curvature is not positive. Without a
// residual there is nowhere to go.
PFN_HD void cg_take_curvature(double curvature, double* state) {
  if (cg_is_stopped(state)) return;
  const bool is_solved = state[kResidual] == 0.0;
  if (curvature <= 0.0 && !is_solved) state[kStopped] = 1.0;
  state[kAlpha] = is_solved || cg_is_stopped(state) ? 0.0 : state[kResidual] / curvature;
}

// Takes <r, r> behind the step: the share of the old direction in the new one.
PFN_HD void cg_take_residual(double residual, double* state) {
  if (cg_is_stopped(state)) return;
  state[kBeta] = state[kResidual] == 0.0 ? 0.0 : residual / state[kResidual];
  state[kResidual] = residual;
}

}  // namespace pfn::math
