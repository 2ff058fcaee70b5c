// Runs CUDA kernels on a CPU, for tests: every CUDA thread is a fibre, all of them on the one thread that launches.
//
// It detects threads that diverge at a barrier or at a warp-wide instruction, accesses outside shared memory (its pages
// are guarded) or to the shared memory of a block that has ended, misaligned accesses of asynchronous instructions, and
// deadlocks. Each stops the launch with an error that names kernel, block and thread. It also makes races visible:
// shared memory starts as NaN, the target of an asynchronous copy is NaN until the copying thread waits for it, and
// fibres run in an order that configure() selects, so that a missing barrier or wait changes the result.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace simt {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Copy {
  void* to;
  const void* from;  // nullptr: zeros
};

struct Block;

// A running thread: the values of CUDA's built-in variables, and its asynchronous copies.
struct Thread {
  Index thread_index, block_index, block_size, grid_size;
  unsigned lane = 0;
  unsigned rank = 0;  // of its block in the cluster
  Block* block = nullptr;
  std::vector<Copy> copies;  // pending copies, oldest first
  std::vector<int> groups;   // number of copies in each committed group, oldest first
};

Thread& self();

// Whether a thread of a kernel runs, and not code of the host.
bool in_kernel();

// Stops the launch with a printf-like message, after the kernel's name, the block and the thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The block's shared memory.
unsigned char* shared_memory();

// Stops the launch unless [pointer, pointer + bytes) lies in the block's shared memory, aligned to `bytes`.
void check_shared(const char* what, const void* pointer, size_t bytes);

// Waits for all threads of the block, which must call it from the same line.
void block_barrier(const char* file, int line);

// Orders the memory accesses of the warp's threads, for the race check; called while all of them wait.
void order_warp();

// The barrier of the cluster: arrive, and wait for all running threads of the cluster. Each thread alternates the two.
void cluster_arrive();
void cluster_wait();

// The address in the shared memory of block `rank` of the cluster that corresponds to `pointer` in this block's.
void* shared_of_block(const void* pointer, unsigned rank);

// Waits for all 32 threads of the warp, which must pass the same `what`, and calls `execute` with all lanes' arguments.
void warp_collective(const char* what, void* arguments, void (*execute)(void* const* lanes));

// Asynchronous copies of 16 bytes: to shared memory, from nullptr zeros. The target is NaN until the thread waits for
// the copy, so early reads get NaN. wait_for_copies() leaves the last `pending` committed groups under way.
void start_copy(void* to, const void* from);
void commit_copies();
void wait_for_copies(int pending);

// Lets the other threads run, for loops that wait for a value in memory; `word` is the value read. A launch in which
// every thread reads only the words that it read before is a deadlock.
void poll(const void* address, uint64_t word);

struct Launch {
  const void* kernel;  // its address, to look up its name
  Index grid, block;
  size_t shared_bytes;
  bool cooperative;  // all blocks at the same time; otherwise one cluster after another
  unsigned cluster;  // blocks of a cluster
};

// The attributes of the simulated device.
struct Device {
  int multiprocessors, capability, cooperative;  // capability: major
  int shared_bytes;                              // largest size for a block
  int resident_blocks;                           // per multiprocessor
};
extern Device device;

// Runs `body` as every thread of the launch. Returns false if a check failed; error() returns its message.
bool run(const Launch& launch, const std::function<void()>& body);
const char* error();

}  // namespace simt

extern "C" {
// Sets the simulated device and the order of threads. With 0 and 1 each warp and block runs until it waits, in
// ascending or descending order; other numbers are seeds of a random order.
void simt_configure(const simt::Device* device, unsigned order);
// Allocates `bytes` directly before an inaccessible page, to test kernels for accesses beyond the end of tensors.
void* simt_guarded_alloc(size_t bytes);
}
