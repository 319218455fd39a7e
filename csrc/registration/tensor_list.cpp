// Registers the operators on lists of tensors for CPU and, in a CUDA build, for CUDA.
#include "cpu/tensor_list.h"

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "math/tensor_list.h"
#include "registration/list_args.h"

#ifdef PFN_WITH_CUDA
#include "cuda/list_launch.h"
#endif

namespace pfn {
namespace {

using Layout = std::optional<Tensor>;
using Scalar = std::optional<Tensor>;
using math::Segment;

// A scalar of the lists' kind: float64 for float64, else float32.
Tensor empty_scalar(const Tensor& first) {
  const bool is_wide = dtype_code(first) == code_of(TypeTag<double>{});
  return torch::stable::new_empty(
      first, {},
      is_wide ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float);
}

double* state_data(const char* op, const Tensor& first, const Tensor& state) {
  check(state.numel() == math::kCgNumbers && state.is_contiguous(), op,
        ": state must hold four numbers");
  check(state.get_device_index() == first.get_device_index(), op,
        ": state must be on the device of the lists");
  return mutable_data<double>(op, "state", state);
}

#ifndef PFN_TWIN
// Runs passes over blocks of values, whichever tensors they belong to.
class OnCpu {
 public:
  explicit OnCpu(const Tensor&) {}

  template <typename Pass>
  void pass(const char* op,
            const Tensor& like,
            const std::vector<Segment>& segments,
            const math::ScalarFactor& factor) const {
    run<Pass>(op, like, segments, math::factor_of(factor));
  }

  // The pass of conjugate gradients with the factor state[number].
  template <typename Pass>
  void pass(const char* op,
            const Tensor& like,
            const std::vector<Segment>& segments,
            const double* state,
            int number) const {
    if (!math::cg_is_stopped(state)) run<Pass>(op, like, segments, state[number]);
  }

  void dot(const char* op,
           const Tensor& like,
           const std::vector<Segment>& segments,
           math::Finish finish,
           double radius,
           const Tensor& out) const {
    const double found = math::finished(sum(op, like, segments), finish, radius);
    dispatch_floating(op, "out", out, [&](auto tag) {
      using Out = typename decltype(tag)::type;
      math::narrow(static_cast<math::acc_t<Out>>(found), mutable_data<Out>(op, "out", out));
    });
  }

  void dot_for_cg(const char* op,
                  const Tensor& like,
                  const std::vector<Segment>& segments,
                  bool is_curvature,
                  double* state) const {
    const double found = sum(op, like, segments);
    if (is_curvature) {
      math::cg_take_curvature(found, state);
    } else {
      math::cg_take_residual(found, state);
    }
  }

 private:
  // Blocks of values below which a second thread costs more than it brings.
  static constexpr int64_t kGrain = 8;

  struct Starts {
    std::vector<int64_t> before;
    int64_t blocks;
  };
  static Starts starts_of(const std::vector<Segment>& segments) {
    std::vector<int64_t> before;
    before.reserve(segments.size());
    int64_t numel = 0;
    for (const Segment& segment : segments) {
      before.push_back(numel);
      numel += segment.numel;
    }
    return {std::move(before), (numel + PFN_TENSOR_LIST_BLOCK - 1) / PFN_TENSOR_LIST_BLOCK};
  }

  template <typename Pass>
  static void run(const char* op,
                  const Tensor& like,
                  const std::vector<Segment>& segments,
                  double factor) {
    const Starts starts = starts_of(segments);
    const int64_t count = static_cast<int64_t>(segments.size());
    dispatch_floating(op, "lists", like, [&](auto tag) {
      using T = typename decltype(tag)::type;
      const auto a = static_cast<math::acc_t<T>>(factor);
      torch::stable::parallel_for(0, starts.blocks, kGrain, [&](int64_t first, int64_t last) {
        PFN_CPU_CALL(tensor_list_pass, Pass{}, math::ValueType<T>{}, segments.data(),
                     starts.before.data(), count, a, first, last);
      });
    });
  }

