#include "simt/race.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "simt/simt.h"

namespace simt::race {

bool enabled = false;

namespace {

using Clock = std::vector<uint32_t>;

// How much of other threads has happened before.
struct View {
  Clock now;                         // by thread of the blocks that run together
  std::map<unsigned, Clock> before;  // by block that ran before them, and its threads
};

constexpr uint32_t kAtomic = 1u << 31;       // of a writer: its write was atomic
constexpr uint32_t kUnderWay = 0xffffffffu;  // time of a write that an asynchronous copy has not ended
constexpr size_t kGranule = 2, kPage = 4096;

struct Epoch {
  uint32_t thread = 0;  // number in the grid, from 1 on; 0: none
  uint32_t time = 0;
};

struct Cell {
  Epoch write;
  Epoch reads[3];
};

struct ThreadClock {
  std::shared_ptr<const View> others;  // shared by all threads that have passed the same barrier
  uint32_t own = 1;
  std::shared_ptr<const View> fence;  // what its last fence makes later atomic operations release
  View observed;                      // what a later fence acquires of its atomic operations
};

unsigned threads_of_block = 1, first_thread = 0;
std::vector<ThreadClock> clocks;
std::unordered_map<uint64_t, View> released;
std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
uintptr_t last_page = 0, stacks_begin = 0, stacks_end = 0;
Cell* last_cells = nullptr;

unsigned number_of(const Thread& thread) {
  const Index &b = thread.block_index, &g = thread.grid_size, &t = thread.thread_index, &s = thread.block_size;
  return ((b.z * g.y + b.y) * g.x + b.x) * threads_of_block + (t.z * s.y + t.y) * s.x + t.x;
}

Cell* cells_at(uintptr_t address) {
  const uintptr_t page = address / kPage;
  if (page != last_page || !last_cells) {
    std::unique_ptr<Cell[]>& cells = pages[page];
    if (!cells) cells.reset(new Cell[kPage / kGranule]);
    last_page = page;
    last_cells = cells.get();
  }
  return last_cells + address % kPage / kGranule;
}

void join(Clock& into, const Clock& other) {
  if (into.size() < other.size()) into.resize(other.size(), 0);
  for (size_t i = 0; i < other.size(); ++i) into[i] = std::max(into[i], other[i]);
}

void join(View& into, const View& other) {
  join(into.now, other.now);
  for (const auto& [block, clock] : other.before) join(into.before[block], clock);
}

ThreadClock& running_clock() { return clocks[number_of(self()) - first_thread]; }

bool happened_before(const Epoch& epoch, unsigned me) {
  const unsigned thread = (epoch.thread & ~kAtomic) - 1;
  if (thread == me) return true;
  const unsigned at = thread - first_thread;  // wraps for blocks before them
  const View& view = *clocks[me - first_thread].others;
  if (at < clocks.size()) return epoch.time <= view.now[at];
  const auto block = view.before.find(thread / threads_of_block);
  return block != view.before.end() && epoch.time <= block->second[thread % threads_of_block];
}

[[noreturn]] void report(const char* what, const void* address, const char* other, const Epoch& epoch) {
  const unsigned thread = (epoch.thread & ~kAtomic) - 1;
  const auto at = static_cast<const unsigned char*>(address) - shared_memory();
  char place[64] = "memory";
  if (at >= 0 && at < (1 << 20)) snprintf(place, sizeof place, "byte %td of shared memory", at);
  fail("race: %s of %s, and %s by thread %u of block %u; nothing orders them", what, place, other,
       thread % threads_of_block, thread / threads_of_block);
}

const char* name_of(Access kind) {
  switch (kind) {
    case Access::read: return "a read";
    case Access::write: return "a write";
    case Access::atomic: return "an atomic operation";
    default: return "an asynchronous copy";
  }
}

void check_cell(Cell& cell, Access kind, const void* address, unsigned me) {
  const uint32_t time = clocks[me - first_thread].own;
  if (kind == Access::copy_end) {
    cell.write = {me + 1, time};
    return;
  }
  if (cell.write.thread) {
    if (cell.write.time == kUnderWay) {
      report(name_of(kind), address, "an asynchronous copy that is under way", cell.write);
    }
    const bool atomics = kind == Access::atomic && cell.write.thread & kAtomic;
    if (!atomics && !happened_before(cell.write, me)) report(name_of(kind), address, "a write", cell.write);
  }
  if (kind == Access::read) {
    Epoch* place = nullptr;
    for (Epoch& read : cell.reads) {
      if (read.thread == me + 1) {
        read.time = time;
        return;
      }
      if (!place && (!read.thread || happened_before(read, me))) place = &read;
    }
    if (!place) {  // a fourth reader beside three others: the oldest is forgotten
      std::rotate(cell.reads, cell.reads + 1, cell.reads + 3);
      place = cell.reads + 2;
    }
    *place = {me + 1, time};
    return;
  }
  for (Epoch& read : cell.reads) {
    if (read.thread && !happened_before(read, me)) report(name_of(kind), address, "a read", read);
    read = Epoch();
  }
  cell.write = {(me + 1) | (kind == Access::atomic ? kAtomic : 0), kind == Access::copy_start ? kUnderWay : time};
}

}  // namespace

void start_launch(unsigned threads) {
  threads_of_block = threads;
  pages.clear();
  last_cells = nullptr;
  released.clear();
}

void start_blocks(unsigned first, unsigned blocks, const void* stacks, size_t stack_bytes) {
  for (auto& [key, view] : released) {  // the blocks that have run become earlier ones
    for (size_t begin = 0; begin < view.now.size(); begin += threads_of_block) {
      const auto from = view.now.begin() + static_cast<std::ptrdiff_t>(begin);
      join(view.before[(first_thread + static_cast<unsigned>(begin)) / threads_of_block],
           Clock(from, from + threads_of_block));
    }
    view.now.assign(size_t{blocks} * threads_of_block, 0);
  }
  first_thread = first * threads_of_block;
  const auto nothing = std::make_shared<View>();
  nothing->now.assign(size_t{blocks} * threads_of_block, 0);
  clocks.assign(nothing->now.size(), {nothing, 1, nullptr, {}});
  stacks_begin = reinterpret_cast<uintptr_t>(stacks);
  stacks_end = stacks_begin + stack_bytes;
}

void forget(const void* memory, size_t bytes) {
  if (!enabled) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(memory) / kPage;
  for (uintptr_t page = first; page < first + bytes / kPage; ++page) pages.erase(page);
  last_cells = nullptr;
}

void access(Access kind, const void* address, size_t bytes) {
  if (!enabled || !in_kernel()) return;
  const auto begin = reinterpret_cast<uintptr_t>(address);
  if (begin >= stacks_begin && begin < stacks_end) return;
  const unsigned me = number_of(self());
  for (uintptr_t at = begin / kGranule * kGranule; at < begin + bytes; at += kGranule) {
    check_cell(*cells_at(at), kind, reinterpret_cast<const void*>(std::max(at, begin)), me);
  }
}

void synchronize(unsigned first, unsigned count) {
  if (!enabled) return;
  ThreadClock* const begin = &clocks[first - first_thread];
  auto joined = std::make_shared<View>(*begin->others);
  const View* last = begin->others.get();
  for (unsigned i = 0; i < count; ++i) {
    if (begin[i].others.get() != last) join(*joined, *(last = begin[i].others.get()));
  }
  for (unsigned i = 0; i < count; ++i) joined->now[first - first_thread + i] = begin[i].own++;
  for (unsigned i = 0; i < count; ++i) begin[i].others = joined;
}

void release(uint64_t key) {
  if (!enabled) return;
  const unsigned at = number_of(self()) - first_thread;
  ThreadClock& mine = clocks[at];
  View& view = released[key];
  join(view, *mine.others);
  view.now[at] = mine.own++;
}

void acquire(uint64_t key) {
  if (!enabled) return;
  const auto found = released.find(key);
  if (found == released.end()) return;
  ThreadClock& mine = running_clock();
  auto joined = std::make_shared<View>(*mine.others);
  join(*joined, found->second);
  mine.others = std::move(joined);
}

void fence() {
  if (!enabled) return;
  const unsigned at = number_of(self()) - first_thread;
  ThreadClock& mine = clocks[at];
  auto joined = std::make_shared<View>(*mine.others);
  join(*joined, mine.observed);
  mine.observed = View();
  mine.others = joined;
  auto all = std::make_shared<View>(*joined);
  all->now[at] = mine.own++;
  mine.fence = std::move(all);
}

void relaxed(uint64_t key) {
  if (!enabled) return;
  ThreadClock& mine = running_clock();
  View& view = released[key];
  if (mine.fence) join(view, *mine.fence);
  join(mine.observed, view);
}

}  // namespace simt::race

