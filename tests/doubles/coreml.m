// Double of CoreML.framework: the classes that the Core ML route uses.
//
// It reads the very bytes of the model and runs them on the emulated engine. It
// encodes this project's reading of Apple's headers and of reports, so it shows that
// the route does what it means to do, not that Core ML behaves so.
//
// Faults, by site: ml_asset, ml_plan, ml_load, ml_compile, ml_predict, ml_provider and
// ml_array fail as their kind says; the others are a machine's ways, of any kind:
//   ml_devices   Core ML knows no engine
//   ml_plan_cpu  the plan has every product on the CPU
//   ml_anec      a load fails with the engine's compiler's text
//   ml_never     a completion handler is never called
//   ml_slow      a completion handler is called 20 ms after the method returned
//   ml_hang      a load does not return
//   ml_backings  output backings are ignored
//   ml_cpu       a prediction is computed as a CPU would, in silence
//   ml_late      inputs are held, and read, long after a prediction
#import <Foundation/Foundation.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "doubles.h"
#include "surface.h"

void* _Block_copy(const void* block);
void _Block_release(const void* block);

struct handler_block {
  void* isa;
  int flags;
  int reserved;
  void (*invoke)(void* block, id object, id error);
};

enum { FLOAT16 = 65552, CPU_AND_ENGINE = 3 };

static NSError* make_error(const char* text) {
  NSString* words = [NSString stringWithUTF8String:text];
  return [NSError
      errorWithDomain:@"com.apple.CoreML"
                 code:0
             userInfo:[NSDictionary
                          dictionaryWithObject:words
                                        forKey:NSLocalizedDescriptionKey]];
}

// Whether a fault was asked for here: sets *error, or raises.
static BOOL fails(const char* site, NSError** error) {
  const char* kind = double_fault(site);
  if (kind && strcmp(kind, "exception") == 0) {
    [NSException raise:NSInternalInconsistencyException
                format:@"injected at %s", site];
  }
  if (kind && strcmp(kind, "error") == 0 && error) {
    *error = make_error("injected fault.");
  }
  return kind != NULL;
}

struct answer {
  struct handler_block* handler;
  id object;
  id error;
  BOOL slow;
};

// On a thread of its own, as frameworks do.
static void* call_handler(void* argument) {
  struct answer* answer = argument;
  if (answer->slow) {
    usleep(20000);
  }
  NSAutoreleasePool* pool = [[NSAutoreleasePool alloc] init];
  answer->handler->invoke(answer->handler, answer->object, answer->error);
  _Block_release(answer->handler);
  [answer->object release];
  [answer->error release];
  [pool drain];
  free(answer);
  return NULL;
}

static void complete(id handler, id object, NSError* error) {
  struct answer* answer = calloc(1, sizeof *answer);
  pthread_t thread;
  if (double_fault("ml_never")) {
    free(answer);
    return;
  }
  answer->handler = _Block_copy(handler);
  answer->object = [object retain];
  answer->error = [error retain];
  answer->slow = double_fault("ml_slow") != NULL;
  BOOL slow = answer->slow;
  pthread_create(&thread, NULL, call_handler, answer);
  // Joined, so that nothing is alive past a test; `slow` is the other case.
  if (slow) {
    pthread_detach(thread);
  } else {
    pthread_join(thread, NULL);
  }
}

@interface MLModelConfiguration : NSObject {
  long units;
}
@end

@implementation MLModelConfiguration
- (void)setComputeUnits:(long)value {
  units = value;
}
- (long)computeUnits {
  return units;
}
@end

@interface MLNeuralEngineComputeDevice : NSObject
@end
@implementation MLNeuralEngineComputeDevice
@end
@interface MLCPUComputeDevice : NSObject
@end
@implementation MLCPUComputeDevice
@end

// A model read from bytes, with its weight files by name.
@interface MLModelAsset : NSObject {
 @public
  void* model;
  NSDictionary* weights;
}
@end

