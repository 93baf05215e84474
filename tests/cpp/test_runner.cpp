// The runner over the emulated device: values, fallback, health, store,
// watchdog.
#include "check.h"

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <random>
#include <thread>

#include "device/device_matmul.h"
#include "device/emulated/emulated.h"
#include "device/emulated/faults.h"
#include "device/executables.h"
#include "device/watchdog.h"

using namespace mlx_ane;

namespace {

struct Problem {
  int64_t s, k, n;
  std::vector<float> x, w, y;
  std::shared_ptr<trace::Layer> layer = std::make_shared<trace::Layer>("l");

  Problem(int64_t s, int64_t k, int64_t n)
      : s(s), k(k), n(n), x(s * k), w(n * k), y(s * n, -7.0f) {
    std::mt19937 random(static_cast<unsigned>(s + k + n));
    std::normal_distribution<float> normal;
    for (auto& value : x) {
      value = normal(random);
    }
    for (auto& value : w) {
      value = normal(random) / std::sqrt(static_cast<float>(k));
    }
  }

  MatmulCall call(std::shared_ptr<StagedWeight> staged = nullptr) {
    MatmulCall out;
    out.x = {x.data(), Float::f32, s, k, k, 1};
    out.w = {w.data(), Float::f32, n, k, k, 1};
    out.y = {y.data(), Float::f32, s, n, n};
    out.staged = std::move(staged);
    out.layer = layer;
    return out;
  }

  /// ‖y - x wᵀ‖ / ‖x wᵀ‖ in double.
  double error() const {
    double off = 0, all = 0;
    for (int64_t r = 0; r < s; ++r) {
      for (int64_t c = 0; c < n; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < k; ++i) {
          sum += static_cast<double>(x[r * k + i]) * w[c * k + i];
        }
        off += (y[r * n + c] - sum) * (y[r * n + c] - sum);
        all += sum * sum;
      }
    }
    return std::sqrt(off / all);
  }
};

Device& device() {
  return get_device("emulated");
}

/// Settings, faults and health as at the start, whatever a test did.
struct Fresh {
  explicit Fresh(Fallback fallback, const std::string& faults = "") {
    RunnerSettings settings;
    settings.fallback = fallback;
    set_runner_settings(settings);
    emulated::reset();
    emulated::set_faults(faults);
    executable_cache().clear();
    restore_devices();
    trace::reset_counters();
  }
  ~Fresh() {
    emulated::set_faults("");
    restore_devices();
  }
};

}  // namespace

TEST(values_of_every_tiling) {
  Fresh fresh(Fallback::error);
  for (auto layout : layouts) {
    auto settings = runner_settings();
    settings.layout = layout;
    set_runner_settings(settings);
    for (auto [s, k, n] :
         {std::array<int64_t, 3>{64, 64, 64},
          {33, 1500, 70},
          {2100, 40, 50},
          {100, 31, 33}}) {
      Problem p(s, k, n);
      run_matmul(device(), p.call());
      CHECK(p.error() < 5e-4);
      CHECK(p.layer->device_calls == 1);
    }
  }
}

TEST(high_precision_is_nearer_by_far) {
  Fresh fresh(Fallback::error);
  Problem p(64, 512, 64);
  auto call = p.call();
  run_matmul(device(), call);
  auto plain = p.error();
  call.high_precision = true;
  run_matmul(device(), call);
  CHECK(p.error() < 2.5e-4);
  CHECK(p.error() < plain);
}

TEST(an_outlier_row_leaves_the_others_alone) {
  Fresh fresh(Fallback::error);
  Problem p(64, 256, 64);
  p.x[5 * 256 + 3] = 6e4f;
  run_matmul(device(), p.call());
  for (int64_t r = 0; r < 64; ++r) {
    double off = 0, all = 0;
    for (int64_t c = 0; c < 64; ++c) {
      double sum = 0;
      for (int64_t i = 0; i < 256; ++i) {
        sum += static_cast<double>(p.x[r * 256 + i]) * p.w[c * 256 + i];
      }
      off += std::pow(p.y[r * 64 + c] - sum, 2);
      all += sum * sum;
    }
    CHECK(std::sqrt(off / all) < 1e-3);
  }
}

TEST(few_rows_are_placed_on_the_blas) {
  Fresh fresh(Fallback::error);
  Problem p(31, 64, 64);
  run_matmul(device(), p.call());
  CHECK(p.error() < 1e-6);
  CHECK(p.layer->stats()["placed_few_rows"] == 1);
}

TEST(every_failure_is_recomputed_and_counted) {
  for (auto [fault, cause] :
       {std::pair{"compile_error", "compile_failed"},
        {"load_fails", "load_failed"},
        {"evaluate_false", "evaluate_failed"},
        {"writes_nothing", "wrote_nothing"},
        {"nan", "nonfinite"},
        {"zeros", "wrong_values"},
        {"out_of_memory", "out_of_memory"}}) {
    Fresh fresh(Fallback::allow, fault);
    Problem p(64, 96, 64);
    run_matmul(device(), p.call());
    CHECK(p.error() < 1e-6);
    CHECK(p.layer->stats()[std::string("fallback_") + cause] == 1);
  }
}