// What -fsanitize=thread calls. Names and meaning: GCC's gcc/sanitizer.def.
extern "C" {
#define SIMT_ACCESSES(bytes)                                                                             \
  void __tsan_read##bytes(const void* at) { simt::race::access(simt::race::Access::read, at, bytes); }   \
  void __tsan_write##bytes(const void* at) { simt::race::access(simt::race::Access::write, at, bytes); } \
  void __tsan_volatile_read##bytes(const void* at) { __tsan_read##bytes(at); }                           \
  void __tsan_volatile_write##bytes(const void* at) { __tsan_write##bytes(at); }                         \
  void __tsan_unaligned_read##bytes(const void* at) { __tsan_read##bytes(at); }                          \
  void __tsan_unaligned_write##bytes(const void* at) { __tsan_write##bytes(at); }
SIMT_ACCESSES(1)
SIMT_ACCESSES(2)
SIMT_ACCESSES(4)
SIMT_ACCESSES(8)
SIMT_ACCESSES(16)
void __tsan_read_range(const void* at, size_t bytes) { simt::race::access(simt::race::Access::read, at, bytes); }
void __tsan_write_range(const void* at, size_t bytes) { simt::race::access(simt::race::Access::write, at, bytes); }
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// Whether launches are checked. Only kernels that are compiled with -fsanitize=thread report their accesses.
void simt_check_races(int enabled) { simt::race::enabled = enabled != 0; }
}
