// Streams as queues, and who runs next.
//
// NOTE [ orders ]
// A stream runs its items in order; a wait for an event holds it up. Which of the streams goes on is open on a device,
// and a program is right only if it is right in every order. SIMULATED_GPU_ORDER chooses:
//   eager    everything at once: no overlap at all
//   lazy     nothing before the host waits, then the default stream first: other streams are as late as they may be
//   lane     all but the default stream at once: it is as late as it may be
//   random   a few items of random streams after each launch (SIMULATED_GPU_SEED)
#pragma once
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

namespace simulated {

struct Item {
  std::function<bool()> ready;
  std::function<void()> run;
};

struct Stream {
  int priority = 0;
  std::deque<Item> items;
};

inline std::string setting(const char* name, const char* otherwise) {
  const char* found = std::getenv(name);
  return found ? found : otherwise;
}

// Lets other Python threads run while this one waits for the device, if it holds the interpreter's lock.
class WithoutInterpreter {
 public:
  WithoutInterpreter() {
    static const auto holds = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
    static const auto runs = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "Py_IsInitialized"));
    static const auto save = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
    if (holds && runs && save && runs() && holds()) state_ = save();
  }
  ~WithoutInterpreter() {
    static const auto restore = reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"));
    if (state_) restore(state_);
  }
  WithoutInterpreter(const WithoutInterpreter&) = delete;
  WithoutInterpreter& operator=(const WithoutInterpreter&) = delete;

 private:
  void* state_ = nullptr;
};

class Device {
 public:
  Device()
      : order_(setting("SIMULATED_GPU_ORDER", "lazy")), random_(std::stoul(setting("SIMULATED_GPU_SEED", "0"))) {
    streams_.push_back(new Stream);
  }

  Stream* stream(cudaStream_t handle) {
    // 1 and 2 are CUDA's names for default streams.
    return reinterpret_cast<uintptr_t>(handle) < 3 ? streams_[0] : reinterpret_cast<Stream*>(handle);
  }

  Stream* make(int priority) {
    const Lock lock(mutex_);
    streams_.push_back(new Stream{priority, {}});
    return streams_.back();
  }

  void put(cudaStream_t handle, std::function<void()> run, std::function<bool()> ready = [] { return true; }) {
    const Lock lock(mutex_);
    stream(handle)->items.push_back({std::move(ready), std::move(run)});
  }

  bool idle(Stream* one) {
    const Lock lock(mutex_);
    return one->items.empty();
  }

  // Run until `over`; `first`, if any, is what the host waits for.
  void drain(const std::function<bool()>& over, Stream* first) {
    if (executes()) return;
    const WithoutInterpreter free;
    Lock lock(mutex_);
    while (executing_) ended_.wait(lock);
    executing_ = executes() = true;
    while (!over()) {
      if ((first && step(lock, first)) || next(lock)) continue;
      if (over()) break;
      std::fprintf(stderr, "simulated GPU: every stream waits for another\n");
      std::abort();
    }
    executing_ = executes() = false;
    ended_.notify_all();
  }

  void drain(cudaStream_t handle) {
    Stream* const one = stream(handle);
    drain([one] { return one->items.empty(); }, one);
  }

  void drain() {
    drain([this] { return std::all_of(streams_.begin(), streams_.end(), [](Stream* s) { return s->items.empty(); }); },
          nullptr);
  }

  // Something was launched: what the order lets run at once.
  void launched() {
    if (executes() || order_ == "lazy") return;
    const WithoutInterpreter free;
    Lock lock(mutex_);
    if (executing_) return;
    executing_ = executes() = true;
    if (order_ == "random") {
      for (auto left = random_() % 4 ? random_() % 3 : random_() % 40; left > 0; left--)
        step(lock, streams_[random_() % streams_.size()]);
    } else {
      for (bool moved = true; moved;) {
        moved = false;
        for (size_t n = order_ == "lane" ? 1 : 0; n < streams_.size(); n++)
          while (step(lock, streams_[n])) moved = true;
      }
    }
    executing_ = executes() = false;
    ended_.notify_all();
  }

 private:
  using Lock = std::unique_lock<std::recursive_mutex>;

  static bool& executes() {
    static thread_local bool value = false;
    return value;
  }

  // The next item of a stream, if it need not wait. The lock is not held while it runs.
  static bool step(Lock& lock, Stream* one) {
    if (one->items.empty() || !one->items.front().ready()) return false;
    const auto run = std::move(one->items.front().run);
    one->items.pop_front();
    lock.unlock();
    run();
    lock.lock();
    return true;
  }

  bool next(Lock& lock) {
    std::vector<Stream*> all = streams_;
    if (order_ == "random") std::shuffle(all.begin(), all.end(), random_);
    if (order_ == "lane") std::rotate(all.begin(), all.begin() + 1, all.end());
    return std::any_of(all.begin(), all.end(), [&](Stream* one) { return step(lock, one); });
  }

  const std::string order_;
  std::mt19937 random_;
  std::recursive_mutex mutex_;
  std::condition_variable_any ended_;
  bool executing_ = false;
  std::vector<Stream*> streams_;  // never destroyed: programs keep handles of streams they gave back
};

inline Device& device() {
  static auto* const one = new Device;
  return *one;
}

}  // namespace simulated
