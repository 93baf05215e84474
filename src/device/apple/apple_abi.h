// Own declarations of the few system symbols that the Apple route calls.
// They hold on macOS and, for tests, over the doubles on Linux; no SDK is
// needed.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__APPLE__)
// Included where it exists, so that a clash with ours is a compile error.
#include <objc/objc.h>
#include <objc/runtime.h>
#else
extern "C" {
struct objc_class;
struct objc_object {
  objc_class* isa;
};
struct objc_selector;
struct objc_method;
typedef objc_class* Class;
typedef objc_object* id;
typedef const objc_selector* SEL;
typedef const objc_method* Method;
typedef void (*IMP)(void);

id objc_getClass(const char* name);
const char* class_getName(Class cls);
SEL sel_registerName(const char* name);
IMP class_getMethodImplementation(Class cls, SEL selector);
unsigned char class_respondsToSelector(Class cls, SEL selector);
Method class_getInstanceMethod(Class cls, SEL selector);
void method_getReturnType(Method method, char* type, size_t size);
const char* method_getTypeEncoding(Method method);
}
// An inline function in GCC's header, so not exported by its runtime.
inline Class object_getClass(id object) {
  return object ? object->isa : nullptr;
}
#endif

namespace mlx_ane::apple {

/// BOOL: _Bool on arm64, a char elsewhere.
#if defined(__APPLE__) && defined(__aarch64__)
using ObjcBool = bool;
#elif defined(__APPLE__)
using ObjcBool = signed char;
#else
using ObjcBool = unsigned char;
#endif

/// IOSurfaceLockOptions.
inline constexpr uint32_t lock_read_only = 1;

}  // namespace mlx_ane::apple

extern "C" {
struct __IOSurface;

void CFRelease(const void* object);
id NSTemporaryDirectory(void);

// CFDictionaryRef and CFStringRef are toll-free bridged: NSDictionary,
// NSString.
__IOSurface* IOSurfaceCreate(const void* properties);
int IOSurfaceLock(__IOSurface* surface, uint32_t options, uint32_t* seed);
int IOSurfaceUnlock(__IOSurface* surface, uint32_t options, uint32_t* seed);
void* IOSurfaceGetBaseAddress(__IOSurface* surface);
size_t IOSurfaceGetAllocSize(__IOSurface* surface);
extern const void* const kIOSurfaceWidth;
extern const void* const kIOSurfaceHeight;
extern const void* const kIOSurfaceBytesPerElement;
extern const void* const kIOSurfaceBytesPerRow;
extern const void* const kIOSurfaceAllocSize;
extern const void* const kIOSurfacePixelFormat;

int sysctlbyname(
    const char* name,
    void* value,
    size_t* size,
    void* new_value,
    size_t new_size);

/// objc_guard.m: runs body(context) inside @try. Returns 0, or 1 with the
/// caught object (autoreleased) in *exception.
int mlx_ane_objc_try(void (*body)(void*), void* context, id* exception);
}