@implementation MLModelAsset
+ (id)assetOf:(NSData*)bytes
      weights:(NSDictionary*)weights
        error:(NSError**)error {
  struct double_status status = {0};
  void* model = double_get_engine()->read_model(
      [bytes bytes], [bytes length], &status);
  if (status.failed) {
    *error = make_error(status.text);
    return nil;
  }
  MLModelAsset* made = [[[self alloc] init] autorelease];
  made->model = model;
  made->weights = [weights copy];
  double_count("asset", 1);
  return made;
}
+ (id)modelAssetWithSpecificationData:(NSData*)bytes error:(NSError**)error {
  double_log("ml_asset");
  if (fails("ml_asset", error)) {
    return nil;
  }
  return [self assetOf:bytes weights:[NSDictionary dictionary] error:error];
}
+ (id)assetOfCompiled:(NSURL*)url error:(NSError**)error {
  NSString* folder = [url path];
  NSString* weights = [folder stringByAppendingPathComponent:@"weights"];
  NSData* bytes = [NSData
      dataWithContentsOfFile:[folder
                                 stringByAppendingPathComponent:@"model"]];
  if (bytes == nil) {
    *error = make_error("no compiled model at this URL");
    return nil;
  }
  NSMutableDictionary* files = [NSMutableDictionary dictionary];
  for (NSString* name in
       [[NSFileManager defaultManager] contentsOfDirectoryAtPath:weights
                                                           error:NULL]) {
    NSString* path = [weights stringByAppendingPathComponent:name];
    [files setObject:[NSData dataWithContentsOfFile:path]
              forKey:[@"@model_path/weights/" stringByAppendingString:name]];
  }
  return [self assetOf:bytes weights:files error:error];
}
- (void)dealloc {
  double_count("asset", -1);
  double_get_engine()->free_model(model);
  [weights release];
  [super dealloc];
}
@end

@interface MLMultiArray : NSObject {
 @public
  CVPixelBufferRef pixels;
  NSArray* shape;
  NSMutableData* heap; // where it has no pixel buffer
}
@end

@implementation MLMultiArray
- (id)initWithPixelBuffer:(CVPixelBufferRef)buffer shape:(NSArray*)dimensions {
  self = [super init];
  double_count("array", 1);
  size_t rows = 1;
  for (NSUInteger i = 0; i + 1 < [dimensions count]; ++i) {
    rows *= [[dimensions objectAtIndex:i] unsignedLongValue];
  }
  if (fails("ml_array", NULL) ||
      [[dimensions lastObject] unsignedLongValue] != buffer->surface->width ||
      rows != buffer->surface->height || buffer->surface->row_bytes % 64) {
    [self release];
    return nil;
  }
  __atomic_add_fetch(&buffer->references, 1, __ATOMIC_RELAXED);
  pixels = buffer;
  shape = [dimensions copy];
  return self;
}
// Core ML's own memory, without padding.
- (id)initWithShape:(NSArray*)dimensions {
  self = [super init];
  double_count("array", 1);
  NSUInteger elements = 1;
  for (NSNumber* dimension in dimensions) {
    elements *= [dimension unsignedLongValue];
  }
  shape = [dimensions copy];
  heap = [[NSMutableData alloc] initWithLength:2 * elements];
  return self;
}
- (void)dealloc {
  double_count("array", -1);
  if (pixels) {
    CFRelease(pixels);
  }
  [shape release];
  [heap release];
  [super dealloc];
}
- (CVPixelBufferRef)pixelBuffer {
  return pixels;
}
- (long)dataType {
  return FLOAT16;
}
- (NSArray*)shape {
  return shape;
}
- (NSArray*)strides {
  NSMutableArray* out = [NSMutableArray array];
  unsigned long stride = 1;
  for (NSUInteger i = [shape count]; i-- > 0;) {
    [out insertObject:[NSNumber numberWithUnsignedLong:stride] atIndex:0];
    BOOL last = i + 1 == [shape count];
    stride = last && pixels ? pixels->surface->row_bytes / 2
                            : stride *
            [[shape objectAtIndex:i] unsignedLongValue];
  }
  return out;
}
- (void)getBytesWithHandler:(id)handler {
  struct block_of_bytes {
    void* isa;
    int flags;
    int reserved;
    void (*invoke)(void* block, const void* bytes, long size);
  }* block = (struct block_of_bytes*)handler;
  if (pixels) {
    block->invoke(block, pixels->surface->memory, pixels->surface->bytes);
  } else {
    block->invoke(block, [heap bytes], [heap length]);
  }
}
- (struct double_memory)memory {
  struct double_memory out = {
      pixels->surface->memory, IOSurfaceGetAllocSize(pixels->surface)};
  return out;
}
@end

@interface MLFeatureValue : NSObject {
  MLMultiArray* array;
}
@end

@implementation MLFeatureValue
+ (id)featureValueWithMultiArray:(MLMultiArray*)value {
  MLFeatureValue* made = [[[self alloc] init] autorelease];
  made->array = [value retain];
  return made;
}
- (id)multiArrayValue {
  return array;
}
- (void)dealloc {
  [array release];
  [super dealloc];
}
@end

@interface MLDictionaryFeatureProvider : NSObject {
 @public
  NSDictionary* features;
}
@end

