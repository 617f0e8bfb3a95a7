#include "dots.h"

#include <cmath>

#include "../ops.h"

namespace octavo::portable {

#include "../common/linear.h"
#include "../common/linear.inl.h"

}  // namespace octavo::portable
