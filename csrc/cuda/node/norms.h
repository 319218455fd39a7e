// The batch norms of a node: from the moments of tiles to statistics and what forward makes of
// them; sums of the gradient over the batch, and what backward makes of those. All of it in
// float64.
#pragma once

#include "cuda/block.h"
#include "cuda/node/unit.h"

namespace pfn::cuda {

// Channels that a block of these kernels takes at a time, and threads for each.
constexpr int kNormLanes = 32, kNormParts = 8;

// Of a thread of these blocks: its lane has one channel at a time, its part some of what is added
// up for it.
PFN_DEVICE int norm_lane(const Block& block) { return block.thread() % kNormLanes; }
PFN_DEVICE int norm_part(const Block& block) { return block.thread() / kNormLanes; }

// Calls take(channel, is_there) for the channels of a thread's lane, the same number of times for
// all of the block.
template <typename Take>
PFN_DEVICE void for_each_channel(const Block& block, int channels, Take&& take) {
  for (int first = 0; first < channels; first += kNormLanes) {
    const int channel = first + norm_lane(block);
    take(channel, channel < channels);
  }
}

// The pixels of the batch in tiles, each of which leaves one partial sum for every channel.
constexpr int kNormPixels = 512;

struct TilePixels {
  int64_t begin, last;
};

PFN_HD int64_t norm_tiles(const NodeSizes& sizes) { return divide_up(sizes.pixels(), kNormPixels); }
PFN_HD TilePixels tile_pixels(const NodeSizes& sizes, int64_t tile) {
  const int64_t begin = tile * kNormPixels, end = begin + kNormPixels;
  return {begin, end < sizes.pixels() ? end : sizes.pixels()};
}

template <typename Acc>
struct NormUnit {
  bool exists;
  bool is_known;  // the statistics are there
  double eps;
  const Acc* gamma;       // [channels] or null
  const Acc* beta;        // [channels] or null
  double* statistics;     // [2, channels]: mean and biased variance
  const double* moments;  // [tiles, channels, 2]
  Acc* table;             // [3, channels]: mean, scale, shift
  Selected selected;      // without it statistics that are not known are zero

  PFN_DEVICE double inverse_deviation(int channels, int channel) const {
    return 1.0 / sqrt(statistics[channels + channel] + eps);
  }
  PFN_DEVICE double scale_of(int channel) const {
    return gamma != nullptr ? static_cast<double>(gamma[channel]) : 1.0;
  }
  PFN_DEVICE double shift_of(int channel) const {
    return beta != nullptr ? static_cast<double>(beta[channel]) : 0.0;
  }
};

constexpr int kNormUnits = 28;

// Moments of some values: Chan, Golub & LeVeque (1983).
struct Moments {
  double count, mean, square;
};

PFN_HD Moments merge(const Moments& a, const Moments& b) {
  const double count = a.count + b.count;
  if (count == 0.0) return a;
  const double apart = b.mean - a.mean, share = b.count / count;
  return {count, a.mean + apart * share, a.square + b.square + apart * apart * a.count * share};
}

// A map whose moments are wanted.
template <typename Acc>
struct MomentsUnit {
  const Acc* y;     // [pixels, channels]
  double* moments;  // [tiles, channels, 2]: mean and squared distances from it
  Selected selected;
};

constexpr int kMomentsUnits = 128;

// Moments of every tile: about its mean, so that nothing cancels. Grid: tiles; maps.
template <typename Acc>
struct TileMoments {
  static constexpr int kThreads = kNormLanes * kNormParts;
  struct Shared {
    Acc sums[kNormParts][kNormLanes];
    Acc squares[kNormParts][kNormLanes];
  };

  MomentsUnit<Acc> at[kMomentsUnits];
  NodeSizes sizes;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const MomentsUnit<Acc>& unit = at[block.y()];
    if (unit.selected.is_off()) return;
    const int lane = norm_lane(block), part = norm_part(block);
    const TilePixels pixels = tile_pixels(sizes, block.x());
    const Acc count = static_cast<Acc>(pixels.last - pixels.begin);
    for_each_channel(block, sizes.channels, [&](int channel, bool is_there) {
      Acc sum{0}, square{0};
      const auto for_each = [&](auto&& take) {
        for (int64_t pixel = pixels.begin + part; pixel < pixels.last && is_there;
             pixel += kNormParts) {
          take(unit.y[pixel * sizes.channels + channel]);
        }
      };
      for_each([&](Acc y) { sum += y; });
      shared.sums[part][lane] = sum;
      block.sync();
      Acc total{0};
      for (int p = 0; p < kNormParts; ++p) total += shared.sums[p][lane];
      const Acc mean = total / count;
      sum = Acc{0};
      for_each([&](Acc y) {
        sum += y - mean;
        square += (y - mean) * (y - mean);
      });
      block.sync();
      shared.sums[part][lane] = sum;
      shared.squares[part][lane] = square;
      block.sync();
      if (part == 0 && is_there) {
        double rest = 0.0, squares = 0.0;
        for (int p = 0; p < kNormParts; ++p) {
          rest += static_cast<double>(shared.sums[p][lane]);
          squares += static_cast<double>(shared.squares[p][lane]);
        }
        double* to = unit.moments + (block.x() * sizes.channels + channel) * 2;
        to[0] = static_cast<double>(mean) + rest / static_cast<double>(count);
        to[1] = squares - rest * rest / static_cast<double>(count);
      }
      block.sync();
    });
  }
};