@implementation MLDictionaryFeatureProvider
- (id)initWithDictionary:(NSDictionary*)values error:(NSError**)error {
  self = [super init];
  double_count("provider", 1);
  if (fails("ml_provider", error)) {
    [self release];
    return nil;
  }
  features = [values copy];
  return self;
}
- (id)featureValueForName:(NSString*)name {
  return [features objectForKey:name];
}
- (void)dealloc {
  double_count("provider", -1);
  [features release];
  [super dealloc];
}
@end

@interface MLPredictionOptions : NSObject {
 @public
  NSDictionary* backings;
}
@end

@implementation MLPredictionOptions
- (void)setOutputBackings:(NSDictionary*)values {
  [backings release];
  backings = [values copy];
}
- (void)dealloc {
  [backings release];
  [super dealloc];
}
@end

// What ml_late keeps: read once more before it is let go.
static NSMutableArray* held;

static void let_go(void) {
  NSAutoreleasePool* pool = [[NSAutoreleasePool alloc] init];
  NSMutableArray* all = held;
  held = nil;
  for (MLDictionaryFeatureProvider* provider in all) {
    for (NSString* name in provider->features) {
      MLMultiArray* array =
          [[provider->features objectForKey:name] multiArrayValue];
      struct double_memory memory = [array memory];
      volatile unsigned char sum = 0;
      if (array->pixels->surface->magic != SURFACE_MAGIC) {
        abort();
      }
      for (size_t i = 0; i < memory.size; i += 4096) {
        sum += ((unsigned char*)memory.bytes)[i];
      }
    }
  }
  [all release];
  [pool drain];
}

@interface MLModel : NSObject {
  void* program;
}
@end

@implementation MLModel
+ (NSArray*)availableComputeDevices {
  id cpu = [[[MLCPUComputeDevice alloc] init] autorelease];
  id engine = [[[MLNeuralEngineComputeDevice alloc] init] autorelease];
  return double_fault("ml_devices")
      ? [NSArray arrayWithObject:cpu]
      : [NSArray arrayWithObjects:cpu, engine, nil];
}

+ (id)modelOf:(MLModelAsset*)asset
    configuration:(MLModelConfiguration*)configuration
            error:(NSError**)error {
  const struct double_engine* engine = double_get_engine();
  NSUInteger count = [asset->weights count], i = 0;
  struct double_weight weights[count + 1];
  struct double_status status = {0};
  size_t size = 0;
  if ([configuration computeUnits] != CPU_AND_ENGINE) {
    *error = make_error("this double has no other compute units");
    return nil;
  }
  if (double_fault("ml_hang")) {
    double_block();
  }
  if (double_fault("ml_anec")) {
    *error = make_error("Error in declaring network: ANECCompile() FAILED.");
    return nil;
  }
  if (fails("ml_load", error)) {
    return nil;
  }
  for (NSString* name in asset->weights) {
    NSData* bytes = [asset->weights objectForKey:name];
    weights[i].name = [name UTF8String];
    weights[i].bytes = [bytes bytes];
    weights[i++].size = [bytes length];
  }
  const char* text = engine->model_text(asset->model, &size);
  double_hang("compile");
  double_hang("load");
  void* program = engine->create(text, size, weights, count, &status);
  if (!status.failed) {
    engine->load(program, &status);
  }
  if (status.failed) {
    if (program) {
      engine->destroy(program);
    }
    *error = make_error(status.text);
    return nil;
  }
  MLModel* made = [[[self alloc] init] autorelease];
  made->program = program;
  double_count("loaded", 1);
  return made;
}

+ (void)loadModelAsset:(MLModelAsset*)asset
         configuration:(MLModelConfiguration*)configuration
     completionHandler:(id)handler {
  NSError* error = nil;
  double_log("ml_load");
  MLModel* model = [self modelOf:asset
                   configuration:configuration
                           error:&error];
  complete(handler, model, error);
}

+ (id)modelWithContentsOfURL:(NSURL*)url
               configuration:(MLModelConfiguration*)configuration
                       error:(NSError**)error {
  double_log("ml_load_url");
  MLModelAsset* asset = [MLModelAsset assetOfCompiled:url error:error];
  return asset ? [self modelOf:asset configuration:configuration error:error]
               : nil;
}

