// The timeline: a vector of events behind a mutex, written out as JSON.
#include "trace/timeline.h"

#include <mutex>
#include <sstream>
#include <vector>

#include "host/process.h"

namespace mlx_ane::trace {

namespace {

using Clock = std::chrono::steady_clock;

struct Event {
  const char* kind;
  std::string layer;
  int64_t bytes;
  int64_t flops;
  Clock::time_point start;
  Clock::time_point end;
  int thread;
};

struct Timeline {
  std::mutex mutex;
  std::vector<Event> events;
  Clock::time_point origin;
  std::atomic<bool> open{false};
};

Timeline& timeline() {
  return host::of_process<Timeline>();
}

int thread_number() {
  static std::atomic<int> next{1};
  static thread_local int number = next++;
  return number;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
    }
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + '"';
}

double microseconds(Clock::duration d) {
  return std::chrono::duration<double, std::micro>(d).count();
}

}  // namespace

bool timeline_open() {
  return timeline().open.load(std::memory_order_relaxed);
}

void start_timeline() {
  std::lock_guard lock(timeline().mutex);
  timeline().events.clear();
  timeline().origin = Clock::now();
  timeline().open = true;
}

std::string stop_timeline() {
  timeline().open = false;
  std::lock_guard lock(timeline().mutex);
  std::ostringstream out;
  out.precision(3);
  out << std::fixed << '[';
  const char* separator = "\n";
  for (auto& e : timeline().events) {
    out << separator << R"({"ph": "X", "pid": 1, "tid": )" << e.thread
        << R"(, "name": )" << quoted(e.kind) << R"(, "cat": "mlx_ane", "ts": )"
        << microseconds(e.start - timeline().origin) << R"(, "dur": )"
        << microseconds(e.end - e.start) << R"(, "args": {"layer": )"
        << quoted(e.layer) << R"(, "bytes": )" << e.bytes << R"(, "flops": )"
        << e.flops << "}}";
    separator = ",\n";
  }
  out << "\n]";
  timeline().events.clear();
  return out.str();
}

void Span::begin(const std::string& layer, int64_t bytes, int64_t flops) {
  layer_ = layer;
  bytes_ = bytes;
  flops_ = flops;
  start_ = Clock::now();
}

void Span::end() {
  Event event{
      kind_,
      std::move(layer_),
      bytes_,
      flops_,
      start_,
      Clock::now(),
      thread_number()};
  std::lock_guard lock(timeline().mutex);
  if (timeline().open) {
    timeline().events.push_back(std::move(event));
  }
}

}  // namespace mlx_ane::trace
