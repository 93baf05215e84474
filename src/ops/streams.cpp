// Streams of ops: MLX's scheduler says, before a fork, which have a thread.
#include "ops/streams.h"

#include <pthread.h>

#include <algorithm>
#include <memory>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "blas/blas.h"
#include "device/runner.h"
#include "kernels/adam.h"
#include "mlx/scheduler.h"
#include "ops/outputs.h"

namespace mlx_ane {

namespace {

using mx::scheduler::Scheduler;

using Threads =
    std::unordered_map<int, std::unique_ptr<mx::scheduler::StreamThread>>;

struct Members {
  Threads Scheduler::* threads;
  std::shared_mutex Scheduler::* mutex;
};
Members members();

// Only private members of the scheduler say which streams have a thread, and
// the arguments of an explicit instantiation may name them.
template <Threads Scheduler::* threads, std::shared_mutex Scheduler::* mutex>
struct Reader {
  friend Members members() {
    return {threads, mutex};
  }
};
template struct Reader<&Scheduler::threads_, &Scheduler::threads_mtx_>;

/// Indices of the streams that have, or in a child had, a thread.
std::vector<int> streams_with_thread() {
  auto& scheduler = mx::scheduler::scheduler();
  std::shared_lock lock(scheduler.*members().mutex);
  std::vector<int> streams;
  for (auto& [stream, thread] : scheduler.*members().threads) {
    streams.push_back(stream);
  }
  return streams;
}

/// Streams whose threads were left in the parent; empty but in a child.
std::vector<int> left_behind;
std::vector<int> at_fork;

[[maybe_unused]] const int registered = pthread_atfork(
    [] { at_fork = streams_with_thread(); },
    nullptr,
    [] { left_behind.swap(at_fork); });

bool has(const std::vector<int>& streams, mx::Stream stream) {
  return std::find(streams.begin(), streams.end(), stream.index) !=
         streams.end();
}

/// Variables that tasks read: a wrong value is an error of the first call, not
/// of a task, whose exception MLX delivers later.
void check_environment() {
  [[maybe_unused]] static const bool checked = [] {
    blas::threads();
    kept_output_limit();
    runner_settings();
    kernels::adam_implementation();
    return true;
  }();
}

/// This thread's stream for calls of device "ane".
mx::Stream engine_stream() {
  static auto stream = mx::new_thread_local_stream(mx::Device::cpu);
  return mx::to_stream(stream);
}

mx::Stream chosen_stream(
    const std::string& op,
    const mx::StreamOrDevice& stream,
    const Place& place) {
  // Under Fallback::error all work stays on one stream: MLX would deliver the
  // exception of a second one again in a later eval.
  if (place.device && place.device->name() == "ane" &&
      std::holds_alternative<std::monostate>(stream) &&
      runner_settings().fallback != Fallback::error) {
    return engine_stream();
  }
  // Where MLX has no GPU, asking it for a GPU stream fails in its own words.
  auto* type = std::get_if<mx::Device::DeviceType>(&stream);
  auto* whole = std::get_if<mx::Device>(&stream);
  bool gpu = (type && *type == mx::Device::gpu) ||
             (whole && *whole == mx::Device::gpu);
  auto resolved = gpu ? mx::Stream(0, mx::Device::gpu)
                      : mx::to_stream(stream, mx::Device::cpu);
  if (resolved.device != mx::Device::cpu) {
    throw std::invalid_argument(
        "[mlx_ane." + op +
        "] got a GPU stream, need a CPU stream; pass stream=mx.cpu or none.");
  }
  return resolved;
}

}  // namespace

mx::Stream resolve_stream(
    const std::string& op,
    const mx::StreamOrDevice& stream,
    const Place& place) {
  check_environment();
  auto chosen = chosen_stream(op, stream, place);
  if (has(left_behind, chosen) || (place.device && !left_behind.empty())) {
    throw std::runtime_error(
        "[mlx_ane." + op +
        "] got a call in a process forked after MLX had started threads, need "
        "a process with its own; start workers with multiprocessing's "
        "\"spawn\", or fork before the first evaluation.");
  }
  return chosen;
}

void wait_for(mx::Stream stream) {
  auto threads = streams_with_thread();
  if (has(threads, stream) && !has(left_behind, stream)) {
    mx::synchronize(stream);
  }
}

void synchronize() {
  if (auto stream = mx::peek_default_stream(mx::Device::cpu)) {
    wait_for(*stream);
  }
  wait_for(engine_stream());
}

}  // namespace mlx_ane
