#include "simt/simt.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "simt/race.h"

// A switch saves callee-saved registers on the old stack and restores them from the new one.
#if defined(__x86_64__)
asm(R"(
.text
.type simt_switch, @function
simt_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
constexpr int kSavedWords = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]; stp x21, x22, [sp, #16]; stp x23, x24, [sp, #32]; stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]; stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]; stp d10, d11, [sp, #112]; stp d12, d13, [sp, #128]; stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]; ldp x21, x22, [sp, #16]; ldp x23, x24, [sp, #32]; ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]; ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]; ldp d10, d11, [sp, #112]; ldp d12, d13, [sp, #128]; ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_switch, .-simt_switch
)");
#else
#error "simt: write simt_switch for this processor"
#endif

extern "C" __attribute__((visibility("hidden"))) void simt_switch(void** leave, void* enter);

namespace simt {
namespace {

constexpr size_t kStack = 1 << 16;
const size_t kPage = static_cast<size_t>(sysconf(_SC_PAGESIZE));

enum class State { ready, at_warp, at_block, at_cluster, done };

struct Fibre;

struct Warp {
  Fibre* lanes = nullptr;  // 32 lanes
  const char* what = nullptr;
  void* arguments[32];
  int arrived = 0;
};

struct Fibre {
  Thread thread;
  State state = State::ready;
  void* stack_pointer = nullptr;
  Warp* warp = nullptr;
  const void* polled = nullptr;  // address and word of the last poll
  uint64_t word = 0;
  bool idle = false;                 // its last run only polled known words
  uint64_t arrivals = 0, waits = 0;  // at the cluster barrier
};

struct Cluster {
  std::vector<Block*> blocks;         // by rank
  unsigned running = 0, arrived = 0;  // numbers of threads
  uint64_t phase = 0;                 // barriers passed
};

}  // namespace

struct Block {
  Cluster* cluster = nullptr;
  unsigned char *map = nullptr, *shared = nullptr;
  size_t map_bytes = 0, shared_bytes = 0;
  std::vector<Fibre*> fibres;
  std::vector<Warp> warps;
  const char* file = nullptr;  // of the barrier
  int line = 0;
  int arrived = 0;
  size_t ended = 0;  // threads
};

namespace {

unsigned order_seed = 0;
std::string message;  // of the failed check; empty without one
const std::function<void()>* body = nullptr;
Fibre* running = nullptr;
void* scheduler_stack = nullptr;
std::string kernel_name;
struct sigaction actions_before[2];

size_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

unsigned char* map_memory(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    perror("simt: mmap");
    abort();
  }
  return static_cast<unsigned char*>(memory);
}

void protect(unsigned char* memory, size_t bytes) {
  if (mprotect(memory, bytes, PROT_NONE)) {
    perror("simt: mprotect");
    abort();
  }
}

std::string name_of(const void* kernel) {
  Dl_info info;
  if (!dladdr(kernel, &info) || !info.dli_sname) return "kernel";
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> plain(abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status), free);
  std::string name = status == 0 ? plain.get() : info.dli_sname;
  return name.substr(0, name.find('('));
}

void leave_to_scheduler() { simt_switch(&running->stack_pointer, scheduler_stack); }

// Called at the end of a block: checks for writes outside its shared memory, and closes this memory to the cluster.
void end_block(const Block& block) {
  const unsigned char* end = block.map + block.map_bytes - kPage;
  auto touched = [](unsigned char byte) { return byte != 0xff; };
  if (std::any_of(block.map + kPage, block.shared, touched) ||
      std::any_of(static_cast<const unsigned char*>(block.shared) + block.shared_bytes, end, touched)) {
    const Index& b = block.fibres[0]->thread.block_index;
    char text[160];
    snprintf(text, sizeof text, ", block (%u, %u, %u): wrote outside its %zu bytes of shared memory", b.x, b.y, b.z,
             block.shared_bytes);
    message = kernel_name + text;
  }
  protect(block.map, block.map_bytes);
}

