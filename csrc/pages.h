// Pages of mapped files.
#pragma once
#include <cstddef>
#include <cstdint>

namespace octavo {

// Reads every page of [data, data + size) and enters it into the page table, so that no later access faults.
void populate(const uint8_t* data, size_t size);

}  // namespace octavo