// The file that a package's manifest names as its model, or nil.
+ (NSString*)modelOfPackage:(NSString*)package {
  NSData* text = [NSData
      dataWithContentsOfFile:
          [package stringByAppendingPathComponent:@"Manifest.json"]];
  NSDictionary* manifest = text
      ? [NSJSONSerialization JSONObjectWithData:text options:0 error:NULL]
      : nil;
  NSDictionary* item = [[manifest objectForKey:@"itemInfoEntries"]
      objectForKey:[manifest objectForKey:@"rootModelIdentifier"]];
  NSString* path = [item objectForKey:@"path"];
  return path && [[manifest objectForKey:@"fileFormatVersion"]
                     isEqualToString:@"1.0.0"]
      ? [[package stringByAppendingPathComponent:@"Data"]
            stringByAppendingPathComponent:path]
      : nil;
}

+ (void)compileModelAtURL:(NSURL*)url completionHandler:(id)handler {
  NSError* error = nil;
  NSURL* compiled = nil;
  NSFileManager* files = [NSFileManager defaultManager];
  double_log("ml_compile");
  NSString* model = [self modelOfPackage:[url path]];
  if (!fails("ml_compile", &error)) {
    char pattern[4096];
    snprintf(
        pattern,
        sizeof pattern,
        "%s/model_XXXXXX",
        [NSTemporaryDirectory() fileSystemRepresentation]);
    NSString* folder = [NSString stringWithUTF8String:mkdtemp(pattern)];
    BOOL copied =
        model &&
        [files copyItemAtPath:model
                       toPath:[folder stringByAppendingPathComponent:@"model"]
                        error:&error] &&
        [files copyItemAtPath:[[model stringByDeletingLastPathComponent]
                                  stringByAppendingPathComponent:@"weights"]
                       toPath:[folder stringByAppendingPathComponent:@"weights"]
                        error:&error];
    if (copied) {
      compiled = [NSURL fileURLWithPath:folder isDirectory:YES];
    } else if (error == nil) {
      error = make_error("the package has no model");
    }
  }
  complete(handler, compiled, error);
}

- (NSArray*)shape:(size_t)port output:(int)output {
  size_t rank = 0;
  const int64_t* sizes =
      double_get_engine()->port_shape(program, output, port, &rank);
  NSMutableArray* out = [NSMutableArray array];
  for (size_t i = 0; i < rank; ++i) {
    [out addObject:[NSNumber numberWithLongLong:sizes[i]]];
  }
  return out;
}

// The arrays by name where they stand in the program, or NO.
- (BOOL)place:(NSDictionary*)arrays
       output:(int)output
         into:(struct double_memory*)memory {
  const struct double_engine* engine = double_get_engine();
  size_t count = engine->port_count(program, output);
  if ([arrays count] != count || count > DOUBLE_MAX_PORTS) {
    return NO;
  }
  for (size_t i = 0; i < count; ++i) {
    NSString* name = [NSString
        stringWithUTF8String:engine->port_name(program, output, i)];
    id value = [arrays objectForKey:name];
    MLMultiArray* array = [value isKindOfClass:[MLFeatureValue class]]
        ? [value multiArrayValue]
        : value;
    if (array == nil || ![array->shape isEqual:[self shape:i output:output]]) {
      return NO;
    }
    memory[i] = [array memory];
  }
  return YES;
}

// The engine's padded rows, without their padding.
- (MLMultiArray*)denseCopy:(struct double_memory)memory port:(size_t)port {
  MLMultiArray* out = [[[MLMultiArray alloc]
      initWithShape:[self shape:port output:1]] autorelease];
  size_t width = [[out->shape lastObject] unsignedLongValue];
  size_t row = (2 * width + 63) / 64 * 64;
  char* to = [out->heap mutableBytes];
  for (size_t at = 0; at < [out->heap length]; at += 2 * width) {
    memcpy(to + at, (char*)memory.bytes + at / (2 * width) * row, 2 * width);
  }
  return out;
}