TEST(a_failure_under_error_names_layer_device_and_cause) {
  Fresh fresh(Fallback::error, "evaluate_false");
  Problem p(64, 96, 64);
  CHECK_THROWS(
      DeviceFailure,
      "l on device emulated: evaluate_failed",
      run_matmul(device(), p.call()));
  for (auto value : p.y) {
    CHECK(std::isnan(value));
  }
}

TEST(a_failing_layer_pauses_longer_each_time) {
  Fresh fresh(Fallback::allow, "evaluate_false:count=2");
  Problem p(64, 64, 64);
  // fails, one call on the BLAS, fails, two calls on the BLAS, works
  for (int i = 0; i < 6; ++i) {
    run_matmul(device(), p.call());
  }
  auto stats = p.layer->stats();
  CHECK(stats["fallback_evaluate_failed"] == 2);
  CHECK(stats["placed_back_off"] == 3);
  CHECK(stats["device_calls"] == 1);
}

TEST(a_device_that_keeps_failing_is_disabled) {
  Fresh fresh(Fallback::allow, "evaluate_false");
  for (int i = 0; i < 8; ++i) {
    Problem p(64, 64, 64);
    p.layer = std::make_shared<trace::Layer>(std::to_string(i));  // none waits
    run_matmul(device(), p.call());
  }
  CHECK(disabled(device()).has_value());
  Problem p(64, 64, 64);
  run_matmul(device(), p.call());
  CHECK(p.layer->stats()["placed_device_out"] == 1);
  restore_devices();
  CHECK(!disabled(device()).has_value());
}

TEST(non_finite_operands_are_not_the_devices_fault) {
  Fresh fresh(Fallback::error);
  Problem p(64, 64, 64);
  p.x[3 * 64] = NAN;
  p.w[9 * 64] = INFINITY;
  run_matmul(device(), p.call());
  CHECK(p.layer->device_calls == 1);
  CHECK(!std::isfinite(p.y[3 * 64]));
  CHECK(std::isfinite(p.y[0]));
}

TEST(zeros_raise_no_alarm) {
  Fresh fresh(Fallback::error);
  Problem p(64, 64, 64);
  std::fill(p.w.begin(), p.w.end(), 0.0f);
  run_matmul(device(), p.call());
  CHECK(p.layer->device_calls == 1);
  // Disjoint supports: all products are zero although no row is.
  Problem q(64, 64, 64);
  for (int64_t r = 0; r < 64; ++r) {
    for (int64_t i = 0; i < 64; ++i) {
      (i < 32 ? q.x : q.w)[r * 64 + i] = 0.0f;
    }
  }
  run_matmul(device(), q.call());
  CHECK(q.layer->device_calls == 1);
}

TEST(spot_checks_find_wrong_values) {
  Fresh fresh(Fallback::allow, "wrong_values");
  auto settings = runner_settings();
  settings.spot_check = 1;
  set_runner_settings(settings);
  Problem p(64, 64, 64);
  run_matmul(device(), p.call());
  CHECK(p.layer->stats()["fallback_wrong_values"] == 1);
  CHECK(p.error() < 1e-6);
}

TEST(staged_weights_are_packed_once_and_owned) {
  Fresh fresh(Fallback::error);
  WeightStore store;
  auto owner = std::make_shared<int>(1);
  Problem p(64, 64, 64);
  auto plan = plan_matmul(64, 64, 64, device().limits());
  auto w = p.call().w;
  auto staged = store.get(device(), owner, w, plan);
  CHECK(owner.use_count() == 2);
  run_matmul(device(), p.call(staged));
  CHECK(staged->ready());
  CHECK(store.get(device(), owner, w, plan) == staged);
  auto packed = trace::counters()["weights_staged_bytes"];
  run_matmul(device(), p.call(store.get(device(), owner, w, plan)));
  CHECK(trace::counters()["weights_staged_bytes"] == packed);
  CHECK(p.error() < 5e-4);
  // A longer x needs larger surfaces: staged anew.
  auto longer = plan_matmul(2048, 64, 64, device().limits());
  CHECK(store.get(device(), owner, w, longer) != staged);
  store.take(owner);
  CHECK(store.bytes() == 0 && owner.use_count() == 1);
}

TEST(the_store_keeps_to_its_budget_and_forgets_the_dead) {
  WeightStore store;
  auto plan = plan_matmul(64, 64, 64, device().limits());
  MatrixView w{nullptr, Float::f32, 64, 64, 64, 1};
  auto one = std::make_shared<int>(1);
  CHECK(store.get(device(), one, w, plan) != nullptr);
  auto bytes = store.bytes();
  store.set_limit(bytes);
  auto two = std::make_shared<int>(2);
  CHECK(store.get(device(), two, w, plan) == nullptr);  // one is in use
  one.reset();
  CHECK(store.bytes() == 0);  // swept: nobody else owns it
  CHECK(store.get(device(), two, w, plan) != nullptr);
  // Quantised weights are told apart by their scales.
  store.set_limit(1 << 30);
  auto scales = std::make_shared<int>(3);
  auto with = store.get(device(), two, w, plan, {scales});
  CHECK(with != store.get(device(), two, w, plan));
  CHECK(with == store.get(device(), two, w, plan, {scales}));
}

