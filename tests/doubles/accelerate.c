/* Double of Accelerate: plain loops under the names that the project calls. */
#include <stddef.h>