  // Partial sums of the blocks, in their order.
  static double sum(const char* op, const Tensor& like, const std::vector<Segment>& segments) {
    const Starts starts = starts_of(segments);
    const int64_t count = static_cast<int64_t>(segments.size());
    std::vector<double> partial(static_cast<size_t>(starts.blocks));
    dispatch_floating(op, "lists", like, [&](auto tag) {
      using T = typename decltype(tag)::type;
      torch::stable::parallel_for(0, starts.blocks, kGrain, [&](int64_t first, int64_t last) {
        PFN_CPU_CALL(tensor_list_dot, math::ValueType<T>{}, segments.data(), starts.before.data(),
                     count, partial.data(), first, last);
      });
    });
    double total = 0.0;
    for (const double value : partial) total += value;
    return total;
  }
};
#endif

#ifdef PFN_WITH_CUDA
class OnCuda {
 public:
  explicit OnCuda(const Tensor& like)
      : guard_(like.get_device_index()), stream_(current_stream(like)) {}

  template <typename Pass>
  void pass(const char* op,
            const Tensor& like,
            const std::vector<Segment>& segments,
            const math::ScalarFactor& factor) const {
    launch_pass<Pass>(op, like, segments, factor);
  }

  template <typename Pass>
  void pass(const char* op,
            const Tensor& like,
            const std::vector<Segment>& segments,
            const double* state,
            int number) const {
    launch_pass<Pass>(op, like, segments, cuda::StateFactor{state, number});
  }

  void dot(const char* op,
           const Tensor& like,
           const std::vector<Segment>& segments,
           math::Finish finish,
           double radius,
           const Tensor& out) const {
    const Tensor partial = partials(op, like, segments);
    const double* sums = const_data<double>(op, "partials", partial);
    if (dtype_code(out) == code_of(TypeTag<double>{})) {
      check_launch(op, cuda::launch_list_merge(sums, partial.numel(), finish, radius,
                                               mutable_data<double>(op, "out", out), stream_));
    } else {
      check_launch(op, cuda::launch_list_merge(sums, partial.numel(), finish, radius,
                                               mutable_data<float>(op, "out", out), stream_));
    }
  }

  void dot_for_cg(const char* op,
                  const Tensor& like,
                  const std::vector<Segment>& segments,
                  bool is_curvature,
                  double* state) const {
    const Tensor partial = partials(op, like, segments);
    check_launch(op, cuda::launch_cg_merge(const_data<double>(op, "partials", partial),
                                           partial.numel(), is_curvature, state, stream_));
  }

 private:
  template <typename Pass, typename Factor>
  void launch_pass(const char* op,
                   const Tensor& like,
                   const std::vector<Segment>& segments,
                   const Factor& factor) const {
    const int64_t count = static_cast<int64_t>(segments.size());
    dispatch_floating(op, "lists", like, [&](auto tag) {
      using T = typename decltype(tag)::type;
      check_launch(op, cuda::launch_list_pass<Pass, T>(segments.data(), count, factor, stream_));
    });
  }

  // One sum for each tile.
  Tensor partials(const char* op, const Tensor& like, const std::vector<Segment>& segments) const {
    const int64_t count = static_cast<int64_t>(segments.size());
    return dispatch_floating(op, "lists", like, [&](auto tag) {
      using T = typename decltype(tag)::type;
      Tensor partial =
          torch::stable::new_empty(like, {cuda::list_partials(segments.data(), count, sizeof(T))},
                                   torch::headeronly::ScalarType::Double);
      double* sums = mutable_data<double>(op, "partials", partial);
      check_launch(op, cuda::launch_list_dot<T>(segments.data(), count, sums, stream_));
      return partial;
    });
  }

