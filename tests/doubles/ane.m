// Double of AppleNeuralEngine.framework: the classes that the in-memory route uses.
//
// They encode this project's reading of the reports, so they show that the route
// does what it means to do, not that Apple's classes behave so.
#import <Foundation/Foundation.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "doubles.h"
#include "surface.h"

static NSError* make_error(NSString* domain, int code, NSString* text) {
  return [NSError
      errorWithDomain:domain
                 code:code
             userInfo:[NSDictionary
                          dictionaryWithObject:text
                                        forKey:NSLocalizedDescriptionKey]];
}

static NSError* engine_error(int code, const char* text) {
  return make_error(
      @"com.apple.appleneuralengine",
      code,
      [NSString stringWithUTF8String:text]);
}

// The NSError of a step that the engine failed.
static NSError* status_error(const struct double_status* status) {
  const char* domain =
      status->domain[0] ? status->domain : "com.apple.appleneuralengine";
  return make_error(
      [NSString stringWithUTF8String:domain],
      status->code,
      [NSString stringWithUTF8String:status->text]);
}

// A fault that was asked for at this step: sets *failed, and *error or raises.
static void inject(const char* site, BOOL* failed, NSError** error) {
  const char* kind = double_fault(site);
  *failed = kind != NULL;
  if (kind == NULL) {
    return;
  }
  if (strcmp(kind, "exception") == 0) {
    [NSException raise:NSInternalInconsistencyException
                format:@"injected at %s", site];
  }
  if (strcmp(kind, "error") == 0 && error) {
    *error = engine_error(8, "injected fault");
  }
}

// Objects that answer nil where a fault was asked for.
static BOOL gives_nil(const char* site) {
  BOOL failed;
  inject(site, &failed, NULL);
  return failed;
}

@interface _ANEInMemoryModelDescriptor : NSObject {
 @public
  NSData* text;
  NSDictionary* weights;
}
@end

@implementation _ANEInMemoryModelDescriptor
+ (id)modelWithMILText:(id)text
               weights:(id)weights
          optionsPlist:(id)options {
  double_log("descriptor");
  if (![text isKindOfClass:[NSData class]]) {
    [NSException raise:NSInvalidArgumentException
                format:@"-[%@ bytes]: unrecognized selector", [text class]];
  }
  if (![weights isKindOfClass:[NSDictionary class]]) {
    [NSException raise:NSInvalidArgumentException format:@"weights is nil"];
  }
  for (NSString* name in weights) {
    NSDictionary* entry = [weights objectForKey:name];
    if (![[entry objectForKey:@"data"] isKindOfClass:[NSData class]] ||
        [[entry objectForKey:@"offset"] intValue] != 0 ||
        ![name hasPrefix:@"@model_path/"]) {
      return nil;
    }
  }
  if (gives_nil("descriptor")) {
    return nil;
  }
  _ANEInMemoryModelDescriptor* made = [[[self alloc] init] autorelease];
  made->text = [text copy];
  made->weights = [weights copy];
  double_count("descriptor", 1);
  return made;
}
- (void)dealloc {
  double_count("descriptor", -1);
  [text release];
  [weights release];
  [super dealloc];
}
@end

@interface _ANEIOSurfaceObject : NSObject {
 @public
  IOSurfaceRef surface;
}
@end

@implementation _ANEIOSurfaceObject
+ (id)objectWithIOSurface:(IOSurfaceRef)surface {
  if (surface == NULL || gives_nil("wrapper")) {
    return nil;
  }
  _ANEIOSurfaceObject* made = [[[self alloc] init] autorelease];
  made->surface = (IOSurfaceRef)CFRetain(surface);
  double_count("wrapper", 1);
  return made;
}
- (void)dealloc {
  double_count("wrapper", -1);
  CFRelease(surface);
  [super dealloc];
}
@end

@interface _ANERequest : NSObject {
 @public
  NSArray* inputs;
  NSArray* input_indices;
  NSArray* outputs;
  NSArray* output_indices;
}
@end

