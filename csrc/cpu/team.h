// Threads that run a pass together: one parallel region with phases of tasks and a barrier after each phase.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace hrm {

class Team {
 public:
  explicit Team(int size) : size_(size) {}

  int size() const { return size_; }

  // One member's view. Every member makes the same calls of for_each in the same order.
  class Member {
   public:
    Member(Team& team, int rank) : team_(team), rank_(rank) {}

    int rank() const { return rank_; }

    // Runs task(i) for i in [0, count), each on any free member; returns when all are done.
    template <class Task>
    void for_each(int64_t count, Task task) {
      if (team_.size_ == 1) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
      }
      std::atomic<int64_t>& next = team_.next_[phase_ & 1];
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
      team_.wait(next);
      ++phase_;
    }

   private:
    Team& team_;
    int rank_;
    unsigned phase_ = 0;
  };

 private:
  // The barrier. The last member to arrive resets the counter of the finished phase; the next phase uses the other one.
  void wait(std::atomic<int64_t>& finished);

  int size_;
  alignas(64) std::atomic<int64_t> next_[2] = {};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> generation_{0};
};

// Runs body(context, team, rank) on `threads` threads: on the OpenMP runtime that torch has loaded, so that both
// share threads; else, and in a child of fork, on new threads. team.size() may be smaller than `threads`.
void parallel_region(int threads, void (*body)(void* context, Team& team, int rank), void* context);

template <class Body>
void parallel(int threads, Body body) {
  parallel_region(
      threads,
      [](void* context, Team& team, int rank) {
        Team::Member member(team, rank);
        (*static_cast<Body*>(context))(member);
      },
      &body);
}

// Memory that a calling thread keeps between calls, aligned to 64 bytes; its contents are undefined.
// Throws std::bad_alloc.
float* workspace(size_t floats);

}  // namespace hrm
