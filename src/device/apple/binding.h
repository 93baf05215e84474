// Which surface goes to which symbol of a loaded program.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <vector>

#include "device/apple/objc.h"
#include "device/device.h"

namespace mlx_ane::apple {

/// Port `port` of the source (its place in Source::inputs or outputs) is the
/// program's symbol `index`.
struct Symbol {
  size_t port;
  long long index;
};

/// In the order in which a request lists its surfaces.
struct Binding {
  std::vector<Symbol> inputs;
  std::vector<Symbol> outputs;
  /// Names came from the model's attributes, not from the ASCII rule.
  bool by_attributes = false;
  /// Bytes between rows, by port, where the attributes tell them.
  std::map<std::string, size_t> row_bytes;
  /// For doctor: how ports were bound, strides, keys of the attributes.
  std::map<std::string, std::string> facts;
};

/// Reads the names and strides of a loaded _ANEInMemoryModel or _ANEModel.
/// Where it tells none, symbols are the ports sorted by name in ASCII order
/// (Orion tried all permutations).
Binding bind_ports(id model, const Source& source);

}  // namespace mlx_ane::apple