@implementation _ANERequest
+ (id)requestWithInputs:(id)inputs
           inputIndices:(id)input_indices
                outputs:(id)outputs
          outputIndices:(id)output_indices
          weightsBuffer:(id)weights
              perfStats:(id)statistics
         procedureIndex:(id)procedure {
  if ([inputs count] != [input_indices count] ||
      [outputs count] != [output_indices count] ||
      ![procedure isEqual:[NSNumber numberWithInt:0]] ||
      gives_nil("request")) {
    return nil;
  }
  _ANERequest* made = [[[self alloc] init] autorelease];
  made->inputs = [inputs copy];
  made->input_indices = [input_indices copy];
  made->outputs = [outputs copy];
  made->output_indices = [output_indices copy];
  double_count("request", 1);
  return made;
}
- (void)dealloc {
  double_count("request", -1);
  [inputs release];
  [input_indices release];
  [outputs release];
  [output_indices release];
  [super dealloc];
}
@end

// A program by its folder, as the daemon sees it.
@interface _ANEModel : NSObject {
 @public
  NSString* directory;
  void* program;
  BOOL loaded;
  BOOL compiled;
}
- (NSString*)file:(NSString*)name;
@end

@implementation _ANEModel
+ (id)modelAtURL:(NSURL*)url key:(NSString*)key {
  if (![key isKindOfClass:[NSString class]] || gives_nil("model_at_url")) {
    return nil;
  }
  _ANEModel* made = [[[self alloc] init] autorelease];
  made->directory = [[url path] copy];
  double_count("model", 1);
  return made;
}

- (void)dealloc {
  if (loaded) {
    abort(); // The daemon keeps what is not unloaded.
  }
  double_count("model", -1);
  if (program) {
    double_get_engine()->destroy(program);
  }
  [directory release];
  [super dealloc];
}

- (NSString*)file:(NSString*)name {
  return [directory stringByAppendingPathComponent:name];
}

- (NSData*)staged {
  return [NSData dataWithContentsOfFile:[self file:@"model.mil"]];
}

// What a compile leaves: stands for the text that was compiled.
- (NSString*)stamp {
  NSData* text = [self staged];
  const unsigned char* bytes = [text bytes];
  unsigned long long hash = 5381;
  for (NSUInteger i = 0; i < [text length]; ++i) {
    hash = hash * 33 + bytes[i];
  }
  return [NSString stringWithFormat:@"%016llX", hash];
}

- (BOOL)exists {
  if (double_machine("forgets")) {
    return NO;
  }
  return double_machine("stale_load") ||
         [[NSFileManager defaultManager] fileExistsAtPath:[self file:@"data"]];
}

- (BOOL)create:(NSDictionary*)weight_files error:(NSError**)error {
  NSUInteger count = [weight_files count], i = 0;
  struct double_weight weights[count + 1];
  struct double_status status = {0};
  for (NSString* name in weight_files) {
    NSData* bytes = [[weight_files objectForKey:name] objectForKey:@"data"];
    weights[i].name = [name UTF8String];
    weights[i].bytes = [bytes bytes];
    weights[i++].size = [bytes length];
  }
  if (program) {
    double_get_engine()->destroy(program);
  }
  NSData* text = [self staged];
  program = double_get_engine()->create(
      [text bytes], [text length], weights, count, &status);
  if (status.failed) {
    *error = status_error(&status);
    return NO;
  }
  return YES;
}

// Compiles what was staged, as the daemon does; what it makes stays beside it.
- (BOOL)compile:(NSDictionary*)weights error:(NSError**)error {
  double_hang("compile");
  if (double_compile_fails()) {
    *error = make_error(
        @"com.apple.appleneuralengine.compiler",
        1,
        @"_ANECompiler : ANECCompile() FAILED");
    double_compiled(0);
    return NO;
  }
  if ([self staged] == nil) {
    *error = engine_error(10, "verifyBundleAtPath: invalid model");
    double_compiled(0);
    return NO;
  }
  if (![self create:weights error:error]) {
    double_compiled(0);
    return NO;
  }
  double_compiled(1);
  compiled = YES;
  [[self stamp] writeToFile:[self file:@"data"]
                 atomically:YES
                   encoding:NSUTF8StringEncoding
                      error:NULL];
  [@"net" writeToFile:[self file:@"net.plist"]
           atomically:YES
             encoding:NSUTF8StringEncoding
                error:NULL];
  return YES;
}

