// Detects data races in kernels: conflicting accesses that no barrier, fence or flag orders, whatever order of threads
// the launch happens to take.
//
// Each thread has a vector clock: for every other thread of the blocks that run together, how much of it has happened
// before. Barriers, __syncwarp, releases, acquires, and fences with atomic operations join clocks. Blocks that do not
// run together are ordered by the last two only. For every two bytes of memory the last write and the last three reads
// are kept, with the clocks of their threads, and whether an asynchronous copy is under way. An access is a race if it
// conflicts with one that has not happened before. The compiler reports the accesses: kernels are compiled with
// -fsanitize=thread, and race.cpp has the functions that this calls, in place of ThreadSanitizer's. A thread that
// acquires late gets everything released until then, also by threads that ran far ahead, which may order what is a race
// in another order of threads: run several orders. What csrc/simt/ptx.h emulates reports its accesses itself.
//
// Source: FastTrack (Flanagan and Freund, PLDI 2009), for clocks and epochs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace simt::race {

enum class Access { read, write, atomic, copy_start, copy_end };

extern bool enabled;

// A launch of `blocks` blocks of `threads` threads starts: all memory is as if nobody had accessed it.
void start_launch(unsigned threads);
// The blocks from `first` on run together; `stacks` are theirs, which are not checked.
void start_blocks(unsigned first, unsigned blocks, const void* stacks, size_t stack_bytes);
// Memory of whole pages is about to be unmapped, and its addresses may come back with other contents.
void forget(const void* memory, size_t bytes);
// Checks and records an access of the running thread, and stops the launch if it is a race.
void access(Access kind, const void* address, size_t bytes);
// A barrier of `count` threads from `first` on, counted through the grid.
void synchronize(unsigned first, unsigned count);
// What the running thread did before release(key) happens before what a thread does after acquire(key).
void release(uint64_t key);
void acquire(uint64_t key);
// __threadfence, and an atomic operation at `key`: what a thread did before its fence happens before what another does
// after a fence that follows its atomic operation at the same place.
void fence();
void relaxed(uint64_t key);

}  // namespace simt::race

// Functions that act for other threads or on the harness's memory are not instrumented.
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread"), noinline))
