#include "dots.h"

#include <cmath>

#include "../ops.h"

namespace octavo::avx512vnni {

#include "../common/linear.h"
#include "../common/linear.inl.h"

}  // namespace octavo::avx512vnni