- (id)predictionFromFeatures:(MLDictionaryFeatureProvider*)features
                     options:(MLPredictionOptions*)options
                       error:(NSError**)error {
  const struct double_engine* engine = double_get_engine();
  struct double_status status = {0};
  struct double_memory inputs[DOUBLE_MAX_PORTS] = {{0}};
  struct double_memory outputs[DOUBLE_MAX_PORTS] = {{0}};
  double_log("ml_predict");
  if (fails("ml_predict", error)) {
    return nil;
  }
  if (![self place:features->features output:0 into:inputs] ||
      ![self place:options->backings output:1 into:outputs]) {
    *error = make_error("a feature is missing or of another shape");
    return nil;
  }
  BOOL ignored = double_fault("ml_backings") != NULL;
  size_t count = engine->port_count(program, 1);
  for (size_t i = 0; ignored && i < count; ++i) {
    outputs[i].bytes = calloc(1, outputs[i].size);
  }
  int on_cpu = double_fault("ml_cpu") != NULL;
  engine->evaluate(program, on_cpu, inputs, outputs, &status);
  NSMutableDictionary* results = [NSMutableDictionary dictionary];
  for (size_t i = 0; i < count; ++i) {
    NSString* name =
        [NSString stringWithUTF8String:engine->port_name(program, 1, i)];
    MLMultiArray* array = ignored ? [self denseCopy:outputs[i] port:i]
                                  : [options->backings objectForKey:name];
    [results setObject:[MLFeatureValue featureValueWithMultiArray:array]
                forKey:name];
    if (ignored) {
      free(outputs[i].bytes);
    }
  }
  if (double_fault("ml_late")) {
    double_at_clear(let_go);
    held = held ? held : [[NSMutableArray alloc] init];
    [held addObject:features];
  }
  if (status.failed) {
    *error = make_error(status.text);
    return nil;
  }
  return [[[MLDictionaryFeatureProvider alloc] initWithDictionary:results
                                                            error:error]
      autorelease];
}

- (void)dealloc {
  double_log("ml_unload");
  double_get_engine()->unload(program);
  double_get_engine()->destroy(program);
  double_count("loaded", -1);
  [super dealloc];
}
@end

#ifndef DOUBLE_OLD_MACOS
@interface MLModelStructureProgramOperation : NSObject {
 @public
  NSString* name;
  id device;
}
@end

@implementation MLModelStructureProgramOperation
- (NSString*)operatorName {
  return name;
}
- (void)dealloc {
  [name release];
  [device release];
  [super dealloc];
}
@end

@interface MLComputePlanDeviceUsage : NSObject {
 @public
  id device;
}
@end

@implementation MLComputePlanDeviceUsage
- (id)preferredComputeDevice {
  return device;
}
- (void)dealloc {
  [device release];
  [super dealloc];
}
@end

// Structure, program, function and block are one object here.
@interface MLComputePlan : NSObject {
  NSMutableArray* operations;
}
@end

@implementation MLComputePlan
+ (id)planOf:(MLModelAsset*)asset error:(NSError**)error {
  const struct double_engine* engine = double_get_engine();
  if (fails("ml_plan", error)) {
    return nil;
  }
  MLComputePlan* made = [[[self alloc] init] autorelease];
  made->operations = [[NSMutableArray alloc] init];
  double_count("plan", 1);
  BOOL cpu = double_fault("ml_plan_cpu") != NULL;
  for (size_t i = 0; i < engine->model_operations(asset->model); ++i) {
    const char* name = engine->model_operation(asset->model, i);
    MLModelStructureProgramOperation* operation =
        [[[MLModelStructureProgramOperation alloc] init] autorelease];
    operation->name = [[NSString alloc] initWithUTF8String:name];
    if (strcmp(name, "const") != 0) {
      operation->device = cpu && strcmp(name, "matmul") == 0
          ? (id)[[MLCPUComputeDevice alloc] init]
          : (id)[[MLNeuralEngineComputeDevice alloc] init];
    }
    [made->operations addObject:operation];
  }
  return made;
}
+ (void)loadModelAsset:(MLModelAsset*)asset
         configuration:(MLModelConfiguration*)configuration
     completionHandler:(id)handler {
  NSError* error = nil;
  double_log("ml_plan");
  MLComputePlan* plan = [self planOf:asset error:&error];
  complete(handler, plan, error);
}
+ (void)loadContentsOfURL:(NSURL*)url
            configuration:(MLModelConfiguration*)configuration
        completionHandler:(id)handler {
  NSError* error = nil;
  double_log("ml_plan_url");
  MLModelAsset* asset = [MLModelAsset assetOfCompiled:url error:&error];
  MLComputePlan* plan = asset ? [self planOf:asset error:&error] : nil;
  complete(handler, plan, error);
}
- (id)modelStructure {
  return self;
}
- (id)program {
  return self;
}
- (NSDictionary*)functions {
  return [NSDictionary dictionaryWithObject:self forKey:@"main"];
}
- (id)block {
  return self;
}
- (NSArray*)operations {
  return operations;
}
- (id)computeDeviceUsageForMLProgramOperation:
    (MLModelStructureProgramOperation*)operation {
  if (operation->device == nil) {
    return nil;
  }
  MLComputePlanDeviceUsage* made =
      [[[MLComputePlanDeviceUsage alloc] init] autorelease];
  made->device = [operation->device retain];
  return made;
}
- (void)dealloc {
  double_count("plan", -1);
  [operations release];
  [super dealloc];
}
@end
#endif