- (BOOL)load:(NSDictionary*)weights error:(NSError**)error {
  struct double_status status = {0};
  double_hang("load");
  if (double_machine("stale_load") && !compiled) {
    [NSException raise:NSInternalInconsistencyException
                format:@"stale program for model key"];
  }
  NSString* stamp =
      [NSString stringWithContentsOfFile:[self file:@"data"]
                                encoding:NSUTF8StringEncoding
                                   error:NULL];
  if (![stamp isEqualToString:[self stamp]]) {
    *error = engine_error(10, "verifyBundleAtPath: invalid model");
    return NO;
  }
  if (program == NULL && ![self create:weights error:error]) {
    return NO;
  }
  double_get_engine()->load(program, &status);
  if (status.failed) {
    *error = status_error(&status);
    return NO;
  }
  loaded = YES;
  double_count("loaded", 1);
  return YES;
}

// Symbols are sorted by name, whatever the order of declaration.
- (NSArray*)symbols:(int)output {
  const struct double_engine* engine = double_get_engine();
  NSMutableArray* names = [NSMutableArray array];
  for (size_t i = 0; i < engine->port_count(program, output); ++i) {
    [names addObject:[NSString stringWithUTF8String:engine->port_name(
                                                        program, output, i)]];
  }
  NSArray* sorted = [names sortedArrayUsingSelector:@selector(compare:)];
  return double_symbols_reversed()
      ? [[sorted reverseObjectEnumerator] allObjects]
      : sorted;
}

#ifndef DOUBLE_OLD_MACOS
- (NSArray*)live:(int)output {
  const struct double_engine* engine = double_get_engine();
  NSMutableArray* list = [NSMutableArray array];
  for (size_t i = 0; i < engine->port_count(program, output); ++i) {
    NSNumber* stride = [NSNumber
        numberWithUnsignedLong:engine->row_bytes(program, output, i)];
    NSString* name = [NSString
        stringWithUTF8String:engine->port_name(program, output, i)];
    [list addObject:[NSDictionary dictionaryWithObjectsAndKeys:
                                      name,
                                      @"Name",
                                      stride,
                                      @"RowStride",
                                      stride,
                                      @"PlaneStride",
                                      nil]];
  }
  return list;
}

- (NSDictionary*)modelAttributes {
  NSMutableArray* outputs = [NSMutableArray array];
  NSMutableArray* input_indices = [NSMutableArray array];
  NSMutableArray* output_indices = [NSMutableArray array];
  NSArray* inputs = [self symbols:0];
  for (NSString* name in [self symbols:1]) {
    [output_indices
        addObject:[NSNumber numberWithUnsignedLong:[outputs count]]];
    [outputs addObject:[name stringByAppendingString:@"@output"]];
  }
  for (NSUInteger i = 0; i < [inputs count]; ++i) {
    [input_indices addObject:[NSNumber numberWithUnsignedLong:i]];
  }
  NSDictionary* procedure = [NSDictionary
      dictionaryWithObjectsAndKeys:input_indices,
                                   @"ANEFModelInputSymbolIndexArray",
                                   output_indices,
                                   @"ANEFModelOutputSymbolIndexArray",
                                   nil];
  NSDictionary* description = [NSDictionary
      dictionaryWithObjectsAndKeys:inputs,
                                   @"kANEFModelInputSymbolsArrayKey",
                                   outputs,
                                   @"kANEFModelOutputSymbolsArrayKey",
                                   [NSArray arrayWithObject:procedure],
                                   @"ANEFModelProcedures",
                                   nil];
  NSMutableDictionary* attributes =
      [NSMutableDictionary dictionaryWithObject:description
                                         forKey:@"ANEFModelDescription"];
  if (double_machine("reports_strides")) {
    NSDictionary* network =
        [NSDictionary dictionaryWithObjectsAndKeys:[self live:0],
                                                   @"LiveInputList",
                                                   [self live:1],
                                                   @"LiveOutputList",
                                                   nil];
    [attributes setObject:[NSArray arrayWithObject:network]
                   forKey:@"NetworkStatusList"];
  }
  return attributes;
}
#endif

