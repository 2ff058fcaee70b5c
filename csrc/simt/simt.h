// Runs CUDA kernels on a CPU, for tests: every CUDA thread is a fibre, all of them on the one thread that launches.
//
// What it checks on the way: threads that part at a barrier or at an instruction of the whole warp, accesses outside
// shared memory (its pages are guarded), or in that of a block of the cluster that has ended, misaligned ones of the
// asynchronous instructions, deadlock. Each stops the launch with an error that names kernel, block and thread. What it
// makes visible: shared memory starts as NaN, the target of an asynchronous copy is NaN until the copying thread waits
// for it, and fibres run in an order that configure() chooses, so that a missing barrier or wait gives another result
// instead of luck.
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

// What a running thread is: the values of CUDA's built-in variables, and its asynchronous copies.
struct Thread {
  Index thread_index, block_index, block_size, grid_size;
  unsigned lane = 0;
  unsigned rank = 0;  // of its block in the cluster
  Block* block = nullptr;
  std::vector<Copy> copies;  // not yet landed, oldest first
  std::vector<int> groups;   // how many of them each committed group has, oldest first
};

Thread& self();

// Stops the launch. printf-like; the kernel's name, the block and the thread are put in front.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The block's shared memory.
unsigned char* shared_memory();

// Stops the launch unless [pointer, pointer + bytes) lies in the block's shared memory, aligned to `bytes`.
void check_shared(const char* what, const void* pointer, size_t bytes);

// Waits for all threads of the block. Threads must meet at the same place of the source.
void block_barrier(const char* file, int line);

// The barrier of the cluster: arrives, waits for all threads of the cluster that have not ended. Each thread does both
// in turn.
void cluster_arrive();
void cluster_wait();

// What block `rank` of the cluster has where this block has `pointer` in its shared memory.
void* shared_of_block(const void* pointer, unsigned rank);

// Waits for all 32 threads of the warp, which must meet at the same `what`; then `execute` gets all lanes' arguments.
void warp_collective(const char* what, void* arguments, void (*execute)(void* const* lanes));

// Lets the other threads run, for loops that wait for a value in memory: `word` is what was read.
// A launch in which every thread only sees the words it has seen before is a deadlock.
void poll(const void* address, uint64_t word);

struct Launch {
  const void* kernel;  // its address, for its name
  Index grid, block;
  size_t shared_bytes;
  bool cooperative;  // all blocks at the same time; otherwise one cluster after another
  unsigned cluster;  // blocks of a cluster
};

// What the runtime answers about the pretended device.
struct Device {
  int multiprocessors, capability, cooperative;  // capability: major
  int shared_bytes;                              // that a block may ask for
  int resident_blocks;                           // of a multiprocessor
};
extern Device device;

// Runs `body` as every thread of the launch. Returns false where one of the checks failed; error() says which.
bool run(const Launch& launch, const std::function<void()>& body);
const char* error();

}  // namespace simt

extern "C" {
// The pretended device, and the order in which threads run. 0 and 1 let each warp and block run as far as it gets
// before the next, ascending and descending; other numbers are seeds of a random order.
void simt_configure(const simt::Device* device, unsigned order);
// Memory of `bytes` with an inaccessible page right behind: to test kernels for accesses past the end of their tensors.
void* simt_guarded_alloc(size_t bytes);
}