// Opens the cluster barrier if all running threads have arrived.
void pass_cluster_barrier(Cluster& cluster) {
  if (cluster.arrived < cluster.running || cluster.arrived == 0) return;
  cluster.arrived = 0;
  ++cluster.phase;
  for (Block* block : cluster.blocks) {
    for (Fibre* fibre : block->fibres) {
      if (fibre->state == State::at_cluster) fibre->state = State::ready;
    }
  }
}

void start_fibre() {
  (*body)();
  running->state = State::done;
  Block& block = *running->thread.block;
  Cluster& cluster = *block.cluster;
  --cluster.running;
  if (running->arrivals > cluster.phase) --cluster.arrived;
  pass_cluster_barrier(cluster);
  if (++block.ended == block.fibres.size()) end_block(block);
  leave_to_scheduler();
  abort();  // a finished fibre never runs again
}

void prepare(Fibre& fibre, unsigned char* stack) {
  protect(stack, kPage);  // the stack grows towards this page
  void** top = reinterpret_cast<void**>(stack + kStack);
#if defined(__x86_64__)
  *--top = nullptr;  // aligns the stack as after a call
  *--top = reinterpret_cast<void*>(&start_fibre);
  top -= kSavedWords;
#else
  top -= 20;
  top[11] = reinterpret_cast<void*>(&start_fibre);
#endif
  fibre.stack_pointer = top;
}