// Puts the memory of each surface where its symbol stands in the program.
- (BOOL)place:(NSArray*)surfaces
           at:(NSArray*)indices
       output:(int)output
         into:(struct double_memory*)memory {
  const struct double_engine* engine = double_get_engine();
  NSArray* symbols = [self symbols:output];
  if ([surfaces count] != [symbols count] ||
      [surfaces count] > DOUBLE_MAX_PORTS) {
    return NO;
  }
  for (NSUInteger i = 0; i < [surfaces count]; ++i) {
    NSUInteger index = [[indices objectAtIndex:i] unsignedLongValue];
    if (index >= [symbols count]) {
      return NO;
    }
    IOSurfaceRef surface =
        ((_ANEIOSurfaceObject*)[surfaces objectAtIndex:i])->surface;
    const char* name = [[symbols objectAtIndex:index] UTF8String];
    for (size_t port = 0; port < [symbols count]; ++port) {
      if (strcmp(engine->port_name(program, output, port), name) == 0) {
        memory[port].bytes = IOSurfaceGetBaseAddress(surface);
        memory[port].size = IOSurfaceGetAllocSize(surface);
      }
    }
  }
  return YES;
}

- (BOOL)evaluate:(_ANERequest*)request error:(NSError**)error {
  struct double_status status = {0};
  struct double_memory inputs[DOUBLE_MAX_PORTS] = {{0}};
  struct double_memory outputs[DOUBLE_MAX_PORTS] = {{0}};
  double_hang("evaluate");
  if (!loaded ||
      ![self place:request->inputs
                at:request->input_indices
            output:0
              into:inputs] ||
      ![self place:request->outputs
                at:request->output_indices
            output:1
              into:outputs]) {
    *error = engine_error(26, "Bad argument");
    return NO;
  }
  double_get_engine()->evaluate(program, 0, inputs, outputs, &status);
  if (status.failed) {
    *error = status_error(&status);
    return NO;
  }
  return YES;
}

- (void)unload {
  double_hang("unload");
  if (loaded) {
    double_get_engine()->unload(program);
    double_count("loaded", -1);
    loaded = NO;
  }
}
@end

@interface _ANEInMemoryModel : NSObject {
  _ANEInMemoryModelDescriptor* descriptor;
  _ANEModel* inner;
}
@end

@implementation _ANEInMemoryModel
+ (id)inMemoryModelWithDescriptor:(id)descriptor {
  if (descriptor == nil || gives_nil("model")) {
    return nil;
  }
  _ANEInMemoryModel* made = [[[self alloc] init] autorelease];
  made->descriptor = [descriptor retain];
  made->inner = [[_ANEModel alloc] init];
  made->inner->directory = [[NSTemporaryDirectory()
      stringByAppendingPathComponent:[made hexStringIdentifier]] copy];
  double_count("model", 1);
  return made;
}

- (void)dealloc {
  [inner release];
  [descriptor release];
  [super dealloc];
}

- (NSString*)hexStringIdentifier {
  const unsigned char* bytes = [descriptor->text bytes];
  unsigned long long hash = 5381;
  for (NSUInteger i = 0; i < [descriptor->text length]; ++i) {
    hash = hash * 33 + bytes[i];
  }
  return [NSString stringWithFormat:@"%016llX", hash];
}

#ifndef DOUBLE_OLD_MACOS
- (void)setModelURL:(NSURL*)url {
  if (!double_machine("ignores_url")) {
    [inner->directory release];
    inner->directory = [[url path] copy];
  }
}
- (BOOL)compiledModelExists {
  return [inner exists];
}
- (void)purgeCompiledModel {
  double_log("purge");
}
- (id)model {
  return inner;
}
#endif

