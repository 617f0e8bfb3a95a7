#include "pages.h"

#include <sys/mman.h>
#include <unistd.h>

namespace octavo {

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; older headers do not know it, older kernels refuse it
#endif

void populate(const uint8_t* data, size_t size) {
  if (size == 0) return;
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  const size_t before = reinterpret_cast<uintptr_t>(data) % page;
  if (madvise(const_cast<uint8_t*>(data) - before, size + before, MADV_POPULATE_READ) == 0) return;
  for (size_t at = 0; at < size; at += page) (void)*static_cast<const volatile uint8_t*>(data + at);
}

}  // namespace octavo