// Statistics from moments where they are not known; then y -> (y - mean) * scale + shift in the
// number type of the maps, where the shift takes what rounding the mean leaves. A norm that does
// not exist is the identity. Grid: 1; norms.
template <typename Acc>
struct CloseMoments {
  static constexpr int kThreads = kNormLanes * kNormParts;
  struct Shared {
    Moments parts[kNormParts][kNormLanes];
  };

  NormUnit<Acc> at[kNormUnits];
  NodeSizes sizes;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const NormUnit<Acc>& norm = at[block.y()];
    if (norm.selected.is_off()) return clear(block, norm);
    const int lane = norm_lane(block), part = norm_part(block);
    const int64_t tiles = norm_tiles(sizes);
    for_each_channel(block, sizes.channels, [&](int channel, bool is_there) {
      if (norm.exists && !norm.is_known) {
        Moments mine{0.0, 0.0, 0.0};
        for (int64_t tile = part; tile < tiles && is_there; tile += kNormParts) {
          const double* from = norm.moments + (tile * sizes.channels + channel) * 2;
          const TilePixels pixels = tile_pixels(sizes, tile);
          mine = merge(mine, {static_cast<double>(pixels.last - pixels.begin), from[0], from[1]});
        }
        shared.parts[part][lane] = mine;
        block.sync();
        if (part == 0 && is_there) {
          for (int p = 1; p < kNormParts; ++p) mine = merge(mine, shared.parts[p][lane]);
          norm.statistics[channel] = mine.mean;
          norm.statistics[sizes.channels + channel] = mine.square / mine.count;
        }
        block.sync();
      }
      if (part == 0 && is_there) fold(norm, channel);
    });
  }

 private:
  PFN_DEVICE void clear(const Block& block, const NormUnit<Acc>& norm) const {
    if (!norm.exists || norm.is_known) return;
    for (int i = block.thread(); i < 2 * sizes.channels; i += kThreads) norm.statistics[i] = 0.0;
  }
  PFN_DEVICE void fold(const NormUnit<Acc>& norm, int channel) const {
    Acc* table = norm.table + channel;
    if (!norm.exists) {
      table[0] = Acc{0};
      table[sizes.channels] = Acc{1};
      table[2 * sizes.channels] = Acc{0};
      return;
    }
    const double mean = norm.statistics[channel];
    const double scale = norm.scale_of(channel) * norm.inverse_deviation(sizes.channels, channel);
    table[0] = static_cast<Acc>(mean);
    table[sizes.channels] = static_cast<Acc>(scale);
    table[2 * sizes.channels] =
        static_cast<Acc>(norm.shift_of(channel) + scale * (static_cast<double>(table[0]) - mean));
  }
};

// Sums over the batch of a gradient, and of its product with a map above a mean.
template <typename T>
struct DotsUnit {
  using Acc = math::acc_t<T>;

  Map<T> grad;
  Map<T> y;         // without either, only the gradient is added up
  const Acc* mean;  // [channels], or null for zero
  double* dots;     // [tiles, channels]
  Selected selected;
};

constexpr int kDotsUnits = 32;

// Grid: tiles; units.
template <typename T>
struct Dots {
  using Acc = math::acc_t<T>;
  static constexpr int kThreads = kNormLanes * kNormParts, kBlocks = 4;
  struct Shared {
    Acc parts[kNormParts][kNormLanes];
  };

  DotsUnit<T> at[kDotsUnits];
  NodeSizes sizes;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const DotsUnit<T>& unit = at[block.y()];
    if (unit.selected.is_off()) return;
    const int lane = norm_lane(block), part = norm_part(block);
    const bool has_y = unit.y.own != nullptr || unit.y.scratch != nullptr;
    const int64_t map = static_cast<int64_t>(sizes.height) * sizes.width;
    const TilePixels pixels = tile_pixels(sizes, block.x());
    for_each_channel(block, sizes.channels, [&](int channel, bool is_there) {
      const Acc mean = is_there && unit.mean != nullptr ? unit.mean[channel] : Acc{0};
      Acc sum{0};
      for (int64_t pixel = pixels.begin + part; pixel < pixels.last && is_there;
           pixel += kNormParts) {
        const int64_t sample = quotient(pixel, map), place = pixel - sample * map;
        const Acc g = unit.grad.at(sample * unit.grad.sample + place * unit.grad.pixel + channel);
        sum += has_y
                   ? g * (unit.y.at(sample * unit.y.sample + place * unit.y.pixel + channel) - mean)
                   : g;
      }
      shared.parts[part][lane] = sum;
      block.sync();
      if (part == 0 && is_there) {
        double total = 0.0;
        for (int p = 0; p < kNormParts; ++p) total += static_cast<double>(shared.parts[p][lane]);
        unit.dots[block.x() * sizes.channels + channel] = total;
      }
      block.sync();
    });
  }
};