- (BOOL)compileWithQoS:(unsigned int)qos
               options:(id)options
                 error:(NSError**)error {
  BOOL failed;
  double_log("compile");
  inject("compile", &failed, error);
  if (failed) {
    return NO;
  }
  NSData* staged =
      [NSData dataWithContentsOfFile:[inner file:@"model.mil"]];
  if (double_machine_lists("code10", "in_memory") ||
      ![staged isEqualToData:descriptor->text]) {
    *error = engine_error(10, "verifyBundleAtPath: invalid model");
    double_compiled(0);
    return NO;
  }
  for (NSString* name in descriptor->weights) {
    NSData* file = [NSData
        dataWithContentsOfFile:
            [inner file:[name substringFromIndex:strlen("@model_path/")]]];
    if (![file isEqualToData:[[descriptor->weights objectForKey:name]
                                 objectForKey:@"data"]]) {
      *error = engine_error(10, "verifyBundleAtPath: missing weight file");
      return NO;
    }
  }
  return [inner compile:descriptor->weights error:error];
}

- (BOOL)loadWithQoS:(unsigned int)qos
            options:(id)options
              error:(NSError**)error {
  BOOL failed;
  double_log("load");
  inject("load", &failed, error);
  return !failed && [inner load:descriptor->weights error:error];
}

#ifdef DOUBLE_MISSPELT
- (BOOL)evaluateWithQos:(unsigned int)qos
#else
- (BOOL)evaluateWithQoS:(unsigned int)qos
#endif
                options:(id)options
                request:(_ANERequest*)request
                  error:(NSError**)error {
  BOOL failed;
  double_log("evaluate");
  inject("evaluate", &failed, error);
  return !failed && [inner evaluate:request error:error];
}

- (BOOL)unloadWithQoS:(unsigned int)qos error:(NSError**)error {
  double_log("unload");
  [inner unload];
  return YES;
}
@end

@interface _ANEClient : NSObject
@end

@implementation _ANEClient
+ (id)sharedConnection {
  static _ANEClient* shared;
  if (shared == nil) {
    shared = [[self alloc] init];
  }
  return gives_nil("client") ? nil : shared;
}

#ifndef DOUBLE_OLD_MACOS
- (BOOL)compiledModelExistsFor:(_ANEModel*)model {
  return [model exists];
}
- (void)purgeCompiledModel:(_ANEModel*)model {
  double_log("purge");
}
#endif

- (BOOL)compileModel:(_ANEModel*)model
             options:(NSDictionary*)options
                 qos:(unsigned int)qos
               error:(NSError**)error {
  BOOL failed;
  double_log("compile");
  inject("compile", &failed, error);
  if (failed) {
    return NO;
  }
  if (double_machine_lists("code10", "client") ||
      ![[options objectForKey:@"kANEFModelType"]
          isEqual:@"kANEFModelMIL"] ||
      ![[options objectForKey:@"kANEFNetPlistFilenameKey"]
          isEqual:@"model.mil"]) {
    *error = engine_error(10, "verifyBundleAtPath: invalid model");
    double_compiled(0);
    return NO;
  }
  return [model compile:nil error:error];
}

- (BOOL)loadModel:(_ANEModel*)model
          options:(NSDictionary*)options
              qos:(unsigned int)qos
            error:(NSError**)error {
  BOOL failed;
  double_log("load");
  inject("load", &failed, error);
  return !failed && [model load:nil error:error];
}

- (BOOL)evaluateWithModel:(_ANEModel*)model
                  options:(NSDictionary*)options
                  request:(_ANERequest*)request
                      qos:(unsigned int)qos
                    error:(NSError**)error {
  BOOL failed;
  double_log("evaluate");
  inject("evaluate", &failed, error);
  return !failed && [model evaluate:request error:error];
}

- (BOOL)unloadModel:(_ANEModel*)model
            options:(NSDictionary*)options
                qos:(unsigned int)qos
              error:(NSError**)error {
  double_log("unload");
  [model unload];
  return YES;
}
@end

@interface _ANEDeviceInfo : NSObject
@end

@implementation _ANEDeviceInfo
+ (BOOL)hasANE {
  return double_machine("no_engine") == NULL;
}
+ (unsigned int)numANEs {
  return 1;
}
+ (unsigned int)numANECores {
  return 16;
}
+ (NSString*)aneArchitectureType {
  const char* chosen = getenv("DOUBLES_CHIP");
  chosen = chosen ? chosen : double_machine("chip");
  return [NSString stringWithUTF8String:chosen ? chosen : "h16g"];
}
+ (NSString*)buildVersion {
  return @"25E246";
}
@end