std::string describe(const Fibre& fibre) {
  const Index& b = fibre.thread.block_index;
  const Index& t = fibre.thread.thread_index;
  char text[160];
  snprintf(text, sizeof text, "block (%u, %u, %u), thread (%u, %u, %u)", b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

std::string place(const Fibre& fibre) {
  switch (fibre.state) {
    case State::done: return "has ended";
    case State::at_warp: return std::string("waits at ") + fibre.warp->what;
    case State::at_cluster: return "waits at the barrier of the cluster";
    case State::at_block: return "waits at __syncthreads in line " + std::to_string(fibre.thread.block->line);
    default: return fibre.polled ? "polls memory" : "runs";
  }
}

// Ends the launch from within a fibre.
[[noreturn]] void stop(const std::string& text) {
  message = kernel_name + ", " + describe(*running) + ": " + text;
  leave_to_scheduler();
  abort();
}

void on_fault(int number, siginfo_t* info, void*) {
  if (!running) {  // not in a kernel: behave as without a handler
    sigaction(number, &actions_before[number == SIGBUS], nullptr);
    return;
  }
  const auto* address = static_cast<unsigned char*>(info->si_addr);
  char text[256];
  snprintf(text, sizeof text, "access to memory that is not there (%p)", static_cast<const void*>(address));
  for (const Block* block : running->thread.block->cluster->blocks) {
    if (address < block->map || address >= block->map + block->map_bytes) continue;
    const bool own = block == running->thread.block, ended = block->ended == block->fibres.size();
    snprintf(text, sizeof text, "access at byte %td of %zu bytes of shared memory%s%s", address - block->shared,
             block->shared_bytes, own ? "" : " of another block", ended ? ", which has ended" : "");
  }
  stop(text);
}

// Allocates the shared memory of a block: filled with NaN, and directly before a guarded page. The bytes before it are
// filled too, and checked at the end of the block.
void make_shared(Block& block, size_t bytes) {
  block.shared_bytes = bytes;
  block.map_bytes = pages(bytes) + 2 * kPage;
  block.map = map_memory(block.map_bytes);
  block.shared = block.map + block.map_bytes - kPage - (bytes + 15) / 16 * 16;
  memset(block.map, 0xff, block.map_bytes);
  protect(block.map, kPage);
  protect(block.map + block.map_bytes - kPage, kPage);
}

// Runs a thread until it waits or ends. Returns false if it only polled known words.
bool resume(Fibre& fibre) {
  if (fibre.state != State::ready || !message.empty()) return false;
  running = &fibre;
  fibre.idle = false;
  simt_switch(&scheduler_stack, fibre.stack_pointer);
  running = nullptr;
  return !fibre.idle;
}

// Runs each warp and each block until it waits, one after another, so that a missing wait shows.
bool run_greedily(std::vector<Block>& blocks, bool descending) {
  const auto at = [descending](size_t i, size_t count) { return descending ? count - 1 - i : i; };
  bool progress = false;
  for (size_t b = 0; b < blocks.size(); ++b) {
    Block& block = blocks[at(b, blocks.size())];
    for (bool block_progress = true; block_progress;) {
      block_progress = false;
      for (size_t w = 0; w < block.warps.size(); ++w) {
        Warp& warp = block.warps[at(w, block.warps.size())];
        for (bool warp_progress = true; warp_progress;) {
          warp_progress = false;
          for (size_t lane = 0; lane < 32; ++lane) warp_progress |= resume(warp.lanes[at(lane, 32)]);
          block_progress |= warp_progress;
        }
      }
      progress |= block_progress;
    }
  }
  return progress;
}

// Runs the given blocks together until all their threads have ended.
void run_blocks(std::vector<Block>& blocks, std::vector<Fibre>& fibres) {
  std::vector<Fibre*> order;
  for (Fibre& fibre : fibres) order.push_back(&fibre);
  std::mt19937 random(order_seed);
  const auto waits = [](const Fibre* fibre) { return fibre->state != State::done; };
  while (std::any_of(order.begin(), order.end(), waits)) {
    bool progress = false;
    if (order_seed < 2) {
      progress = run_greedily(blocks, order_seed == 1);
    } else {
      std::shuffle(order.begin(), order.end(), random);
      for (Fibre* fibre : order) progress |= resume(*fibre);
    }
    if (!message.empty()) return;
    if (progress) continue;
    const Fibre& first = **std::find_if(order.begin(), order.end(), waits);
    message = kernel_name + ", " + describe(first) + ": " + place(first) + " for ever";
    for (const Fibre* other : order) {
      if (place(*other) != place(first) || other->thread.block != first.thread.block) {
        message += "; " + describe(*other) + " " + place(*other);
        break;
      }
    }
    return;
  }
}

}  // namespace

namespace {

// The number of a block's first thread, counted through the grid.
unsigned first_number(const Block& block) {
  const Thread& thread = block.fibres[0]->thread;
  const Index &b = thread.block_index, &g = thread.grid_size;
  return ((b.z * g.y + b.y) * g.x + b.x) * static_cast<unsigned>(block.fibres.size());
}

// What threads release when they arrive at a barrier of the cluster, and acquire after it.
uint64_t phase_key(const Cluster& cluster, uint64_t phase) {
  return reinterpret_cast<uintptr_t>(&cluster) ^ (phase + 1) << 48;
}

}  // namespace

Device device{4, 8, 1, 99 << 10, 1};  // default: the smallest limits of all targets

Thread& self() { return running->thread; }

bool in_kernel() { return running != nullptr; }

void fail(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  stop(text);
}

unsigned char* shared_memory() { return running->thread.block->shared; }

void check_shared(const char* what, const void* pointer, size_t bytes) {
  const Block& block = *running->thread.block;
  const ptrdiff_t at = static_cast<const unsigned char*>(pointer) - block.shared;
  if (at < 0 || at + static_cast<ptrdiff_t>(bytes) > static_cast<ptrdiff_t>(block.shared_bytes)) {
    fail("%s at byte %td of %zu bytes of shared memory", what, at, block.shared_bytes);
  }
  if (at % static_cast<ptrdiff_t>(bytes)) fail("%s at byte %td of shared memory, not aligned to %zu", what, at, bytes);
}

void block_barrier(const char* file, int line) {
  Block& block = *running->thread.block;
  if (block.arrived == 0) {
    block.file = file;
    block.line = line;
  } else if (block.line != line || strcmp(block.file, file)) {
    fail("__syncthreads in line %d while other threads of its block wait at the one in line %d", line, block.line);
  }
  if (++block.arrived == static_cast<int>(block.fibres.size())) {
    block.arrived = 0;
    race::synchronize(first_number(block), static_cast<unsigned>(block.fibres.size()));
    for (Fibre* fibre : block.fibres) fibre->state = State::ready;
    return;
  }
  running->state = State::at_block;
  leave_to_scheduler();
}

void cluster_arrive() {
  Cluster& cluster = *running->thread.block->cluster;
  if (running->arrivals > running->waits) fail("barrier.cluster.arrive twice without a wait between");
  race::release(phase_key(cluster, running->arrivals++));
  ++cluster.arrived;
  pass_cluster_barrier(cluster);
}

void cluster_wait() {
  if (running->waits == running->arrivals) fail("barrier.cluster.wait without having arrived");
  const Cluster& cluster = *running->thread.block->cluster;
  const uint64_t key = phase_key(cluster, running->waits++);
  if (running->waits > cluster.phase) {
    running->state = State::at_cluster;
    leave_to_scheduler();
  }
  race::acquire(key);
}

void* shared_of_block(const void* pointer, unsigned rank) {
  const Block& block = *running->thread.block;
  const std::vector<Block*>& blocks = block.cluster->blocks;
  if (rank >= blocks.size()) fail("mapa of block %u of a cluster of %zu", rank, blocks.size());
  return blocks[rank]->shared + (static_cast<const unsigned char*>(pointer) - block.shared);
}

void warp_collective(const char* what, void* arguments, void (*execute)(void* const* lanes)) {
  Warp& warp = *running->warp;
  if (warp.arrived == 0) {
    warp.what = what;
  } else if (strcmp(warp.what, what)) {
    fail("%s while other threads of its warp wait at %s", what, warp.what);
  }
  const unsigned lane = running->thread.lane;
  warp.arguments[lane] = arguments;
  if (++warp.arrived == 32) {
    execute(warp.arguments);
    warp.arrived = 0;
    for (int i = 0; i < 32; ++i) warp.lanes[i].state = State::ready;
    return;
  }
  running->state = State::at_warp;
  leave_to_scheduler();
}

void start_copy(void* to, const void* from) {
  race::access(race::Access::copy_start, to, 16);
  if (from) race::access(race::Access::read, from, 16);
  memset(to, 0xff, 16);
  running->thread.copies.push_back({to, from});
}

void commit_copies() {
  Thread& thread = running->thread;
  int grouped = 0;
  for (int copies : thread.groups) grouped += copies;
  thread.groups.push_back(static_cast<int>(thread.copies.size()) - grouped);
}

void wait_for_copies(int pending) {
  Thread& thread = running->thread;
  while (static_cast<int>(thread.groups.size()) > pending) {
    const auto end = thread.copies.begin() + thread.groups.front();
    for (auto copy = thread.copies.begin(); copy != end; ++copy) {
      race::access(race::Access::copy_end, copy->to, 16);
      if (copy->from) {
        race::access(race::Access::read, copy->from, 16);
        memcpy(copy->to, copy->from, 16);
      } else {
        memset(copy->to, 0, 16);
      }
    }
    thread.copies.erase(thread.copies.begin(), end);
    thread.groups.erase(thread.groups.begin());
  }
}

void order_warp() {
  const Fibre& first = running->warp->lanes[0];
  race::synchronize(
      first_number(*first.thread.block) + static_cast<unsigned>(running->warp - first.thread.block->warps.data()) * 32,
      32);
}

void poll(const void* address, uint64_t word) {
  running->idle = running->polled == address && running->word == word;
  running->polled = address;
  running->word = word;
  if (running->idle) leave_to_scheduler();
  running->idle = false;
}

bool run(const Launch& launch, const std::function<void()>& kernel) {
  message.clear();
  body = &kernel;
  kernel_name = name_of(launch.kernel);
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const unsigned grid = launch.grid.x * launch.grid.y * launch.grid.z;
  if (threads == 0 || threads % 32 || threads > 1024 || grid == 0) {
    message = kernel_name + ": " + std::to_string(grid) + " blocks of " + std::to_string(threads) +
              " threads; blocks of whole warps are expected, of 1024 threads at most";
    return false;
  }
  if (launch.cluster == 0 || launch.cluster > 8 || launch.grid.x % launch.cluster) {
    message = kernel_name + ": clusters of " + std::to_string(launch.cluster) + " in a grid of " +
              std::to_string(launch.grid.x) + " blocks; clusters of 1 to 8 blocks are expected that divide the grid";
    return false;
  }
  const unsigned together = launch.cooperative ? grid : launch.cluster;
  const size_t stack_bytes = kStack * together * threads;
  unsigned char* stacks = map_memory(stack_bytes);
  std::vector<Block> blocks(together);
  std::vector<Cluster> clusters(together / launch.cluster);
  std::vector<Fibre> fibres(static_cast<size_t>(together) * threads);

  // Handle faults on a separate stack, because the current one may be full.
  std::vector<unsigned char> fault_stack(1 << 16);
  stack_t signal_stack{}, signal_stack_before{};
  signal_stack.ss_sp = fault_stack.data();
  signal_stack.ss_size = fault_stack.size();
  sigaltstack(&signal_stack, &signal_stack_before);
  struct sigaction action{};
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGSEGV, &action, &actions_before[0]);
  sigaction(SIGBUS, &action, &actions_before[1]);

  race::start_launch(threads);
  for (unsigned first = 0; first < grid && message.empty(); first += together) {
    race::start_blocks(order_seed == 0 ? first : grid - together - first, together, stacks, stack_bytes);
    std::fill(clusters.begin(), clusters.end(), Cluster());
    for (unsigned b = 0; b < together; ++b) {
      Block& block = blocks[b];
      block = Block();
      block.cluster = &clusters[b / launch.cluster];
      block.cluster->blocks.push_back(&block);
      block.cluster->running += threads;
      make_shared(block, launch.shared_bytes);
      block.warps.resize(threads / 32);
      // clusters may run in any order: in descending order of threads, start with the last
      const unsigned index = order_seed == 0 ? first + b : grid - together - first + b;
      for (unsigned t = 0; t < threads; ++t) {
        Fibre& fibre = fibres[b * threads + t];
        fibre = Fibre();
        fibre.thread.block = &block;
        fibre.thread.block_size = launch.block;
        fibre.thread.grid_size = launch.grid;
        fibre.thread.block_index = {index % launch.grid.x, index / launch.grid.x % launch.grid.y,
                                    index / launch.grid.x / launch.grid.y};
        fibre.thread.thread_index = {t % launch.block.x, t / launch.block.x % launch.block.y,
                                     t / launch.block.x / launch.block.y};
        fibre.thread.lane = t % 32;
        fibre.thread.rank = b % launch.cluster;
        fibre.warp = &block.warps[t / 32];
        if (t % 32 == 0) fibre.warp->lanes = &fibre;
        block.fibres.push_back(&fibre);
        prepare(fibre, stacks + kStack * (b * threads + t));
      }
    }
    run_blocks(blocks, fibres);
    for (Block& block : blocks) {
      race::forget(block.map, block.map_bytes);
      munmap(block.map, block.map_bytes);
    }
  }
  running = nullptr;
  sigaction(SIGSEGV, &actions_before[0], nullptr);
  sigaction(SIGBUS, &actions_before[1], nullptr);
  sigaltstack(&signal_stack_before, nullptr);
  munmap(stacks, stack_bytes);
  return message.empty();
}

const char* error() { return message.c_str(); }

}  // namespace simt

extern "C" {

void simt_configure(const simt::Device* device, unsigned order) {
  simt::device = *device;
  simt::order_seed = order;
}

void* simt_guarded_alloc(size_t bytes) {
  const size_t size = simt::pages(bytes);
  unsigned char* memory = simt::map_memory(size + simt::kPage);
  memset(memory, 0xff, size);
  simt::protect(memory + size, simt::kPage);
  return memory + size - (bytes + 15) / 16 * 16;
}
}