  const DeviceGuard guard_;
  cudaStream_t stream_;
};
#endif

// One elementwise pass over all lists.
template <typename Pass, typename Device>
void run_pass(const char* op,
              std::initializer_list<List> given,
              const Layout& layout,
              int64_t flats,
              double number,
              const Scalar& scalar,
              bool inverted = false) {
  TensorLists lists(op, given, Pass::kStored, layout, flats, /*merges=*/true);
  const Device device(lists.first());
  device.template pass<Pass>(op, lists.first(), lists.segments(),
                             scalar_factor(op, lists.first(), number, scalar, inverted));
  lists.write_back();
}

template <typename Device>
void axpy(const Handles& ys,
          const Handles& xs,
          const Layout& layout,
          int64_t flats,
          double number,
          const Scalar& scalar) {
  run_pass<math::AxpyPass, Device>("axpy_", {{"ys", &ys}, {"xs", &xs}}, layout, flats, number,
                                   scalar);
}

template <typename Device>
void scale(
    const Handles& xs, const Layout& layout, int64_t flats, double number, const Scalar& scalar) {
  run_pass<math::ScalePass, Device>("scale_", {{"xs", &xs}}, layout, flats, number, scalar);
}

template <typename Device>
void perturb(const Handles& outs,
             const Handles& ws,
             const Handles& vs,
             const Layout& layout,
             int64_t flats,
             double number,
             const Scalar& scalar) {
  run_pass<math::PerturbPass, Device>("perturb", {{"out", &outs}, {"ws", &ws}, {"vs", &vs}}, layout,
                                      flats, number, scalar);
}

template <typename Device>
void difference(const Handles& outs,
                const Handles& xs,
                const Handles& ys,
                const Layout& layout,
                int64_t flats,
                double number,
                const Scalar& scalar) {
  run_pass<math::DifferencePass, Device>("difference", {{"out", &outs}, {"xs", &xs}, {"ys", &ys}},
                                         layout, flats, number, scalar, /*inverted=*/true);
}

template <typename Device>
void neumann_step(const Handles& ps,
                  const Handles& us,
                  const Handles& hs,
                  const Layout& layout,
                  int64_t flats,
                  double number,
                  const Scalar& scalar) {
  run_pass<math::NeumannPass, Device>("neumann_step_", {{"ps", &ps}, {"us", &us}, {"hs", &hs}},
                                      layout, flats, number, scalar);
}

template <typename Device>
void cg_step(const Handles& zs,
             const Handles& rs,
             const Handles& ps,
             const Handles& hs,
             const Layout& layout,
             int64_t flats,
             const Tensor& state) {
  constexpr const char* op = "cg_step_";
  // p is written as well, so it comes before what is only read.
  TensorLists lists(op, {{"zs", &zs}, {"rs", &rs}, {"ps", &ps}, {"hs", &hs}}, 3, layout, flats,
                    /*merges=*/false);
  const Tensor& like = lists.first();
  double* numbers = state_data(op, like, state);
  const Device device(like);
  device.dot_for_cg(op, like, lists.pick({2, 3}), /*is_curvature=*/true, numbers);
  device.template pass<math::CgSolvePass>(op, like, lists.segments(), numbers, math::kAlpha);
  device.dot_for_cg(op, like, lists.pick({1, 1}), /*is_curvature=*/false, numbers);
  device.template pass<math::CgDirectionPass>(op, like, lists.pick({2, 1}), numbers, math::kBeta);
  lists.write_back();
}

// <xs, ys>, of xs with itself where ys is empty, and what `finish` makes of it.
template <typename Device>
Tensor dot(const Handles& xs,
           const Handles& ys,
           const Layout& layout,
           int64_t flats,
           int64_t finish,
           double radius) {
  constexpr const char* op = "dot";
  check(finish >= 0 && finish <= 2, op, ": finish must be between 0 and 2, got ", finish);
  const bool is_square = ys.empty();
  // A list with itself is one list, and the other has no tensor.
  const TensorLists lists =
      is_square ? TensorLists(op, {{"xs", &xs}}, 0, layout, flats, false)
                : TensorLists(op, {{"xs", &xs}, {"ys", &ys}}, 0, layout, flats, /*merges=*/false);
  const Device device(lists.first());
  const Tensor out = empty_scalar(lists.first());
  device.dot(op, lists.first(), is_square ? lists.pick({0, 0}) : lists.segments(),
             static_cast<math::Finish>(finish), radius, out);
  return out;
}

}  // namespace
}  // namespace pfn

#define PFN_REGISTER(Device)                                                       \
  m.impl("tensor_list_axpy_", TORCH_BOX(&pfn::axpy<pfn::Device>));                 \
  m.impl("tensor_list_scale_", TORCH_BOX(&pfn::scale<pfn::Device>));               \
  m.impl("tensor_list_perturb_into", TORCH_BOX(&pfn::perturb<pfn::Device>));       \
  m.impl("tensor_list_difference_into", TORCH_BOX(&pfn::difference<pfn::Device>)); \
  m.impl("tensor_list_neumann_step_", TORCH_BOX(&pfn::neumann_step<pfn::Device>)); \
  m.impl("tensor_list_cg_step_", TORCH_BOX(&pfn::cg_step<pfn::Device>));           \
  m.impl("tensor_list_dot", TORCH_BOX(&pfn::dot<pfn::Device>))

#ifndef PFN_TWIN
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, CPU, m) { PFN_REGISTER(OnCpu); }
#endif

#ifdef PFN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pyfast_nas, PFN_CUDA_KEY, m) { PFN_REGISTER(OnCuda); }
#endif