MatmulShape shape_of(int i, int64_t rows = 64) {
  return {rows, 32, 32 * (i + 1), Layout::natural};
}

TEST(programs_are_unloaded_for_what_is_asked_for_twice) {
  Fresh fresh(Fallback::error);
  auto& cache = executable_cache();
  auto budget = device().limits().resident_programs;
  for (int i = 0; i < budget; ++i) {
    CHECK(cache.get(device(), shape_of(i)).program != nullptr);
  }
  CHECK(cache.get(device(), shape_of(budget)).program == nullptr);
  auto held = cache.get(device(), shape_of(1)).program;  // pinned by its user
  CHECK(cache.get(device(), shape_of(budget)).program != nullptr);
  CHECK(static_cast<int>(cache.size()) == budget);
  CHECK(trace::counters()["executables_evicted"] == 1);
  CHECK(cache.get(device(), shape_of(1)).program == held);
  // The oldest left, and now waits for its second time in turn.
  CHECK(cache.get(device(), shape_of(0)).program == nullptr);
  // Where there is no room the next larger bucket serves.
  CHECK(cache.get(device(), shape_of(1, 32)).program == held);
  CHECK(trace::counters()["executables_merged"] == 1);
  CHECK(
      cache.get(device(), shape_of(1, 8)).program ==
      nullptr);  // too much padding
  cache.clear();
}

TEST(surfaces_of_programs_keep_to_a_budget_of_bytes) {
  Fresh fresh(Fallback::error);
  ExecutableCache cache;
  CHECK(cache.get(device(), shape_of(0)).program != nullptr);
  auto one = cache.bytes();
  CHECK(one == 3 * device().limits().min_surface_bytes);
  cache.set_limit(2 * one);
  CHECK(cache.get(device(), shape_of(1)).program != nullptr);
  CHECK(cache.get(device(), shape_of(2)).program == nullptr);
  CHECK(
      cache.get(device(), shape_of(2)).program != nullptr);  // asked for twice
  CHECK(cache.size() == 2 && cache.bytes() == 2 * one);
  cache.set_limit(one);
  CHECK(cache.size() == 1);  // a lower limit evicts at once
  cache.set_limit(one / 2);
  cache.get(device(), shape_of(3));
  CHECK(cache.get(device(), shape_of(3)).program == nullptr);  // never fits
  cache.clear();
  CHECK(cache.bytes() == 0);
}

TEST(a_refusal_is_a_placement_and_not_asked_again_at_once) {
  Fresh fresh(Fallback::error, "cap_reached");
  for (int i = 0; i < 8; ++i) {
    Problem p(64, 64, 64);
    run_matmul(device(), p.call());
    CHECK(p.error() < 1e-6);
    CHECK(p.layer->stats()["placed_over_budget"] == 1);
  }
  // Asked at the 1st, 2nd and 5th call: pauses of 1, 3 and 7.
  CHECK(trace::counters()["compiles"] == 3);
  CHECK(!disabled(device()));
}

TEST(a_call_past_its_bound_is_left_behind) {
  using namespace std::chrono_literals;
  auto gate = std::make_shared<std::atomic<bool>>(false);
  auto stuck = [gate] {
    while (!*gate) {
      std::this_thread::sleep_for(1ms);
    }
  };
  CHECK(run_bounded([] {}, 1000ms));
  CHECK_THROWS(
      std::runtime_error,
      "from the call",
      run_bounded([] { throw std::runtime_error("from the call"); }, 1000ms));
  CHECK(!run_bounded(stuck, 20ms));
  CHECK(abandoned_calls() == 1);
  CHECK(run_bounded([] {}, 1000ms));
  *gate = true;
  for (int i = 0; i < 1000 && abandoned_calls() > 0; ++i) {
    std::this_thread::sleep_for(1ms);
  }
  CHECK(abandoned_calls() == 0);
}

TEST(many_threads_share_programs_and_store) {
  Fresh fresh(Fallback::error);
  WeightStore store;
  auto owner = std::make_shared<int>(1);
  Problem shared(64, 64, 64);
  auto plan = plan_matmul(64, 64, 64, device().limits());
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      Problem mine(64, 64, 64);  // the same numbers, a y of its own
      for (int i = 0; i < 20; ++i) {
        auto call =
            mine.call(store.get(device(), owner, shared.call().w, plan));
        call.w = shared.call().w;
        run_matmul(device(), call);
        wrong += mine.error() > 5e-4;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(wrong == 0);
}

CHECK_MAIN()
