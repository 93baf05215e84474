// Stops Objective-C exceptions: the one file that needs the language.
#include <objc/objc.h>

int mlx_ane_objc_try(void (*body)(void *), void *context, id *exception) {
  @try {
    body(context);
  } @catch (id caught) {
    *exception = caught;
    return 1;
  }
  return 0;
}