// How a gradient goes back through a norm.
template <typename Acc>
struct ThroughUnit {
  NormUnit<Acc> norm;
  bool is_given;       // the statistics are an input, not those of the batch
  const double* sums;  // [tiles, channels] of the gradient
  const double* dots;  // [tiles, channels] of its product with what came in, above the rounded mean
  const Acc* weight;   // of the branch; null for one
  Acc* grad_weight;    // null where it is not wanted
  Acc* grad_gamma;
  Acc* grad_beta;
  Acc* through;       // [4, channels]: a, b, mean, c
  Selected selected;  // without it gradients are zero
};

constexpr int kThroughUnits = 24;

// The gradients of weights, scales and shifts, and the coefficients of a g + b (y - mean) + c:
// kernels.md, section 2. Grid: 1; units.
template <typename Acc>
struct CloseDots {
  static constexpr int kThreads = kNormLanes * kNormParts;
  struct Shared {
    double sums[kNormParts][kNormLanes];
    double dots[kNormParts][kNormLanes];
    double weights[kNormLanes];
  };

  ThroughUnit<Acc> at[kThroughUnits];
  NodeSizes sizes;

  PFN_DEVICE void run(const Block& block, Shared& shared) const {
    const ThroughUnit<Acc>& unit = at[block.y()];
    if (unit.selected.is_off()) return clear(block, unit);
    const int lane = norm_lane(block), part = norm_part(block);
    const int64_t tiles = norm_tiles(sizes);
    const double weight = unit.weight != nullptr ? static_cast<double>(*unit.weight) : 1.0;
    double grad_weight = 0.0;
    for_each_channel(block, sizes.channels, [&](int channel, bool is_there) {
      double sum = 0.0, dot = 0.0;
      for (int64_t tile = part; tile < tiles && is_there; tile += kNormParts) {
        sum += unit.sums[tile * sizes.channels + channel];
        dot += unit.dots[tile * sizes.channels + channel];
      }
      shared.sums[part][lane] = sum;
      shared.dots[part][lane] = dot;
      block.sync();
      if (part == 0 && is_there) {
        for (int p = 1; p < kNormParts; ++p) {
          sum += shared.sums[p][lane];
          dot += shared.dots[p][lane];
        }
        grad_weight += close(unit, channel, weight, sum, dot);
      }
      block.sync();
    });
    if (part == 0) shared.weights[lane] = grad_weight;
    block.sync();
    if (block.thread() == 0 && unit.grad_weight != nullptr) {
      double total = 0.0;
      for (int l = 0; l < kNormLanes; ++l) total += shared.weights[l];
      *unit.grad_weight = static_cast<Acc>(total);
    }
  }

 private:
  PFN_DEVICE void clear(const Block& block, const ThroughUnit<Acc>& unit) const {
    if (block.thread() == 0 && unit.grad_weight != nullptr) *unit.grad_weight = Acc{0};
    for (int i = block.thread(); i < sizes.channels; i += kThreads) {
      if (unit.grad_gamma != nullptr) unit.grad_gamma[i] = Acc{0};
      if (unit.grad_beta != nullptr) unit.grad_beta[i] = Acc{0};
    }
  }
  // Returns what the channel adds to the gradient of the weight.
  PFN_DEVICE double close(
      const ThroughUnit<Acc>& unit, int channel, double weight, double sum, double dot) const {
    const NormUnit<Acc>& norm = unit.norm;
    Acc* through = unit.through + channel;
    const int64_t step = sizes.channels;
    if (!norm.exists) {
      through[0] = static_cast<Acc>(weight);
      through[step] = through[2 * step] = through[3 * step] = Acc{0};
      return dot;
    }
    const double gamma = norm.scale_of(channel), beta = norm.shift_of(channel);
    const double mean = norm.statistics[channel];
    const double rho = norm.inverse_deviation(sizes.channels, channel);
    const Acc near = static_cast<Acc>(mean);
    // The dots were taken above the rounded mean.
    const double rounded = static_cast<double>(near) - mean;
    const double normalised = rho * (dot + rounded * sum);
    if (unit.grad_gamma != nullptr) {
      unit.grad_gamma[channel] = static_cast<Acc>(weight * normalised);
    }
    if (unit.grad_beta != nullptr) {
      unit.grad_beta[channel] = static_cast<Acc>(weight * sum);
    }
    const double count = static_cast<double>(sizes.pixels());
    const double by_g = gamma * weight * rho;
    const double by_y = unit.is_given ? 0.0 : -by_g * rho * normalised / count;
    const double rest = unit.is_given ? 0.0 : by_y * rounded - by_g * sum / count;
    through[0] = static_cast<Acc>(by_g);
    through[step] = static_cast<Acc>(by_y);
    through[2 * step] = near;
    through[3 * step] = static_cast<Acc>(rest);
    return gamma * normalised + beta * sum;
  }
};

}  // namespace pfn::cuda
