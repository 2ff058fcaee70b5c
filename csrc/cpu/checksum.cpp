// A checksum of all bytes of some arrays, to detect changes.
#include <vector>

#include "cpu/kernels.h"
#include "cpu/panels.h"
#include "cpu/tables.h"
#include "cpu/team.h"

namespace hrm::HRM_ISA {
namespace {

constexpr int64_t kChunk = 1 << 16;  // bytes per task
constexpr int kStreams = 4;          // independent registers, because a multiplication has a latency of 10 cycles

// Each step is invertible, so two arrays that differ in one place always have different checksums.
HRM_INLINE uint64_t mix(uint64_t hash, uint64_t word) {
  hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
  return hash ^ hash >> 32;
}

// MurmurHash3's mixing of 32-bit words (public domain), one word per lane. Its rotations carry every bit to every
// other bit; without them, sign changes in two words of a lane would cancel.
HRM_INLINE BitVec take(BitVec hash, BitVec word) {
  word *= 0xcc9e2d51u;
  word = word << 15 | word >> 17;
  word *= 0x1b873593u;
  hash ^= word;
  hash = hash << 13 | hash >> 19;
  return hash * 5 + 0xe6546b64u;
}

uint64_t chunk_checksum(const char* bytes, int64_t count) {
  constexpr int64_t kStep = kStreams * sizeof(BitVec);
  BitVec hash[kStreams];
  for (int stream = 0; stream < kStreams; ++stream) {
    for (int lane = 0; lane < kLanes; ++lane) hash[stream][lane] = static_cast<uint32_t>(stream * kLanes + lane);
  }
  const auto step = [&](const char* from) HRM_ALWAYS {
#pragma GCC unroll 4
    for (int stream = 0; stream < kStreams; ++stream) {
      BitVec words;
      std::memcpy(&words, from + stream * sizeof words, sizeof words);
      hash[stream] = take(hash[stream], words);
    }
  };
  int64_t at = 0;
  for (; at + kStep <= count; at += kStep) step(bytes + at);
  if (at < count) {
    char rest[kStep] = {};
    std::memcpy(rest, bytes + at, count - at);
    step(rest);
  }
  uint64_t result = static_cast<uint64_t>(count);
  for (int stream = 0; stream < kStreams; ++stream) {
    for (int lane = 0; lane < kLanes; ++lane) result = mix(result, hash[stream][lane]);
  }
  return result;
}

uint64_t checksum(const void* const* arrays, const int64_t* bytes, int64_t count, int threads) {
  struct Chunk {
    const char* bytes;
    int64_t count;
    uint64_t checksum;
  };
  std::vector<Chunk> chunks;
  for (int64_t i = 0; i < count; ++i) {
    const char* from = static_cast<const char*>(arrays[i]);
    for (int64_t at = 0; at < bytes[i]; at += kChunk) {
      chunks.push_back({from + at, bytes[i] - at < kChunk ? bytes[i] - at : kChunk, 0});
    }
  }
  const int64_t tasks = static_cast<int64_t>(chunks.size());
  parallel(threads < tasks ? threads
           : tasks         ? static_cast<int>(tasks)
                           : 1,
           [&](Team::Member& team) {
             team.for_each(tasks, [&](int64_t task) {
               chunks[task].checksum = chunk_checksum(chunks[task].bytes, chunks[task].count);
             });
           });
  uint64_t result = 0;
  for (const Chunk& chunk : chunks) result = mix(result, chunk.checksum);
  return result;
}

}  // namespace

void add_checksum(hrm_cpu_kernels& table) { table.checksum = checksum; }

}  // namespace hrm::HRM_ISA
