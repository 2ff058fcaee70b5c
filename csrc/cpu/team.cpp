#include "cpu/team.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <cstdlib>
#include <exception>
#include <new>
#include <thread>
#include <vector>

// For wheels: dlsym as glibc older than 2.34 has it, too. (The default version changed with the library it is in.)
#if defined(HRM_PORTABLE) && defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver dlsym,dlsym@GLIBC_2.2.5");
#endif

namespace hrm {

void Team::wait(std::atomic<int64_t>& finished) {
  const unsigned generation = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    finished.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
    if (spins < 4000) {
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    } else {
      sched_yield();  // another program uses the core of the last member
    }
  }
}

namespace {

// The entry points of GNU OpenMP, which LLVM's runtime has too. They are looked up, not linked: torch wheels contain a
// runtime under another name, and a second runtime would compete with it for the cores.
struct OpenMP {
  void (*parallel)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
  int (*rank)();
  int (*size)();
};

const OpenMP* openmp() {
  static const OpenMP found = {
      reinterpret_cast<decltype(OpenMP::parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel")),
      reinterpret_cast<decltype(OpenMP::rank)>(dlsym(RTLD_DEFAULT, "omp_get_thread_num")),
      reinterpret_cast<decltype(OpenMP::size)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads")),
  };
  return found.parallel && found.rank && found.size ? &found : nullptr;
}

// A child of fork() has no threads of its parent's OpenMP runtime; waiting for them would never end.
std::atomic<bool> forked{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// The size of a team is known only once its members run, so they wait for it.
struct Region {
  void (*body)(void*, Team&, int);
  void* context;
  std::atomic<Team*> team{nullptr};
  alignas(Team) unsigned char room[sizeof(Team)];

  Region(void (*body_)(void*, Team&, int), void* context_) : body(body_), context(context_) {}
  void begin(int members) { team.store(new (room) Team(members), std::memory_order_release); }
  void work(int rank) {
    Team* made;
    while (!(made = team.load(std::memory_order_acquire))) sched_yield();
    body(context, *made, rank);
  }
};

}  // namespace

void parallel_region(int threads, void (*body)(void* context, Team& team, int rank), void* context) {
  if (threads <= 1) {
    Team team(1);
    body(context, team, 0);
    return;
  }
  Region region(body, context);
  if (const OpenMP* omp = forked ? nullptr : openmp()) {
    omp->parallel(
        [](void* data) {
          Region& r = *static_cast<Region*>(data);
          const int rank = openmp()->rank();
          if (rank == 0) r.begin(openmp()->size());
          r.work(rank);
        },
        &region, static_cast<unsigned>(threads), 0);
    return;
  }
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int rank = 1; rank < threads; ++rank) others.emplace_back([&region, rank] { region.work(rank); });
  } catch (const std::exception&) {  // the system starts no more threads: the existing ones do the work
  }
  region.begin(static_cast<int>(others.size()) + 1);
  region.work(0);
  for (std::thread& other : others) other.join();
}

namespace {
struct Memory {
  float* data = nullptr;
  size_t floats = 0;
  ~Memory() { std::free(data); }
};
thread_local Memory memory;
}  // namespace

float* workspace(size_t floats) {
  if (floats > memory.floats) {
    std::free(memory.data);
    memory = {};
    constexpr size_t kLine = 64, kHugePage = 2 << 20;
    const size_t unit = floats * sizeof(float) < 2 * kHugePage ? kLine : kHugePage;
    const size_t bytes = (floats * sizeof(float) + unit - 1) / unit * unit;
    memory.data = static_cast<float*>(std::aligned_alloc(unit, bytes));
    if (!memory.data) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    if (unit == kHugePage) madvise(memory.data, bytes, MADV_HUGEPAGE);  // fewer look-ups of addresses; may be refused
#endif
    memory.floats = floats;
  }
  return memory.data;
}

}  // namespace hrm
